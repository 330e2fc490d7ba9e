"""Settings in YAML files and on the command line, converted by the type of each.

YAML guesses types from the text: 010 becomes 8, 2024_01 a number, on a truth value. Here text stays text until the
type of its setting is known. Free-form values, as in model_args, are read as plain scalars; quotes force text.
"""

from __future__ import annotations

import re
import shlex
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

import yaml

from benchmark.base.errors import UserError, reason

WHOLE = re.compile(r"[+-]?(0|[1-9]\d*)", re.A)
DECIMAL = re.compile(r"[+-]?(0|[1-9]\d*)?(\.\d*)?([eE][+-]?\d+)?|[+-]?\.?(nan|inf)", re.A | re.I)
TRUTHS = {**dict.fromkeys(("true", "yes", "on"), True), **dict.fromkeys(("false", "no", "off"), False)}
NOTHING = ("", "~", "null")
LARGEST = 10**15  # of whole numbers that are written as 1e3
QUOTED = re.compile(r"""("|').*\1""", re.S)


class Written(str):
    """A value written without quotes, not yet typed."""

    __slots__ = ()


class Loader(yaml.SafeLoader):
    """Reads YAML and leaves every plain scalar as written."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("^<<$"))]}  # noqa: RUF012 (as in yaml)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a map; raises ConstructorError for a duplicate key."""
        seen = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((key for key in seen if seen.count(key) > 1), None) if len(seen) < 1000 else None
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"found duplicate key {twice}", node.start_mark)
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}

    def construct_text(self, node: Any) -> str:
        """Return a scalar: `Written` if it is plain, text if it is quoted."""
        return Written(node.value) if node.style is None else str(node.value)


Loader.add_constructor("tag:yaml.org,2002:str", Loader.construct_text)


def load_yaml(text: str, source: str) -> Any:
    """Return the content of a YAML text, plain scalars as `Written`; raises UserError that names `source`."""
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        why, mark = getattr(error, "problem", None) or reason(error), getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise UserError(f"{source}: not readable as YAML: {why}{where}") from error


def merge_maps(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return `old` with the values of `new`; a map in both is merged likewise, so what `new` leaves out stays."""
    merged = dict(old)
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(old.get(key), dict)
        merged[key] = merge_maps(old[key], value) if both else value
    return merged


def resolve(value: Any) -> Any:
    """Return a free-form value as plain Python: true, false, null, decimal numbers, lists, maps, else text."""
    if isinstance(value, list):
        return [resolve(part) for part in value]
    if isinstance(value, dict):
        return {str(key): resolve(part) for key, part in value.items()}
    if not isinstance(value, Written):
        return value
    if value[:1] in ("[", "{"):
        return resolve(load_yaml(value, f"'{value[:40]}'"))
    if value.lower() in NOTHING:
        return None
    if value.lower() in TRUTHS:
        return TRUTHS[value.lower()]
    if WHOLE.fullmatch(value):
        return int(value) if len(value) < 30 else float(value)
    return float(value) if is_decimal(value) else str(value)


def is_decimal(text: str) -> bool:
    """Return whether a text is a decimal number, without leading zeros or digit separators."""
    return bool(DECIMAL.fullmatch(text) and re.search(r"\d|nan|inf", text, re.I)) and not re.match(r"[+-]?[eE]", text)


def read_value(kind: Any, value: Any) -> Any:
    """Return a value converted to the type of its setting; what is not text is type-checked later.

    Raises ValueError with the rule and the likely meaning.
    """
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [one for one in get_args(kind) if one is not type(None)]
        if isinstance(value, Written) and value.lower() in NOTHING and len(kinds) < len(get_args(kind)):
            return None
        return read_value(kinds[0], value) if len(kinds) == 1 else resolve(value)
    if kind is list or get_origin(kind) is list:
        if isinstance(value, str):  # [0.5, 0.75], or without brackets
            parts = load_yaml(value, f"is '{value}'") if value.startswith("[") else value.split(",") if value else []
            value = [Written(part.strip()) if isinstance(part, str) else part for part in parts]
        inner = get_args(kind) or (Any,)
        return [read_value(inner[0], part) for part in value] if isinstance(value, list) else value
    if isinstance(value, str) and kind in READERS:
        return READERS[kind](str(value))
    if isinstance(value, dict) and kind in READERS:
        raise ValueError(f"is a single value and has no parts to set, got {value}")
    if isinstance(value, float) and kind is float:
        return value + 0.0  # no -0
    if get_origin(kind) is not dict:
        return resolve(value)
    value = {} if isinstance(value, Written) and value == "" else resolve(value)
    if not isinstance(value, dict):
        raise ValueError(f"must be a map, such as {{name: value}}, got {value!r}")
    return value


def read_bool(text: str) -> bool:
    """Return true or false."""
    known = {**TRUTHS, "1": True, "0": False, "y": True, "n": False}
    if text.lower() not in known:
        raise ValueError(f"must be true or false, got '{text}'")
    return known[text.lower()]


def read_int(text: str) -> int:
    """Return a whole number; 1e3 is one, 010 and 1_000 raise ValueError with their likely meaning."""
    if WHOLE.fullmatch(text) and len(text) < 30:
        return int(text)
    if is_decimal(text) and abs(float(text)) <= LARGEST and float(text).is_integer():
        return int(float(text))
    raise ValueError(f"must be a whole number, got '{text[:80]}'{guess(text)}")


def read_float(text: str) -> float:
    """Return a number; 0,5 and 5% raise ValueError with their likely meaning."""
    if is_decimal(text):
        return float(text.replace(".nan", "nan").replace(".inf", "inf")) + 0.0
    raise ValueError(f"must be a number, got '{text[:80]}'{guess(text)}")


def guess(text: str) -> str:
    """Return `: did you mean 10?` for a number in another notation, or an empty string."""
    plain = text.strip().rstrip("%").strip().replace("_", "").replace(",", ".")
    plain = re.sub(r"^([+-]?)0+(?=\d)", r"\1", plain)
    if not is_decimal(plain) or len(plain) > 40 or plain == text:
        return ""
    number = float(plain) / (100 if text.strip().endswith("%") else 1)
    return f": did you mean {number:.15g}?"


READERS: dict[Any, Any] = {str: str, int: read_int, float: read_float, bool: read_bool}


def parse_words(text: str) -> dict[str, Any]:
    """Return the settings in `name=value name=value` as written; quotes within a value force text."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"ARGS cannot be read ({error}): write ARGS='name=value name=value'") from error
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UserError(f"ARGS must be name=value pairs of plain values, got '{word}'")
        found[name] = load_yaml(value, f"ARGS: {name}") if QUOTED.fullmatch(value) else Written(value)
    return nest(found)


def nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by name, dotted names as maps; of two with one name the later wins."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if "${" in repr(value) or "${" in name:  # would be worked out, from the environment too, and end in a record
            raise UserError(f"ARGS must be name=value pairs of plain values, got '{name}={value}'")
        *way, last = str(name).split(".")
        place = found
        for part in way:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise UserError(f"ARGS: {name} reaches into {part}, which is set to '{place}'")
        place[last] = (
            {**place[last], **value} if isinstance(place.get(last), dict) and isinstance(value, dict) else value
        )
    return found
