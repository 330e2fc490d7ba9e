"""How networks are trained and priced, and the command line.

The packages `methods` and `leaderboard` beside this one are always the ones that are imported, whatever else of these
names is in the working folder, on PYTHONPATH or installed.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OWN = ("methods", "leaderboard")


class OwnFinder:
    """Finds OWN in ROOT, before the folders of sys.path are searched."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return where a package is, or None for every other one."""
        return PathFinder.find_spec(name, [str(ROOT)]) if name in OWN else None


def refuse_foreign() -> None:
    """Raise ImportError where another package of the name of one of ours was imported before this one."""
    for name in OWN:
        module = sys.modules.get(name)
        places = [*getattr(module, "__path__", []), getattr(module, "__file__", None) or ""]
        if module is not None and str(ROOT / name) not in [str(Path(place).resolve()) for place in places]:
            raise ImportError(
                f"sparse-bench has a package '{name}' ({ROOT / name}), and another one was imported before it: "
                f"{places[-1] or places[0]}. Import benchmark first, if you do not need the other one, else rename that"
            )


refuse_foreign()
sys.meta_path.insert(0, OwnFinder)  # type: ignore[arg-type]


def __getattr__(name: str) -> Any:
    """Import what this package offers to other programs when it is asked for: most commands need none of it."""
    if name == "Sparsifier":
        return importlib.import_module("benchmark.training.sparsifier").Sparsifier
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
