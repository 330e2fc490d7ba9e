"""Several processes that train one run together: how they start, what they tell each other, one network in all."""
