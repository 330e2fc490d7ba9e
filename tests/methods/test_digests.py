"""A method's code has one digest under every version of Python, and the name that records gave it."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import tokenize
from io import StringIO
from pathlib import Path

import pytest

from benchmark import ROOT
from benchmark.config.digests import RECORDED, digest_source
from benchmark.config.plugins import METHODS, built_in_names, digest

SAMPLE = '''\
"""Everything that versions of Python write or read differently, and what a digest must not miss."""

from __future__ import annotations

import math as m, os.path
from typing import Any


@wraps(print, sep="")
@plain
class Sample(Base, Generic[int, str], metaclass=type):
    """Documented."""

    field: dict[str, tuple[int, ...]] = {**first, "key": 1e-4, 2: 0x1F, None: -1j}
    (bare): int

    def method(self, a, /, b=None, *args: Any, c, d=False, **kwargs) -> tuple[int, str]:
        """Documented."""
        x, *y = a[1:2, ..., ::3], a[(1, 2)]
        assert (z := lambda p, *q, r=0, **s: (p, q)) is not None, f"{z!r:>{x}.3f} and" f" {y=}{{}}" "\\u00e9\U0001fae8"
        yield f"{x:{y}}" + f"" + f"{x:}" + rb"\\d".decode() + """line
line"""
        return *y, x if not a < b <= c else [i async for i in d if i if j], {k: v for k, v in y}


async def coroutine():
    async with one() as (a, b), two():
        await a
    for i, (j, *k) in *a, b:
        del i.j, k[0]
    else:
        raise ValueError("no") from None
    while True:
        try:
            global g
            g @= ~a ** -b // (yield)
        except (KeyError, OSError) as error:
            continue
        finally:
            pass


match value:
    case None | True | -1 | "text" | Sample.field:
        pass
    case [0, *_] | (1, *rest) if rest:
        pass
    case {"a": 1, **others} | Point(x=0, y=str() as name):
        pass
    case _:
        pass
'''
GOLDEN = "d9e51bf8b1766878a2488452e709143728ff37a16427aa00ebdf84afdeef67fd"
ASKED = """
import json, runpy, sys
digest = runpy.run_path(sys.argv[1])["digest_source"]
print(json.dumps([digest(text.encode(), "sample") for text in json.load(sys.stdin)]))
"""


def digest_text(text: str) -> str:
    return digest_source(text.encode(), "sample")


def test_a_digest_is_the_same_under_every_version_of_python():
    assert digest_text(SAMPLE) == GOLDEN


def test_another_interpreter_gives_the_same_digests():
    sources = [SAMPLE, *(path.read_text() for path in sorted((ROOT / "benchmark/config").glob("*.py")))]
    own, others = [digest_text(text) for text in sources], find_interpreters()
    for python in others:
        command = [python, "-c", ASKED, str(ROOT / "benchmark/config/digests.py")]
        given = subprocess.run(command, input=json.dumps(sources), capture_output=True, text=True, check=True)
        assert json.loads(given.stdout) == own, python
    if not others:
        pytest.skip("no other Python from 3.10 to 3.14 runs here")


def find_interpreters() -> list[str]:
    """Return one interpreter of each other version that is on the PATH, or beside the one that runs this."""
    found = {}
    for minor in {*range(10, 15)} - {sys.version_info.minor}:
        name = f"python3.{minor}"
        for python in [shutil.which(name), *map(str, Path(sys.base_prefix).parent.glob(f"*/bin/{name}"))]:
            if python and not subprocess.run([python, "-c", ""], capture_output=True).returncode:
                found[name] = python
    return list(found.values())


def test_comments_docstrings_and_layout_leave_a_digest_as_it_is():
    lines = [line for line in SAMPLE.splitlines() if "Documented" not in line and line != SAMPLE.splitlines()[0]]
    looser = "\n".join(lines).replace(":\n", ":  # why\n\n").replace(", ", " ,  ").replace("    ", "   ")
    assert looser != SAMPLE and digest_text(looser) == digest_text(SAMPLE)


def test_every_changed_token_changes_a_digest():
    """Each token of the sample is left out, and names, numbers and texts are replaced, wherever Python allows it."""
    lines, whole, changed = SAMPLE.splitlines(keepends=True), digest_text(SAMPLE), []
    for kind, text, (row, first), (end, last), _ in tokenize.generate_tokens(StringIO(SAMPLE).readline):
        if not text.strip() or (text.startswith('"""') and text.endswith('."""')):
            continue
        another = {"NAME": f"{text}_", "NUMBER": "7", "STRING": f'{text} {"b" * ("b" in text[:2])}"more"'}
        for new in ("", another.get(tokenize.tok_name[kind], "")):
            head, tail = (
                "".join(lines[: row - 1]) + lines[row - 1][:first],
                lines[end - 1][last:] + "".join(lines[end:]),
            )
            with contextlib.suppress(SyntaxError):
                changed.append((row, text, new, digest_text(f"{head} {new} {tail}")))
    assert len(changed) > 200 and [change for change in changed if change[-1] == whole] == []


def test_files_that_records_name_keep_that_name():
    """The hashes as they were made before, under Python 3.11; a file that was edited since has a digest of its own."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the recorded hashes are of the text that Python 3.11 writes")
    kept = [METHODS / f"{name}.py" for name in built_in_names()]
    kept = [path for path in kept if digest_text(path.read_text()) in RECORDED]
    assert {path.stem: digest(path) for path in kept} == {path.stem: hash_as_text(path.read_text()) for path in kept}


def hash_as_text(source: str) -> str:
    """Return the hash that the first records name their method's code by."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def test_committed_records_name_methods_by_recorded_hashes():
    files = [path for folder in ("records", "branches") for path in (ROOT / "leaderboard" / folder).glob("*.json")]
    methods = [json.loads(path.read_text())["method"] for path in files]
    digests = {path.stem: digest_text(path.read_text()) for path in (METHODS / f"{n}.py" for n in built_in_names())}
    never_run = digests.keys() - {method["name"] for method in methods}
    unnamed = set(RECORDED.values()) - {method["sha256"] for method in methods}
    assert unnamed == {RECORDED[digests[name]] for name in never_run} and len(unnamed) < 6
