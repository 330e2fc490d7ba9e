"""The list of checks, and running them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmark.base.errors import UserError, describe_failure, unknown
from benchmark.conformance.trial import Kit

NOT_REACHED = "not reached"


@dataclass(frozen=True)
class Outcome:
    """What a check saw; `ok` is None where the method has nothing the check is about."""

    ok: bool | None
    seen: str


@dataclass(frozen=True)
class Check:
    """A promise, under a name: what is expected, and how to fix a method that breaks it."""

    name: str
    expected: str
    mend: str
    look: Callable[[Kit], Outcome]


@dataclass(frozen=True)
class Result:
    """The verdict of one check on one method: pass, FAIL, not reached (a trial broke off), or n/a."""

    check: Check
    verdict: str
    seen: str

    @property
    def bad(self) -> bool:
        """Whether the method did not show that it keeps the promise."""
        return self.verdict in ("FAIL", NOT_REACHED)


CHECKS: dict[str, Check] = {}


def check(name: str, mend: str) -> Callable[[Callable[[Kit], Outcome]], Callable[[Kit], Outcome]]:
    """Register a function as the check `name`; its docstring is what is expected."""

    def register(look: Callable[[Kit], Outcome]) -> Callable[[Kit], Outcome]:
        assert name not in CHECKS, name
        expected = " ".join((look.__doc__ or "").split()).removesuffix(".")
        CHECKS[name] = Check(name, expected[:1].lower() + expected[1:], mend, look)
        return look

    return register


def run_check(kit: Kit, name: str) -> Result:
    """Return the verdict of the check `name`. A check whose trial broke off cannot pass."""
    chosen = CHECKS[name]
    kit.used = []
    try:
        outcome = chosen.look(kit)
    except UserError as error:
        return Result(chosen, "FAIL", str(error))
    except (Exception, SystemExit) as error:  # a plugin may raise anything at all
        broken = next((trial.error for trial in kit.used if trial.error), "")
        return Result(chosen, NOT_REACHED if broken else "FAIL", broken or describe_failure(error, kit.plugin.cls))
    if outcome.ok is False:
        return Result(chosen, "FAIL", outcome.seen)
    broken = next((trial.error for trial in kit.used if trial.error), "")
    if broken:
        return Result(chosen, NOT_REACHED, broken)
    return Result(chosen, "n/a" if outcome.ok is None else "pass", outcome.seen)


def choose_checks(names: Iterable[str]) -> list[str]:
    """Return the named checks, or all, in their order; raises UserError for an unknown one, with the nearest."""
    wanted = list(names)
    for name in wanted:
        if name not in CHECKS:
            raise UserError(unknown("check", name, CHECKS))
    return [name for name in CHECKS if not wanted or name in wanted]


def run_checks(kit: Kit, names: Iterable[str] = ()) -> list[Result]:
    """Return the verdicts of the named checks, or of all, in their order."""
    return [run_check(kit, name) for name in choose_checks(names)]
