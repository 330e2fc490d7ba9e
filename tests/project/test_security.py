"""What comes from elsewhere is data: it runs nothing, leads nowhere, and what is secret here stays here."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import io
import json
import os
import pickle
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save

from benchmark.base.errors import UserError
from benchmark.base.files import Places, check_places, refuse_links, refuse_name, run_folder
from benchmark.base.tracking import Tracker
from benchmark.cli import shell as cli
from benchmark.config import cells as cells_module
from benchmark.config.cells import PROTOCOL, parse_arguments, parse_seed, plan_cells
from benchmark.config.pages import load_page, merge_settings
from benchmark.config.plugins import digest, find_method
from benchmark.data.cache import VARIABLE
from benchmark.data.sets import load_data
from benchmark.grids.states import holding
from benchmark.networks.build import create_network
from benchmark.runs.checkpoints import MAGIC, load_checkpoint, save_checkpoint
from benchmark.runs.donors import has_masks
from benchmark.runs.export import MASKS, WEIGHTS, export_network, read_export, read_network
from benchmark.runs.record import rebuild_network
from benchmark.runs.run import Options, run_cell
from benchmark.runs.verify import reading_alone, stay_home, verify_record
from leaderboard import RecordError, read_record, write_record
from leaderboard.store.privacy import hide_secrets, name_secret
from leaderboard.store.records import file_stem
from tests.harness.benches import read_grid
from tests.harness.images import PARTS, write_folder
from tests.harness.record_factory import make_record

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
CANARY = "canary-0123456789-secret"
QUIET = Console(file=io.StringIO())


# Code that runs what it reads

FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "dill.load",
    "joblib.load", "torch.hub.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all",
    "subprocess.getoutput", "subprocess.getstatusoutput", "runpy.run_path", "tempfile.mktemp",
}  # fmt: skip
REASONS = {
    ("tests/project/test_security.py", "pickle.loads"): "shows that the planted pickle would run code, were it loaded",
    ("tests/training/test_shard.py", "pickle.loads"): "reads what it has just written, as a data loader's process does",
}


def called(node: ast.AST) -> str:
    """Return the dotted name of what a call calls, or nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and called(node.value):
        return f"{called(node.value)}.{node.attr}"
    return ""


def find_dangers(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and name of every call that could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "shelve"):
            yield node.lineno, f"{node.module}.{node.names[0].name}"
        if not isinstance(node, ast.Call):
            continue
        name, keywords = called(node.func), {word.arg: word.value for word in node.keywords}
        if name in FORBIDDEN:
            yield node.lineno, name
        if name.endswith("torch.load") or name == "torch.load":
            safe = keywords.get("weights_only")
            if not (isinstance(safe, ast.Constant) and safe.value is True):
                yield node.lineno, "torch.load without weights_only=True"
        if name in ("np.load", "numpy.load"):
            allowed = keywords.get("allow_pickle")
            if not (isinstance(allowed, ast.Constant) and allowed.value is False):
                yield node.lineno, "np.load without allow_pickle=False"
        if name == "yaml.load":
            loader = called(node.args[1]) if len(node.args) > 1 else called(keywords.get("Loader", node))
            if loader not in ("Loader", "yaml.SafeLoader", "yaml.CSafeLoader"):
                yield node.lineno, "yaml.load without a safe loader"
        shell = keywords.get("shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            yield node.lineno, "shell=True"


def test_no_code_of_this_repository_runs_what_it_reads():
    found = {}
    for room in ("methods", "benchmark", "leaderboard", "tests"):
        for path in (ROOT / room).rglob("*.py"):
            file = path.relative_to(ROOT).as_posix()
            for line, name in find_dangers(path.read_text(encoding="utf-8")):
                found[file, name] = f"{file}:{line}: {name}"
    assert [said for key, said in found.items() if key not in REASONS] == []
    assert set(REASONS) <= set(found), "a reason is left over"
    safe = ast.parse((ROOT / "leaderboard/paper/published.py").read_text(encoding="utf-8"))
    bases = [called(cls.bases[0]) for cls in safe.body if isinstance(cls, ast.ClassDef) and cls.name == "Loader"]
    assert bases == ["yaml.SafeLoader"], "the one loader of its own is a safe one"


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')", "os.system('x')", "import pickle; pickle.load(f)", "torch.load(f)", "from pickle import loads",
        "torch.load(f, weights_only=False)", "yaml.load(f)", "yaml.load(f, yaml.Loader)", "np.load(f)",
        "subprocess.run('x', shell=True)", "subprocess.run(x, shell=flag)", "exec(text)",
    ],
)  # fmt: skip
def test_the_search_for_such_code_finds_it(source):
    assert list(find_dangers(source))
    safe = (
        "torch.load(f, weights_only=True); yaml.load(f, yaml.SafeLoader); np.load(f, allow_pickle=False); model.eval()"
    )
    assert not list(find_dangers(safe))


# Names that lead elsewhere

ELSEWHERE = [
    "../../x", "..", ".", "", "/etc/x", "a/../../x", "a/b", "x/", "..\\x", "a\0b", "a\nb", "x" * 300, "\u202ex",
    "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_run_s_name_never_leads_out_of_the_folder_of_runs(name, tmp_path):
    with pytest.raises(UserError, match="must be the name of a folder of"):
        run_folder(tmp_path, name)
    with pytest.raises(UserError, match="must be the name of a folder of"):
        read_network(name, tmp_path)
    record = make_record(run=name or "x")
    assert not has_masks(record, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", [*filter(None, ELSEWHERE), "CON", "nul", "com1.x", "LPT9", "aux.granet.0.9", "-rf", "$(x)"]
)
def test_a_record_of_any_name_is_a_plain_file_of_the_store(name, tmp_path):
    store = tmp_path / "a" / "records"
    assert file_stem(name).partition(".")[0].lower() not in ("con", "nul", "aux", "com1", "lpt9", "")
    path = write_record(make_record(run=name), store)
    assert path.parent == store and [file.name for file in store.iterdir()] == [path.name]
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["records"]
    assert set(path.name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


@pytest.mark.parametrize("name", ["a/b", "..", ".x", "a\\b", "c:d", "a\nb", "a\0b", "x" * 81, "con", "<b>"])
def test_a_page_or_method_of_a_bad_name_is_refused_before_anything_runs(name, monkeypatch):
    with pytest.raises(UserError, match=r"a name must .*: rename it"):
        refuse_name(name)
    found = find_method("static")
    monkeypatch.setattr(cells_module, "find_method", lambda asked: dataclasses.replace(found, name=name))
    with pytest.raises(UserError, match=r"a name must .*: rename it"):
        plan_cells("static", "0.9", "digits_resnet20", "0", "")


def test_a_method_file_may_lie_anywhere_and_its_name_is_a_python_name(tmp_path):
    (tmp_path / "in").mkdir()
    text = (ROOT / "methods" / "set.py").read_text()
    (tmp_path / "mine.py").write_text(text)
    asked = str(tmp_path / "in" / ".." / "mine.py")
    (cell,) = plan_cells(asked, "0.9", "digits_resnet20", "0", "")
    assert cell.identity.startswith("digits_resnet20.mine.0.9.s0.") and cell.plugin.name == "mine"
    (tmp_path / "a b;c.py").write_text(text)
    with pytest.raises(UserError, match="its name must be a Python name"):
        plan_cells(str(tmp_path / "a b;c.py"), "0.9", "digits_resnet20", "0", "")


def export_small(folder: Path) -> None:
    masks = {"w": torch.tensor([True, False])}
    export_network({"w": torch.tensor([1.0, 0.0])}, masks, folder, {"run": "r"})


def ask(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Call the command line in this process and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["sparse-bench", *words])
    with pytest.raises(SystemExit) as ended:
        cli.app(list(words))
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", ["../../stolen", "/stolen"])
def test_export_of_a_foreign_record_writes_nothing_outside(name, tmp_path, monkeypatch, capsys):
    place = tmp_path / "a" / "b"
    runs, here = place / "runs", place / "here"
    here.mkdir(parents=True)
    export_small(runs / "stolen")
    record = write_record(make_record(run=name if name != "/stolen" else f"{tmp_path}/stolen"), place / "records")
    before = sorted(path for path in tmp_path.rglob("*"))
    monkeypatch.chdir(here)
    assert ask(monkeypatch, "export", str(record), "--runs", str(runs)) == 2
    assert "must be the name of a folder" in " ".join(capsys.readouterr().err.split())
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_export_takes_a_run_by_its_name_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("..", "../..", "/", "../../etc", "etc\n"):
        assert ask(monkeypatch, "export", name, "--runs", str(tmp_path / "runs")) == 2
    assert list(tmp_path.iterdir()) == []
    export_small(tmp_path / "runs" / "etc")
    assert ask(monkeypatch, "export", "../../etc", "--runs", str(tmp_path / "runs")) == 0
    assert (tmp_path / "export" / "etc" / WEIGHTS).is_file()


def test_verify_refuses_a_record_that_names_a_run_elsewhere(tmp_path):
    settings = dataclasses.asdict(load_page("digits_resnet20"))
    export_small(tmp_path / "x")
    record = write_record(make_record(run="../x", page={"settings": settings}), tmp_path / "records")
    with pytest.raises(UserError, match="must be the name of a folder"):
        verify_record(record, tmp_path / "runs", tmp_path)


@pytest.mark.parametrize("where", ["/somewhere", "../somewhere", "a/../../b", "~/x"])
def test_data_named_by_a_record_are_not_downloaded_elsewhere(where):
    page = load_page("cifar10_vgg19", {"data_dir": where})
    assert stay_home(page).data_dir == ""
    assert stay_home(load_page("cifar10_vgg19", {"data_dir": "mine"})).data_dir == "mine"
    assert stay_home(load_page("folder_resnet20", {"data_dir": where})).data_dir == where


def test_images_that_a_record_leads_to_are_read_and_nothing_is_written_beside_them(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    write_folder(tmp_path / "theirs", PARTS)
    outside = load_page("folder_resnet20", {"data_dir": str(tmp_path / "theirs"), "image_size": 8, "crop_pad": 0})
    with reading_alone(outside):
        load_data(outside, tmp_path / "data", torch.device("cpu"))
    assert VARIABLE not in os.environ and [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize("argument", ["checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir"])
def test_no_page_and_no_record_has_timm_open_a_file_of_weights(argument, tmp_path, monkeypatch):
    page = load_page("digits_resnet20", {"model": "resnet18"})
    with pytest.raises(UserError, match=f"model_args must not name {argument}"):
        create_network(page, {argument: str(tmp_path / "evil.pth")})


def test_a_record_of_a_wide_network_is_refused_before_it_is_built():
    page = load_page("digits_resnet20")
    data = load_data(page, ROOT, CPU)
    full = create_network(page, {"num_classes": 10, "in_chans": 1})
    for width in (1e6, 0, -1, "x", None, True):
        record = make_record(method={"settings": {"width": width}})
        with pytest.raises(UserError, match=r"width .* must be in \(0, 1\]"):
            rebuild_network(record, page, data, full, {})


@pytest.mark.parametrize("kept", ["record", "checkpoint"])
def test_no_file_is_run_because_a_record_or_a_checkpoint_names_it(kept, tmp_path, monkeypatch, capsys):
    """Whoever wrote it knows the hash of the file that lies beside it."""
    file = tmp_path / "nice_method.py"
    file.write_text("open('ran', 'w')\n")
    monkeypatch.chdir(tmp_path)
    page = {"name": "digits_resnet20", "settings": dataclasses.asdict(load_page("digits_resnet20"))}
    method = {"name": "nice_method", "source": file.name, "sha256": digest(file)}
    record = make_record(run="foreign", protocol=PROTOCOL, page=page, method=method)
    name = str(write_record(record, tmp_path / "records"))
    if kept == "checkpoint":
        name = "foreign"
        about = {key: record[key] for key in ("run", "protocol", "page", "method", "sparsity", "seed")}
        save_checkpoint(tmp_path / "runs" / name / "checkpoint", {"cell": about, "history": [], "data": "f"})
        Path("records").rename("elsewhere")
    for words in (["branch", name, "--epoch", "1"], ["snapshot", name, "--epochs", "1"]):
        assert ask(monkeypatch, *words, "--runs", str(tmp_path / "runs"), "--records", str(tmp_path / "records")) == 2
        assert "is a file, nice_method.py, and none is run because a record names it" in " ".join(
            capsys.readouterr().err.split()
        )
    assert not Path("ran").exists()


# Links


def test_a_run_writes_through_no_link_that_leads_out(tmp_path):
    (cell,) = plan_cells("dense", "0", "digits_resnet20", "0", "epochs=1")
    places = Places(tmp_path / "records", tmp_path / "L.md", tmp_path / "runs")
    options = Options(device=CPU, command="t", places=places)
    data, outside = load_data(cell.page, tmp_path, CPU), tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    folder = places.runs / cell.identity
    folder.parent.mkdir()
    folder.symlink_to(outside)
    with pytest.raises(UserError, match=r"is a link to .*outside, outside .*runs"):
        run_cell(cell, data, options, QUIET)
    with pytest.raises(UserError, match="is a link to"), holding(folder):
        pass
    folder.unlink()
    folder.mkdir()
    for name in ("lock", "grid.lock", "checkpoint", "wandb", WEIGHTS):
        (folder / name).symlink_to(outside / "precious")
        with pytest.raises(UserError, match="nothing is written there"):
            run_cell(cell, data, options, QUIET)
        (folder / name).unlink()
    (folder / "circle").symlink_to(folder / "circle")
    refuse_links(folder, places.runs)  # leads nowhere
    assert (outside / "precious").read_text() == "kept" and len(list(outside.iterdir())) == 1


def test_the_store_writes_through_no_link(tmp_path):
    store, precious = tmp_path / "records", tmp_path / "precious"
    store.mkdir()
    precious.write_text("kept")
    record = make_record()
    (store / f"{file_stem(record['run'])}.json").symlink_to(precious)
    assert write_record(record, store).name.endswith(".2.json")
    assert precious.read_text() == "kept"


# Secrets


@pytest.fixture
def secret(monkeypatch):
    for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MY_PASSWORD"):
        monkeypatch.setenv(name, f"{CANARY}-{name}")


def test_nothing_that_a_run_writes_or_prints_holds_a_secret(secret, tmp_path, monkeypatch, capsys):
    """The data folder is named by one, as a careless script may do; W&B logs offline; a run fails; pages are built."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / f"{CANARY}-MY_PASSWORD"
    words = ["--records", "records", "--leaderboard", "L.md", "--runs", "runs", "--wandb", "offline"]
    common = ["--task", "digits_resnet20", "--data", str(data), *words]
    assert ask(monkeypatch, "run", "--method", "dense", "--args", "epochs=1 eval_every=1", *common) == 0
    assert ask(monkeypatch, "run", "--method", "dense", "--args", f"epochs={CANARY}-HF_TOKEN", *common) == 2
    assert ask(monkeypatch, "run", "--method", "dense", "--args", f"title={CANARY}-HF_TOKEN", *common) == 2
    (record,) = [read_record(path) for path in (tmp_path / "records").glob("*.json")]
    assert "(MY_PASSWORD)" in record["command"] and "--method dense" in record["command"]
    assert ask(monkeypatch, "export", record["run"], "--runs", "runs") == 0
    said = capsys.readouterr()
    assert CANARY not in said.out + said.err
    assert "setting 'title' holds the secret in the environment's HF_TOKEN" in " ".join(said.err.split())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8 and any(path.suffix == ".wandb" for path in files)
    assert [str(path) for path in files if CANARY.encode() in path.read_bytes()] == []


def test_an_unforeseen_failure_shows_no_secret(secret, monkeypatch, capsys):
    def fail() -> None:
        raise RuntimeError(f"broke with {CANARY}-HF_TOKEN")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert CANARY not in said and "broke with (HF_TOKEN)" in said and "please report" in said


def test_a_failing_library_of_curves_shows_no_key(secret, tmp_path):
    said: list[str] = []

    def fail() -> None:
        raise RuntimeError(f"refused {CANARY}-WANDB_API_KEY")

    Tracker("offline", tmp_path, said.append).guard(fail)
    assert said == ["W&B failed and is off for this run: RuntimeError: refused (WANDB_API_KEY)"]


def test_secrets_are_known_by_the_names_of_their_variables(monkeypatch):
    monkeypatch.setenv("GITHUB_TOKEN", "abcdefgh1")
    monkeypatch.setenv("LONG_KEY", "abcdefgh1-and-more")
    monkeypatch.setenv("SHORT_KEY", "abc")
    assert hide_secrets("x abcdefgh1 y abcdefgh1-and-more abc") == "x (GITHUB_TOKEN) y (LONG_KEY) abc"
    monkeypatch.setenv("QUOTED_TOKEN", ' ab"cd\\efé\n')
    for shown in ('ab"cd\\efé', json.dumps('ab"cd\\efé')[1:-1], json.dumps('ab"cd\\efé', ensure_ascii=False)[1:-1]):
        assert hide_secrets(f"x {shown} y") == "x (QUOTED_TOKEN) y" and name_secret(shown) == "QUOTED_TOKEN"


@pytest.mark.parametrize("value", ["${oc.env:HF_TOKEN}", "a ${oc.env:HF_TOKEN} b", "${title}"])
def test_no_page_no_record_and_no_grid_reads_the_environment(value, secret, tmp_path):
    settings = {**dataclasses.asdict(load_page("digits_resnet20")), "title": value}
    for changed in (settings, {**settings, "title": "x", "model_args": {"a": [value]}}):
        with pytest.raises(UserError, match="settings must be plain values") as caught:
            merge_settings(changed, "page")
        assert CANARY not in str(caught.value)
    with pytest.raises(UserError, match="must be name=value pairs of plain values"):
        plan_cells("dense", "0", "digits_resnet20", "0", shlex.quote(f"title={value}"))
    rows = [{"method": "dense", "args": {"title": value}}]
    grid = {"tasks": ["digits_resnet20"], "seeds": [0], "rows": rows, "title": value}
    (tmp_path / "g.yaml").write_text(json.dumps(grid))
    with pytest.raises(UserError) as caught:
        read_grid(tmp_path / "g.yaml")
    assert CANARY not in str(caught.value)


# Files from elsewhere that mean harm


class Bomb:
    """Unpickled, it makes the file `exploded` in the folder at hand."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path("exploded").touch, ()


def seal_checkpoint(path: Path, payload: bytes) -> Path:
    """Write a checkpoint with a valid checksum, whatever is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(MAGIC + hashlib.sha256(payload).digest() + payload)
    return path


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["plain pickle", "torch's archive", "torch's old format"])
def test_a_checkpoint_that_carries_code_is_refused_and_runs_nothing(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = io.BytesIO()
    torch.save({"model": Bomb()}, old, _use_new_zipfile_serialization=False)
    payloads = {
        "plain pickle": pickle.dumps(Bomb()),
        "torch's archive": saved({"model": Bomb()}),
        "torch's old format": old.getvalue(),
    }
    path = seal_checkpoint(tmp_path / "checkpoint", payloads[kind])
    with pytest.raises(UserError, match=r"checkpoint .* holds something other than tensors and plain values.*FRESH=1"):
        load_checkpoint(path)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(payloads["plain pickle"])
    assert (tmp_path / "exploded").exists(), "the bomb is one"


BAD_STATES = {
    "a list": [1, 2],
    "other keys": {"model": 1, "average": None, "masks": {}, "about": {}},
    "other kinds": dict.fromkeys(("model", "average", "optimizer", "masks", "about", "counters", "started"), "x"),
}


@pytest.mark.parametrize("kind", BAD_STATES)
def test_a_checkpoint_of_something_else_ends_in_a_message_and_the_run_can_start_over(kind, tmp_path):
    (cell,) = plan_cells("dense", "0", "digits_resnet20", "0", "epochs=1 image_size=4 crop_pad=0 batch_size=256")
    places = Places(tmp_path / "records", tmp_path / "L.md", tmp_path / "runs")
    options = Options(device=CPU, command="t", places=places)
    check_places(places)
    data = load_data(cell.page, tmp_path, CPU)
    state = BAD_STATES[kind]
    if isinstance(state, dict):
        state = {**state, "data": data.fingerprint, "precision": "fp32", "device": "cpu"}
    path = seal_checkpoint(places.runs / cell.identity / "checkpoint", saved(state))
    with pytest.raises(UserError, match=r"checkpoint .*(FRESH=1|continue as it began)"):
        run_cell(cell, data, options, QUIET)
    with pytest.raises(UserError, match="checkpoint"):
        read_network(cell.identity, places.runs)
    assert path.exists() and not list((tmp_path / "records").glob("*")), "nothing was lost and nothing made of it"
    record = run_cell(cell, data, dataclasses.replace(options, fresh=True), QUIET)[0]
    assert record["status"] == "ok"


@pytest.mark.parametrize("text", ["[" * 100_000, "null", '{"run": 1}'])
def test_a_finished_run_s_record_from_elsewhere_costs_nothing(text, tmp_path):
    (cell,) = plan_cells("dense", "0", "digits_resnet20", "0", "epochs=1 image_size=4 crop_pad=0 batch_size=256")
    places = Places(tmp_path / "records", tmp_path / "L.md", tmp_path / "runs")
    options = Options(device=CPU, command="t", places=places)
    folder = places.runs / cell.identity
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(text)
    check_places(places)
    record, path = run_cell(cell, load_data(cell.page, tmp_path, CPU), options, QUIET)
    assert record["status"] == "ok" and list(places.records.iterdir()) == [path]


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 100_000, '{"run": Infinity}', f'{{"x": {"9" * 9999}}}', "\0",
        "\ud800".encode("utf-8", "surrogatepass"),
    ],
)  # fmt: skip
def test_a_record_that_means_harm_is_a_problem_and_no_failure(text, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecordError):
        read_record(path)
    with pytest.raises(UserError, match=r"record .*x\.json"):
        verify_record(path, tmp_path, tmp_path)


@pytest.mark.parametrize("change", [{"macs": {"train": 10**31}}, {"seed": 10**400}])
def test_a_record_of_absurd_numbers_is_not_written(change, tmp_path):
    with pytest.raises(RecordError):
        write_record(make_record(**change), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "shapes",
    ["[" * 100_000, "null", '{"w": 5}', '{"w": [1e9]}', '{"w": [9000000000000]}', '{"w": [-2]}', "{}", '{"w": [3]}'],
)  # fmt: skip
def test_a_file_of_masks_that_lies_of_its_shapes_ends_in_a_message(shapes, tmp_path):
    export_small(tmp_path)
    bits = {"w": torch.tensor([128], dtype=torch.uint8)}
    (tmp_path / MASKS).write_bytes(save(bits, metadata={"shapes": shapes, "masks_sha256": "0"}))
    with pytest.raises(UserError, match="masks"):
        read_export(tmp_path)


@pytest.mark.parametrize(
    "text", ["a: " + "[" * 2000, "a: " + "9" * 5000, "\0", "a: !!python/object/apply:os.system [x]"]
)
def test_a_grid_or_page_that_means_harm_ends_in_a_message(text, tmp_path, monkeypatch):
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(UserError, match=r"g\.yaml"):
        read_grid(tmp_path / "g.yaml")
    monkeypatch.setattr("benchmark.config.pages.CONFIGS", tmp_path)
    with pytest.raises(UserError, match="g"):
        load_page("g")


@pytest.mark.parametrize(
    "text", ["a=" + "[" * 5000, "epochs=" + "9" * 5000, "a=!!python/object/apply:os.system [x]", "a=\0"]
)
def test_arguments_that_mean_harm_end_in_a_message(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        parse_arguments(text)
        plan_cells("dense", "0", "digits_resnet20", "0", text)
    with pytest.raises(UserError, match="SEED must be"):
        parse_seed("9" * 5000)
