"""What all records come to."""
