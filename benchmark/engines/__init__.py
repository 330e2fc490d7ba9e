"""Engines: where the workers of a sweep run. Each is a module of this folder with `SETTINGS` and `open_engine`."""

from benchmark.engines.base import Engine, Order, Pool, Status, check_pool, open_engine

__all__ = ["Engine", "Order", "Pool", "Status", "check_pool", "open_engine"]
