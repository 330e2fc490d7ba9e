"""What a method's code is known by: a hash of its syntax tree, the same under every version of Python from 3.10 on."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OMITTED = {"ctx", "kind", "type_comment", "type_ignores"}  # change nothing that a program does
LITERALS = (ast.Constant, ast.MatchSingleton)  # whose value may be None, False or 0
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

# The hash that records name, by digest. The first records were named by the text of `ast.unparse` under Python 3.11,
# which other versions write differently. A file that has been edited since has no line here and needs none.
RECORDED: dict[str, str] = json.loads(Path(__file__).with_name("digests.json").read_text(encoding="utf-8"))


def identify(source: bytes, file: str) -> str:
    """Return the SHA-256 that records name this code by. Raises SyntaxError or ValueError for what does not parse."""
    digest = digest_source(source, file)
    return RECORDED.get(digest, digest)


def digest_source(source: bytes, file: str) -> str:
    """Return the SHA-256 of Python code without comments, docstrings and layout; `file` is named by errors."""
    return hashlib.sha256(write(ast.parse(source, filename=file)).encode()).hexdigest()


def write(value: Any) -> str:
    """Return a syntax tree, or part of one, as text that depends on nothing but the code.

    Fields that are empty are left out, so one that a later version of Python adds changes nothing.
    """
    if isinstance(value, list):
        return f"[{','.join(map(write, value))}]"
    if not isinstance(value, ast.AST):
        return f"{type(value).__name__} {value!a}"  # which letters repr() escapes differs between versions
    fields = (f"{name}={write(field)}" for name, field in list_fields(value))
    return f"{type(value).__name__}({','.join(fields)})"


def list_fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a node that count, by name: no docstring, and the text of an f-string in whole pieces."""
    for name, field in ast.iter_fields(node):
        if name == "body" and isinstance(node, DOCUMENTED):
            field = field[ast.get_docstring(node, clean=False) is not None :] or [ast.Pass()]
        if name == "values" and isinstance(node, ast.JoinedStr):
            field = join_text(field)
        if name not in OMITTED and (field or isinstance(node, LITERALS)):
            yield name, field


def join_text(parts: list[ast.expr]) -> list[ast.expr]:
    """Return the parts of an f-string with neighbouring texts as one and without empty ones."""
    joined: list[ast.expr] = []
    for part in parts:
        before = joined[-1] if joined else None
        if isinstance(part, ast.Constant) and isinstance(before, ast.Constant):
            joined[-1] = ast.Constant(str(before.value) + str(part.value))
        elif not isinstance(part, ast.Constant) or part.value:
            joined.append(part)
    return joined
