"""One run in several processes: their start, their exchange, one network in all of them."""
