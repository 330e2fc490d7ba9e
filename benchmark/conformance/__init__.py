"""The conformance kit: every promise of the method interface as a named check, run over any plugin.

`sparse-bench check METHOD` runs it; so do the tests, over every method they find.
"""

from __future__ import annotations

from benchmark.conformance import budget, engine, method_state, needs, zeros  # noqa: F401 (each registers its checks)
from benchmark.conformance.checks import CHECKS, Result, run_checks
from benchmark.conformance.trial import Kit

__all__ = ["CHECKS", "Kit", "Result", "run_checks"]
