"""Where the workers of a sweep run: a module each, with `NEEDS`, `SETTINGS` and `open_workers`.

`book` is what workers tell each other and whoever started them, wherever they run.
"""

from benchmark.workers.base import Order, Pool, Status, Workers, check_pool, open_workers

__all__ = ["Order", "Pool", "Status", "Workers", "check_pool", "open_workers"]
