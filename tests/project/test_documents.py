"""The documents: every command, name, setting, path and link in them is one that exists, and what they show is true."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import io
import json
import pkgutil
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
import yaml
from rich.console import Console

import benchmark.cli.targets as makefile
from benchmark import Sparsifier
from benchmark.base.console import print_result
from benchmark.cli.app import app
from benchmark.config.cells import parse_seed, parse_sparsity, plan_cells
from benchmark.config.grids import parse_grid, read_text
from benchmark.config.listing import GROUPS
from benchmark.config.pages import SETTINGS, Page, page_names
from benchmark.config.plugins import built_in_names, expand_name, find_method
from benchmark.conformance.checks import choose_checks
from benchmark.studies.plasticity import make_study
from benchmark.training.rehearsal import rehearse
from benchmark.workers.base import WHERE, Pool, find_module
from leaderboard.__main__ import make_parser
from leaderboard.web.wandb_session import MODES
from methods.core import Timeline

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "methods" / "README.md", *ROOT.glob("docs/*.md")]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = {*makefile.TARGETS, *re.findall(r"^([a-z-]+):(?!=)", MAKEFILE, re.M)}
VARIABLES = {name for target in makefile.TARGETS for name in makefile.variables(target)} | {"PYTHON"}
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(DOCUMENTS)}
# Names that stand for what a reader writes there.
STAND_INS = re.compile(r"…|\bmy_|\b(RUN|NAME|FOLDER|FILE|CLASS|SECONDS)\b|^path/|^file$|^folder$|^name$")
ENVIRONMENT = {"SPARSE_BENCH_CACHE", "SPARSE_BENCH_GRAPHS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"}
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def split(text: str) -> tuple[list[str], list[str]]:
    """Return the lines in fenced blocks that are no data, continued ones joined, and the inline code of a document."""
    lines = []
    for language, block in re.findall(r"^```([a-z]*)\n(.*?)^```", text, re.S | re.M):
        lines += re.sub(r"\\\n *", "", block).splitlines() if not language else []
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return lines, [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def find_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every command in a document, fenced or inline."""
    lines, codes = split(text)
    for line in [*lines, *codes]:
        if re.match(r"(make|sparse-bench|torchrun|\S*python)( |$)", line):
            yield shlex.split(line, comments=True)


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name and not STAND_INS.search(name)]


def check_settings(words: str, methods: str = "", sparsity: str = "0.9", task: str = "", seed: str = "0") -> None:
    """Plan what is asked, as `make bench` would: every setting and value is one that a run can have."""
    if not STAND_INS.search(words):
        chosen = ",".join(names(methods or "granet")) or "granet"
        page = [name for name in names(task) if name != "auto"] or ["digits_resnet20"]
        plan_cells(chosen, sparsity.partition(",")[0], page[0], seed.partition(",")[0], words)


def check_engine(name: str, arguments: str) -> None:
    assert name in WHERE
    Pool(name, arguments=arguments).settings()


KNOWN: dict[str, Callable[[str], object]] = {
    "METHOD": lambda name: [find_method(one) for one in expand_name(name)],
    "ONLY": lambda name: choose_checks([name]),
    "TASK": lambda name: name == "auto" or page_names().index(name),
    "SPARSITY": parse_sparsity,
    "SEED": parse_seed,
    "GRID": lambda name: parse_grid(read_text(ROOT / name), ROOT / name),
    "RUN": lambda name: (ROOT / "leaderboard" / "records" / f"{name}.json").read_text(),
    "A": lambda name: find_method(name.partition(":")[0]),
    "B": lambda name: find_method(name.partition(":")[0]),
    "WANDB": MODES.index,
    "PRECISION": ("fp32", "bf16", "fastest").index,
    "DEVICE": ("auto", "cpu", "cuda").index,
    "JOBS": lambda number: number == "auto" or int(number),
    **{name: int for name in ("PER_GPU", "GPUS", "RANKS", "N", "RETRIES", "MORE", "PLAN", "KEEP", "QUICK", "FRESH")},
}


def check_make(words: list[str]) -> None:
    """Hold the words after `make` to the Makefile and what its commands take."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    targets = [word for word in words if "=" not in word]
    assert set(targets) <= TARGETS
    for name, value in given.items():
        for part in names(value) if name in KNOWN else ():
            KNOWN[name](part)
    if {"bench", "sweep"} & set(targets) and "GRID" not in given:
        asked = [given.get(name, usual) for name, usual in (("METHOD", ""), ("SPARSITY", "0.9"), ("TASK", ""))]
        check_settings(given.get("ARGS", ""), *asked, given.get("SEED", "0"))
    if "WORKERS" in given or "WORKERS_ARGS" in given:
        check_engine(given.get("WORKERS", "local"), given.get("WORKERS_ARGS", ""))
    if "plasticity" in targets:
        asked = {name.lower(): given.get(name, usual) for name, usual in STUDY.items()}
        make_study(**asked, seeds=given.get("SEED", "0"), more=None, arguments=given.get("ARGS", ""))
    said = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)  # refuses, runs nothing
    assert said.returncode == 0, said.stderr


STUDY = {"TASK": "", "SCALE": "auto", "EPOCHS": "", "SCOPE": "global", "PATTERN": "none"}


def check_command(words: list[str]) -> None:
    """Parse the words after `sparse-bench`; its name alone is a mention."""
    if words[1:]:
        found = COMMANDS[words[0]].make_context(words[0], words[1:]).params
        if words[0] == "run" and "…" not in found["method"]:
            check_settings(found["args"] or "", found["method"], found["sparsity"], found["task"], found["seed"])
    assert not words or words[0] in COMMANDS


def check_module(words: list[str]) -> None:
    """Hold `python -m MODULE …` to what that module takes."""
    module, rest = words[words.index("-m") + 1], [word for word in words[words.index("-m") + 2 :] if word != "…"]
    if module == "benchmark":
        check_command(rest)
    elif module == "leaderboard":
        make_parser().parse_args(rest)
    elif module == "pip":
        (extra,) = re.findall(r"\[([a-z]+)\]", " ".join(rest))
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.M)
    else:
        text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert all(f'"{word}"' in text for word in rest if word.startswith("--"))


def check(words: list[str]) -> None:
    if words[0] == "make":
        check_make(words[1:])
    elif words[0] == "sparse-bench":
        check_command(words[1:])
    else:
        check_module(words)


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_in_the_documents_is_one_that_exists(name):
    for words in find_commands(TEXTS[name]):
        try:
            check(words)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{name}: {shlex.join(words)}: {type(error).__name__}: {error}")


def test_every_command_in_the_grids_exists_and_the_readme_has_every_page():
    for path in ROOT.glob("configs/*/*.yaml"):
        text = re.sub(r"\\\n *", "", re.sub(r"^# ?", "", path.read_text(), flags=re.M))
        for line in re.findall(r"^ +(make .*)", text, re.M):
            check(shlex.split(line))
    assert [name for name in committed_in("configs") if name in page_names() and f"`{name}`" not in README] == []
    grids = [f"`{name}.yaml`" for name in committed_in("configs/grids")]
    assert [name for name in grids if name not in TEXTS["docs/many_runs.md"]] == []


def committed_in(folder: str) -> set[str]:
    """Return the names of what is committed in a folder; a reader may have own methods and pages there."""
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True)
    return {Path(name).stem for name in listed.stdout.splitlines()}


def test_the_readme_has_every_method_in_its_group():
    groups = {name: re.findall(r"`(\w+)`", methods) for name, methods in rows("README.md", "Methods")}
    assert list(groups) == [group.value for group in GROUPS]
    ours = {n: find_method(n).cls.group.value for n in built_in_names() if n in committed_in("methods")}
    assert [name for name, group in ours.items() if name not in groups[group]] == []


@pytest.mark.parametrize(
    "command",
    [
        "make bench METHODS=granet",
        "make bench METHOD=grannet",
        "make bench METHOD=rigl ARGS=start_sparsity=0",
        "make sweep GRID=configs/grids/none.yaml",
        "make table2 WORKERS=slurm WORKERS_ARGS=queue=gpu",
        "make plasticity SCOPE=filters",
        "sparse-bench run --methods granet",
        "sparse-bench export --to FOLDER",
        "python -m tests.harness.faults --one 17",
        "python -m pip install -e '.[cluster]'",
    ],
)
def test_a_wrong_command_is_noticed(command):
    with pytest.raises((Exception, SystemExit)):  # what refuses it, and how, is tested where it is
        check(shlex.split(command))


@pytest.mark.parametrize("name", TEXTS)
def test_settings_and_variables_in_the_documents_exist(name):
    """`ARGS=pattern=filters`, `RANKS=4`, `resized=256`, `--args`: also where no command is written around them."""
    settings = SETTINGS | {"sparsity"}.union(*(find_method(method).settings() for method in built_in_names()))
    settings |= {key for engine in WHERE for key in find_module(engine).SETTINGS} | {"name", "key"}
    settings |= set(inspect.signature(Sparsifier).parameters) if name == "docs/library.md" else set()
    options = {option for command in COMMANDS.values() for known in command.params for option in known.opts}
    for code in split(TEXTS[name])[1]:
        variable, setting = re.match(r"([A-Z_]+)=", code), re.match(r"([a-z_]+)(\.[a-z_]+)?=(?!=)", code)
        assert not variable or variable[1] in VARIABLES | ENVIRONMENT, code
        assert not setting or setting[1] in settings, code
        assert not code.startswith("--") or code.split()[0] in options, code
        if variable and variable[1] == "ARGS":
            for word in shlex.split(shlex.split(code)[0].removeprefix("ARGS=")):
                assert word.partition("=")[0].partition(".")[0] in settings, code


@pytest.mark.parametrize("name", sorted(TEXTS.keys() - {"docs/flops.md"}))  # which names files of the authors
def test_every_file_and_module_named_in_the_documents_exists(name):
    files = [f"/{path.relative_to(ROOT)}" for room in ROOTS for path in (ROOT / room).rglob("*")]
    for code in split(TEXTS[name])[1]:
        if PATH.fullmatch(code) and not STAND_INS.search(code):
            assert code in MADE or (ROOT / code).exists() or any(f.endswith(f"/{code}") for f in files), code
        if dotted := re.match(r"((?:benchmark|leaderboard|methods|tests)(?:\.\w+)+)(?!\.?\w*\.py)", code):
            assert pkgutil.resolve_name(dotted[1]) or importlib.import_module(dotted[1])


ROOTS = ("methods", "benchmark", "leaderboard", "configs", "tests", "docs")
PATH = re.compile(rf"[\w./-]+\.(py|yaml|md)|({'|'.join(ROOTS)})/[\w./-]*")
MADE = ("leaderboard/latency/",)  # by a command, on first use


def slug(heading: str) -> str:
    """Return the anchor that a heading has in rendered Markdown."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize(
    "path", sorted([*DOCUMENTS, ROOT / "CHANGELOG.md"]), ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_link_in_the_documents_leads_somewhere(path):
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", path.read_text()):
        found = path.parent / target if target else path
        assert found.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.*)", found.read_text(), re.M)), f"{target}#{anchor}"


def rows(document: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading, without its head."""
    part = TEXTS[document].split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = re.search(r"(?:^\|.*\n)+", part, re.M)
    assert lines
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()[2:]]


EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXTS["methods/README.md"], re.S | re.M)
METHOD = EXAMPLES[0]  # a whole file; every other example is what differs from its class


@pytest.mark.parametrize("differing", ["", *EXAMPLES[1:]], ids=lambda text: text.partition("\n")[0])
def test_every_example_is_a_method_that_keeps_its_contract_in_rehearsal(differing, tmp_path):
    modules = ("from collections.abc import Mapping", "import torch", "from torch import Tensor")
    head = "\n".join(("from __future__ import annotations", *modules, ""))
    example = "@dataclass(frozen=True, kw_only=True)\nclass Example(Exchange):\n    pass\n"
    (tmp_path / "example.py").write_text(f"{head}{METHOD}\n\n{example}{textwrap.indent(differing, '    ')}")
    spec = importlib.util.spec_from_file_location("sparse_bench_example", tmp_path / "example.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["sparse_bench_example"] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    method = module.Example(sparsity=0.9, update_every=20)
    rounds = method.rounds(20)
    ends = [200 + 10 * more * (20 - rounds.back_to) for more in range(rounds.count)]
    rehearse(method, "example", Timeline(ends[-1], 10, tuple(ends)))


def test_the_settings_of_a_page_are_documented_with_their_defaults():
    fields = {field.name: field for field in dataclasses.fields(Page)}
    told: list[str] = []
    for first, second, _ in rows("docs/settings.md", "Settings of a page"):
        known, values = re.findall(r"`([^`]+)`", first), re.findall(r"`([^`]*)`", second)
        told += known
        defaults = [fields[name].default for name in known]
        made = [fields[name].default_factory for name in known]
        defaults = [f() if f is not dataclasses.MISSING else d for d, f in zip(defaults, made, strict=True)]
        assert [yaml.safe_load(value) for value in values] == [
            d for d in defaults if d not in (dataclasses.MISSING, "")
        ]
    assert sorted(told) == sorted(fields)


def test_the_settings_of_the_methods_are_documented_with_their_defaults():
    told: dict[str, dict[str, str | None]] = {}
    for first, second in rows("docs/settings.md", "Settings of the methods"):
        pairs = [code.partition("=") for code in re.findall(r"`([^`]+)`", second)]
        told |= {
            name: {key: value if sign else None for key, sign, value in pairs} for name in re.findall(r"`(\w+)`", first)
        }
    for name in built_in_names():
        shown = {}
        for field in dataclasses.fields(find_method(name).cls):
            default = "" if field.default is dataclasses.MISSING else str(field.default)
            default = default.lower() if isinstance(field.default, bool) else default
            shown[field.name] = None if field.metadata.get("from_page") else default
        assert told[name] == {key: value for key, value in shown.items() if key != "sparsity"}, name


def test_the_variables_of_make_are_documented():
    told = [name for row in rows("docs/settings.md", "Variables of make") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(told) == sorted(VARIABLES)


def test_the_first_screen_of_the_readme_has_the_two_commands_and_ci_runs_them():
    screen = [line.split("#")[0].strip() for line in README.splitlines()[:60]]
    assert {"make bench METHOD=granet SPARSITY=0.9", "make test"} <= set(screen)
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert script.index("make test") < script.index("make bench METHOD=granet SPARSITY=0.9")


def test_what_the_readme_shows_is_what_the_record_prints():
    """The sample output is the table of a committed record, with the time and the memory of a repeat."""
    name = re.search(r"record +│ leaderboard/records/(\S+)", README)
    assert name, "README shows no record"
    record = json.loads((ROOT / "leaderboard" / "records" / name[1]).read_text())
    clock = re.search(r"│ ([\d.]+) s \(([\d,]+) images.*\n.*│ ([\d.]+) s in .*\n.*│ process ([\d.]+) MiB ", README)
    assert clock, "README shows no time, mask updates and peak memory"
    total, speed, updates, peak = (float(number.replace(",", "")) for number in clock.groups())
    record["time"] |= {"total_s": total, "images_per_s": speed, "updates_s": updates}
    record["usage"] = {"process_peak_bytes": peak * 2**20}
    out = io.StringIO()
    places = f"leaderboard/records/{name[1]}", "leaderboard/LEADERBOARD.md"
    print_result(Console(file=out, width=120), record, *places)
    shown = "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())
    assert shown in README, f"README should show:\n{shown}"


def test_the_documents_that_everybody_reads_are_short():
    assert README.count("\n") <= 150
    assert TEXTS["CONTRIBUTING.md"].count("\n") <= 90


def test_the_changelog_has_versions_with_dates_the_unreleased_one_first():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.*)", text, re.M)
    assert versions[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)", version) for version in versions[1:])
    assert set(re.findall(r"^### (.*)", text, re.M)) <= {"Added", "Changed", "Fixed", "Removed"}
