"""The paper's tables beside the records."""
