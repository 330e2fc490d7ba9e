"""Engines: where the workers of a sweep run, each a module with `SETTINGS` and `open_engine`; and what workers say.

`book` is what they tell each other and whoever started them, whichever engine runs them.
"""

from benchmark.workers.base import Engine, Order, Pool, Status, check_pool, open_engine

__all__ = ["Engine", "Order", "Pool", "Status", "check_pool", "open_engine"]
