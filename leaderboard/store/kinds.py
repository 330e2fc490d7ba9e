"""Kinds of values in a record: a rule in words and a test each, and checks of nested rules."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from operator import itemgetter
from typing import Any

DEEPEST = 20  # levels of lists and objects in a part whose content is free
LARGEST = 10**30  # of a whole number; training an ImageNet network takes 1e18 to 1e20 multiply-adds
INFINITY = math.inf

Test = Callable[[Any], bool]


@dataclass(frozen=True)
class Kind:
    """A kind of value: its rule in words, a test, and a quick test of many values.

    The quick test may reject valid values, which are then tested one by one. It never accepts an invalid one, except
    for NaN, which is no JSON and was refused before.
    """

    rule: str
    accepts: Test
    quick: Callable[[Sequence[Any]], bool] | None = None

    def accepts_all(self, values: Sequence[Any]) -> bool:
        """Return whether all `values` keep the rule."""
        return not values or (self.quick is not None and self.quick(values)) or all(map(self.accepts, values))


def is_whole(value: Any) -> bool:
    """Return whether `value` is a whole number from 0 to LARGEST; True and False are not numbers."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def is_number(value: Any) -> bool:
    """Return whether `value` is a number within ± LARGEST; True and False are not numbers."""
    if isinstance(value, float):
        return abs(value) <= LARGEST  # not so for NaN and infinities, nor for what would overflow a mean
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def parse_time(text: str) -> datetime:
    """Return the time in an ISO-8601 text. Raises ValueError if it is none or not in UTC."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 does not read the Z
    if moment.utcoffset() != timedelta(0):
        raise ValueError(f"'{text}' is not in UTC")
    return moment


def is_time(value: Any) -> bool:
    """Return whether `value` is an ISO-8601 text in UTC."""
    try:
        return isinstance(value, str) and bool(parse_time(value))
    except ValueError:
        return False


def is_text(value: Any) -> bool:
    """Return whether `value` is a text that is not blank."""
    return isinstance(value, str) and value.strip() != ""


def is_shallow(value: Any) -> bool:
    """Return whether lists and objects are nested in each other at most DEEPEST deep: what writes them recurses."""
    level = [value]
    for _ in range(DEEPEST):
        inner = [
            entry.values() if isinstance(entry, dict) else entry for entry in level if isinstance(entry, dict | list)
        ]
        level = list(chain.from_iterable(inner))
    return not any(isinstance(entry, dict | list) for entry in level)


def numbers(rule: str, low: float, high: float = INFINITY, whole: bool = False) -> Kind:
    """Return the kind whose values are the numbers, or whole numbers, from `low` to `high`."""
    types = {int} if whole else {int, float}
    accepts = is_whole if whole else is_number

    least, most = max(low, -LARGEST), min(high, LARGEST)
    return Kind(
        rule,
        lambda value: accepts(value) and low <= value <= high,
        lambda values: types.issuperset(map(type, values)) and least <= min(values) and max(values) <= most,
    )


def one_of(*choices: str) -> Kind:
    """Return the kind whose values are `choices`."""
    return Kind(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def or_null(kind: Kind) -> Kind:
    """Return the kind that takes null as well."""
    return Kind(
        f"{kind.rule}, or null",
        lambda value: value is None or kind.accepts(value),
        lambda values: kind.accepts_all([value for value in values if value is not None]),
    )


def list_of(kind: Kind) -> Kind:
    """Return the kind whose values are lists of `kind`."""
    return Kind(
        f"a list, each entry {kind.rule}",
        lambda value: isinstance(value, list) and kind.accepts_all(value),
        lambda values: {list}.issuperset(map(type, values)) and kind.accepts_all(list(chain.from_iterable(values))),
    )


def map_of(kind: Kind) -> Kind:
    """Return the kind whose values are objects of `kind`."""
    return Kind(
        f"an object, each value {kind.rule}",
        lambda value: isinstance(value, dict) and kind.accepts_all(list(value.values())),
    )


TEXT = Kind(
    "a text that is not empty",
    is_text,
    lambda values: {str}.issuperset(map(type, values)) and all(map(str.strip, values)),
)
NAME = Kind(
    "a name: a text that is not empty, without < and >", lambda value: is_text(value) and not set("<>") & set(value)
)
DIGEST = Kind(
    "64 hex digits", lambda value: isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
)
BOOL = Kind("true or false", lambda value: isinstance(value, bool), lambda values: {bool}.issuperset(map(type, values)))
WHOLE = numbers("a whole number of at least 0", 0, whole=True)
ABOVE_0 = numbers("a whole number of at least 1", 1, whole=True)
NUMBER = numbers("a finite number", -INFINITY)
AT_LEAST_0 = numbers("a finite number of at least 0", 0)
SHARE = numbers("a number in [0, 1]", 0, 1)
SPARSITY = Kind("a number in [0, 1)", lambda value: is_number(value) and 0 <= value < 1)
PERCENT = numbers("a number in [0, 100]", 0, 100)
TIME = Kind("an ISO-8601 time in UTC such as 2025-01-31T12:00:00+00:00", is_time)
OBJECT = Kind(f"an object, nested at most {DEEPEST} deep", lambda value: isinstance(value, dict) and is_shallow(value))
CLASSES = numbers("a whole number from 1 to 1,000,000", 1, 10**6, whole=True)

# Nested rules: a Kind is a value, a dict an object with these keys (more are allowed), a list of one dict a list of
# such objects. A key that ends in "?" may be absent.


def type_faults(value: Any, expected: Any, path: str) -> Iterator[str]:
    """Yield what is missing from `value` or of another type than `expected`; messages start with `path`."""
    if isinstance(expected, Kind):
        if not expected.accepts(value):
            yield f"{path} must be {expected.rule}, got {shorten(value)}"
    elif isinstance(expected, list):
        if not isinstance(value, list):
            yield f"{path} must be a list, got {shorten(value)}"
            return
        for index, entry in enumerate(value):
            yield from type_faults(entry, expected[0], f"{path}[{index}]")
    elif not isinstance(value, dict):
        yield f"{path or 'a record'} must be an object, got {shorten(value)}"
    else:
        for key, kind in expected.items():
            name = key.rstrip("?")
            inner = f"{path}.{name}" if path else name
            if name in value:
                yield from type_faults(value[name], kind, inner)
            elif name == key:
                yield f"{inner} is missing"


def shorten(value: Any) -> str:
    """Return `value` as JSON, cut to 60 characters."""
    try:
        text = json.dumps(value, default=repr)
    except RecursionError:
        text = f"{type(value).__name__} nested too deep to be shown"
    return text if len(text) <= 60 else text[:59] + "…"


def make_test(expected: Any) -> Test:
    """Return a quick test of a value. Invariant: it accepts plain JSON if and only if `type_faults` yields nothing."""
    if isinstance(expected, Kind):
        return expected.accepts
    if isinstance(expected, list):
        return make_rows_test(expected[0])
    fields = [(key.rstrip("?"), key.endswith("?"), make_test(inner)) for key, inner in expected.items()]

    def keeps(value: Any) -> bool:
        return isinstance(value, dict) and all(
            inner(value[name]) if name in value else optional for name, optional, inner in fields
        )

    return keeps


def make_rows_test(expected: dict[str, Kind]) -> Test:
    """Return the quick test of a list of objects: each key's values are tested together, as a history is long."""
    required = {key: kind for key, kind in expected.items() if not key.endswith("?")}
    optional = {key.rstrip("?"): kind for key, kind in expected.items() if key.endswith("?")}
    take = itemgetter(*required)

    def keeps(rows: Any) -> bool:
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            return False
        try:
            columns = list(zip(*map(take, rows), strict=True))
        except KeyError:
            return False
        return all(map(Kind.accepts_all, required.values(), columns)) and all(
            kind.accepts_all([row[key] for row in rows if key in row]) for key, kind in optional.items()
        )

    return keeps
