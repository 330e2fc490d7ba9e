"""Controls made from another run: what they take from it, how it is found, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from benchmark.base.errors import UserError
from benchmark.base.files import Places
from benchmark.config.cells import Cell, DonorRun, plan_cells
from benchmark.config.pages import load_page
from benchmark.config.plugins import Plugin, built_in_names, find_method
from benchmark.data.sets import load_data
from benchmark.runs.donors import find_donors, resolve_donors
from benchmark.runs.export import MASKS, WEIGHTS
from benchmark.runs.verify import verify_record
from benchmark.training.contract import show_donor
from benchmark.training.masks import hash_masks, pack_all
from benchmark.training.rehearsal import rehearse, stand_in_donor
from leaderboard import read_records, write_record
from methods.core import ContractError, Donor, Group, Masks, Method, Timeline, View, all_active, random_masks
from tests.harness.benches import Bench

ROOT = Path(__file__).resolve().parents[2]
TASK = "digits_resnet20"
PAGE = "epochs=2 batch_size=400 model_args.width=0.25"
GRANET, START = "granet (update_every=2)", "granet (start_sparsity=0.0, update_every=2)"
SPELLED = "granet:update_every=2"


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Bench:
    """Donors that were trained once: GraNet from two starts at two seeds, SNIP with a collapsed layer, dense nets."""
    bench = Bench(tmp_path_factory.mktemp("done"))
    assert bench("granet", arguments=f"{PAGE} update_every=2", seeds="0,1") == 0
    assert bench("granet", arguments=f"{PAGE} update_every=2 start_sparsity=0") == 0
    assert bench("snip,dense", "0.99", arguments=PAGE) == 0
    assert bench("small_dense", "0.9", arguments=PAGE) == 0
    return bench


def record_of(bench: Bench, label: str, seed: int = 0) -> dict[str, Any]:
    """Return the record of a row and seed."""
    (record,) = [r for r in bench.records() if r["method"]["label"] == label and r["seed"] == seed]
    return record


def places_of(bench: Bench, records: Path | None = None) -> Places:
    """Return the places of a bench, its records replaced by those that `change` wrote to a folder."""
    folder = bench.folder
    return Places((records or folder) / "records", folder / "LEADERBOARD.md", folder / "runs")


def resolve(bench: Bench, arguments: str, sparsity: str = "0.9", seeds: str = "0", places=None) -> list[Cell]:
    """Return the cells of a `static` grid with their donors."""
    cells = plan_cells("static", sparsity, TASK, seeds, f"{PAGE} {arguments}")
    data = load_data(cells[0].page, bench.folder / "data", torch.device("cpu"))
    return resolve_donors(cells, {TASK: data}, places or places_of(bench), torch.device("cpu"))


def counts_of(record: dict[str, Any]) -> dict[str, int]:
    return {layer["name"]: layer["active"] for layer in record["layers"] if layer["prunable"]}


# ------------------------------------------------------------------------------------------------- what a control takes


@pytest.fixture(scope="module")
def controls(done) -> Bench:
    """Every kind of control of a GraNet run, one of them of both, beside them."""
    assert done("static", arguments=f"{PAGE} densities={SPELLED}", seeds="0,1") == 0
    for kind in ("none", "layers", "filters"):
        assert done("static", arguments=f"{PAGE} masks={SPELLED} shuffle={kind}") == 0
    return done


KINDS = {
    f"static (densities={GRANET})": "densities",
    f"static (masks={GRANET})": "masks",
    f"static (masks={GRANET}, shuffle=layers)": "shuffled masks",
    f"static (masks={GRANET}, shuffle=filters)": "shuffled filters",
}


@pytest.mark.parametrize(("label", "seed"), [*((label, 0) for label in KINDS), (next(iter(KINDS)), 1)])
def test_a_control_has_the_counts_of_its_donor_in_every_layer_and_says_which_run_that_was(controls, label, seed):
    donor, record = record_of(controls, GRANET, seed), record_of(controls, label, seed)
    assert counts_of(record) == counts_of(donor)
    assert record["method"]["donor"] == {
        "run": donor["run"],
        "label": GRANET,
        "sparsity": 0.9,
        "seed": seed,
        "kind": KINDS[label],
        "masks_sha256": donor["masks_sha256"],
    }
    setting = "densities" if KINDS[label] == "densities" else "masks"
    assert record["method"]["settings"][setting] == record["method"]["changed"][setting] == GRANET
    assert record["method"]["group"] == "control"
    assert (record["masks_sha256"] == donor["masks_sha256"]) == (KINDS[label] == "masks")
    assert label in (controls.folder / "LEADERBOARD.md").read_text().replace("\\", "")
    if KINDS[label] == "shuffled masks":  # drawn at the donor's densities, not within its filters
        drawn = record_of(controls, f"static (densities={GRANET})")
        assert record["masks_sha256"] == drawn["masks_sha256"] != donor["masks_sha256"]


@pytest.mark.parametrize("label", KINDS)
def test_a_control_s_record_agrees_with_its_network_and_with_its_donor_s_also_where_that_is_gone(
    controls, label, tmp_path
):
    record = record_of(controls, label)
    shutil.copytree(controls.folder / "runs" / record["run"], tmp_path / record["run"])
    for runs in (controls.folder / "runs", tmp_path):
        findings = verify_record(controls.folder / "records" / record["file"], runs, Path("data"))
        assert all(agrees for *_, agrees in findings), findings
        names = {what for what, *_ in findings}
        assert ("masks of its donor (sha256)" in names) == (KINDS[label] == "masks")
        assert ({"masks in its donor's file", "layers with its donor's count"} <= names) == (runs != tmp_path)


def test_a_control_whose_donor_is_another_is_found_out(controls, tmp_path):
    record = record_of(controls, f"static (masks={GRANET})")
    record["method"]["donor"]["run"] = record_of(controls, "snip")["run"]
    record["method"]["donor"]["masks_sha256"] = "0" * 64
    path = write_record({key: value for key, value in record.items() if key not in ("seal", "file")}, tmp_path)
    wrong = [what for what, *_, agrees in verify_record(path, controls.folder / "runs", Path("data")) if not agrees]
    assert wrong == ["masks of its donor (sha256)", "masks in its donor's file", "layers with its donor's count"]


def test_a_donor_s_collapsed_layer_is_a_result_that_its_control_shares(controls, tmp_path):
    """On the page as it is: asking for allow_empty_layers would put the control into another table than its donor."""
    donor = record_of(controls, "snip")
    assert donor["empty_layers"], "make the donor sparser"
    bench = Bench(tmp_path)
    assert bench("static", "0.99", f"{PAGE} densities={controls.folder / 'records' / donor['file']}") == 0
    (record,) = bench.records()
    assert record["empty_layers"] == donor["empty_layers"]
    assert record["page"]["variant"] == donor["page"]["variant"]
    assert "leaves no weight in layer" in bench.shown.getvalue()


# ---------------------------------------------------------------------------------------------- the method by itself


def view_of(masks: Masks, seed: int = 0, shown: str = "donor_masks") -> View:
    weights = {name: torch.ones(mask.shape) for name, mask in masks.items()}
    donor: dict[str, Any] = {"donor_counts": {name: int(mask.sum()) for name, mask in masks.items()}}
    donor |= {"donor_masks": masks} if shown == "donor_masks" else {}
    return View(weights=weights, masks={}, step=0, timeline=Timeline(10, 5), seed=seed, **donor)


def static(sparsity: float = 0.5, **settings: str) -> Method:
    return find_method("static").build(load_page(TASK), sparsity, settings)


HAND = {
    "conv": torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0]]).bool().reshape(4, 1, 2, 2),
    "fc": torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]]).bool(),
}


def test_filters_by_hand():
    """Counts 3, 0, 4 and 1: the empty filter stays empty, the full one full."""
    shuffled = static(masks="x", shuffle="filters").setup(view_of(HAND))
    assert shuffled["conv"].flatten(1).sum(1).tolist() == [3, 0, 4, 1]
    assert shuffled["fc"].sum() == 5
    assert shuffled["conv"].shape == (4, 1, 2, 2)


@pytest.mark.parametrize("shuffle", ["layers", "filters"])
def test_every_arrangement_with_the_same_counts_is_equally_likely(shuffle):
    """Five of eight places in one filter: each place is taken in 5/8 of 400 seeds (expected 250, sd 9.7)."""
    method = static(masks="x", shuffle=shuffle)
    taken = sum(method.setup(view_of({"fc": HAND["fc"]}, seed))["fc"][0].int() for seed in range(400))
    assert taken.sum() == 5 * 400
    assert all(abs(int(count) - 250) < 45 for count in taken)


def test_masks_alone_are_the_donor_s_and_no_tensor_of_its():
    given = static(masks="x").setup(view_of(HAND))
    assert all(torch.equal(given[name], mask) for name, mask in HAND.items())
    given["conv"].zero_()
    assert HAND["conv"].sum() == 8


@pytest.mark.parametrize("settings", [{"densities": "x"}, {"masks": "x", "shuffle": "filters"}])
def test_draws_depend_on_seed_and_name_alone_and_not_on_the_global_generator(settings):
    method = static(**settings)
    first = method.setup(view_of(HAND))
    torch.manual_seed(99)
    assert all(torch.equal(first[n], m) for n, m in method.setup(view_of(HAND)).items())
    backwards = method.setup(view_of(dict(reversed(HAND.items()))))
    assert all(torch.equal(first[n], m) for n, m in backwards.items())
    others = [method.setup(view_of(HAND, seed)) for seed in range(1, 6)]
    assert any(not torch.equal(first["fc"], other["fc"]) for other in others)


def test_a_control_s_draws_are_not_those_of_other_methods_first_masks():
    """Where they were, a control would be a part of the masks its donor started from."""
    masks = {"fc": torch.arange(1000).reshape(10, 100) < 500}
    drawn = static(densities="x").setup(view_of(masks))["fc"]
    start = random_masks(view_of(masks), {"fc": 500})["fc"]
    assert 200 < int((drawn & start).sum()) < 300  # 250 expected, sd 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"densities": "a", "masks": "b"}, "densities and masks each name a run, got 'a' and 'b': give one of them"),
        ({"shuffle": "layers"}, "shuffle=layers needs masks to shuffle: add masks=RUN"),
        ({"masks": "a", "shuffle": "rows"}, "shuffle must be one of none, layers, filters, got 'rows'"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        static(**settings)


def test_an_unknown_kind_of_donor_is_refused():
    with pytest.raises(ContractError, match=r"must make one of densities, masks, .* got 'weights'"):
        Donor("granet", "weights")
    assert [Donor("x").masks, Donor("x", "masks").masks, Donor("x", "shuffled filters").masks] == [False, True, True]


# ------------------------------------------------------------------------------------------------------ the contract


@dataclass(frozen=True, kw_only=True)
class Reader(Method):
    """Reads one thing of a donor, in the setup or in an update; asks for what it is told to."""

    group: ClassVar[Group] = Group.CONTROL
    reference: ClassVar[str] = "test"
    reads: str = "donor_counts"
    asks: str = ""
    late: bool = False

    def donor(self) -> Donor | None:
        return Donor("granet", self.asks) if self.asks else None

    def update_steps(self, timeline: Timeline) -> range:
        return range(2, 3)

    def setup(self, view: View) -> Masks:
        if not self.late:
            getattr(view, self.reads)
        return all_active(view)

    def update(self, view: View) -> Masks:
        getattr(view, self.reads)
        return all_active(view)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"in setup: it read the counts of a donor it did not declare: return Donor\(run\) from donor\(\)"),
        ({"reads": "donor_masks", "asks": "densities"}, r"in setup: it read the masks of a donor it did not declare"),
        ({"asks": "densities", "late": True}, r"in the update at step 2: it read the counts .* setup\(\) alone sees"),
    ],
)
def test_a_plugin_that_reads_a_donor_it_did_not_declare_is_refused_in_rehearsal(settings, message):
    with pytest.raises(UserError, match=message):
        rehearse(Reader(sparsity=0.0, **settings), "reader", Timeline(10, 5))


def test_the_stand_in_of_a_rehearsal_keeps_the_largest_weights_in_any_order_of_layers():
    weights = {"a": torch.tensor([[4.0, -9.0], [0.1, 2.0]]), "b": torch.tensor([[-3.0, 1.0]])}
    method = static(sparsity=0.5, masks="x")
    for order in (list(weights), list(weights)[::-1]):
        shown = show_donor(stand_in_donor(method, {n: weights[n] for n in order}), weights)
        assert shown["donor_counts"] == {"a": 2, "b": 1}
        assert shown["donor_masks"]["a"].tolist() == [[True, True], [False, False]]
        assert shown["donor_masks"]["b"].tolist() == [[True, False]]
    assert stand_in_donor(static(), weights) is None


# -------------------------------------------------------------------------------------------------- finding the donor


def test_every_way_to_name_a_run_finds_it_and_none_leaves_a_path_in_cell_or_record(done, tmp_path, monkeypatch):
    record = record_of(done, START)
    file = done.folder / "records" / record["file"]
    shutil.copy(file, tmp_path / "kept.json")
    monkeypatch.chdir(tmp_path)
    runs = dict.fromkeys((str(file), "./kept.json", file.name, record["run"]), record["run"])
    runs |= dict.fromkeys((START, "granet:update_every=2.0,start_sparsity=0"), START)
    for asked, name in runs.items():
        for setting in ("densities", "masks"):
            (cell,) = resolve(done, shlex.quote(f"{setting}={asked}"))
            assert cell.donor.run == record["run"], asked
            assert cell.label == f"static ({setting}={name})"
            assert cell.method_settings()[setting] == name
            assert str(tmp_path) not in cell.label and "/" not in cell.identity
            assert (cell.donor.bits is None) == (setting == "densities")
    by_path, by_run = (resolve(done, f"densities={asked}")[0] for asked in ("./kept.json", record["run"]))
    assert by_path.identity == by_run.identity


def test_a_row_gives_each_seed_the_run_of_its_own_seed(done):
    cells = resolve(done, f"densities={SPELLED}", seeds="0,1")
    assert [cell.donor.seed for cell in cells] == [0, 1]
    assert [cell.donor.run for cell in cells] == [record_of(done, GRANET, seed)["run"] for seed in (0, 1)]
    assert {cell.label for cell in cells} == {f"static (densities={GRANET})"}
    named = resolve(done, f"densities={cells[1].donor.run}", seeds="3,4")  # a run named outright serves every seed
    assert [cell.donor.seed for cell in named] == [1, 1]


def test_of_several_runs_of_a_seed_the_first_that_finished_is_the_donor(done, tmp_path):
    record = record_of(done, GRANET)
    for second, digest in ((3, "c" * 64), (1, "a" * 64), (2, "b" * 64)):
        stamp = f"2031-01-01T00:00:0{second}Z"
        change(record, tmp_path, started=stamp, finished=stamp, masks_sha256=digest)
    places = places_of(done, tmp_path)
    assert resolve(done, f"densities={SPELLED}", places=places)[0].donor.masks_sha256 == "a" * 64
    # a file named outright is that file
    (cell,) = resolve(done, f"densities={record['run']}.json", places=places)
    assert cell.donor.masks_sha256 == "c" * 64


def test_masks_are_taken_with_the_repeat_whose_files_lie_there(done, tmp_path):
    """The first record may be of another kind of machine, whose masks differ by a rounding."""
    record = record_of(done, GRANET)
    for second, digest in ((1, "a" * 64), (2, record["masks_sha256"])):
        stamp = f"2031-01-01T00:00:0{second}Z"
        change(record, tmp_path, started=stamp, finished=stamp, masks_sha256=digest)
    places = places_of(done, tmp_path)
    (cell,) = resolve(done, f"masks={SPELLED}", places=places)
    assert cell.donor.masks_sha256 == record["masks_sha256"] and cell.donor.bits


def test_a_row_of_a_plain_name_has_the_settings_of_the_newest_runs(done, tmp_path):
    record = record_of(done, GRANET)
    for every, day in ((5, 1), (7, 2)):  # as if the page had given the method another setting in between
        method = {**record["method"], "label": "granet", "changed": {}}
        method["settings"] = {**method["settings"], "update_every": every}
        stamp = f"2031-01-0{day}T00:00:00Z"
        change(record, tmp_path, method=method, masks_sha256=f"{every}" * 64, started=stamp, finished=stamp)
    places = places_of(done, tmp_path)
    old = "granet (update_every=5)"
    for asked, name, every in (("granet", "granet", 7), ("granet:update_every=5", old, 5)):
        (cell,) = resolve(done, f"densities={asked}", places=places)
        assert (cell.label, cell.donor.masks_sha256[0]) == (f"static (densities={name})", str(every))
    assert "rows there: granet, granet (update_every=5)" in refusal(done, "densities=gronet", places=places)


def test_the_record_of_another_table_is_no_record_of_the_row(done, tmp_path):
    record = record_of(done, GRANET)
    for key, value in (("variant", "00000000"), ("name", "digits_resnet21")):
        change(record, tmp_path / key, page={**record["page"], key: value})
    change(record, tmp_path / "data", data={**record["data"], "fingerprint": "f" * 64})
    change(record, tmp_path / "protocol", protocol=1)
    change(record, tmp_path / "precision", environment={**record["environment"], "precision": "bf16"})
    for kind in ("variant", "name", "data", "protocol", "precision"):
        places = places_of(done, tmp_path / kind)
        with pytest.raises(UserError, match="rows there: none yet"):
            resolve(done, f"densities={SPELLED}", places=places)
        # but named outright it serves, for its layers and its sparsity fit
        (cell,) = resolve(done, f"densities={record['run']}", places=places)
        assert cell.donor.run == record["run"]


def test_cells_without_a_donor_come_back_as_they_are_and_no_record_is_read(done, monkeypatch):
    monkeypatch.setattr("benchmark.runs.donors.load_store", lambda *_: pytest.fail("records were read"))
    cells = plan_cells("granet,static", "0.9", TASK, "0", PAGE)
    assert resolve_donors(cells, {}, places_of(done)) == cells


# ---------------------------------------------------------------------------------------------------- what is refused


def change(record: dict[str, Any], folder: Path, **changes: Any) -> Path:
    """Write a record with changes, sealed anew, to the records of `folder`."""
    kept = {key: value for key, value in record.items() if key not in ("seal", "file")}
    return write_record({**kept, **changes}, folder / "records")


def refusal(done: Bench, arguments: str, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        resolve(done, arguments, **more)
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "sparsity", "told"),
    [
        ("densities=snop", "0.9", r"^method 'static': donor 'snop': no record, run or row of digits_resnet20"),
        ("densities=snop", "0.9", r"did you mean 'snip'\?.* rows there: dense, granet \(.*\), small_dense, snip"),
        ("densities=RUN", "0.8", r"has [\d,]+ active weights and sparsity 0\.8 asks for .*SPARSITY must be 0\.9$"),
        (
            "densities=RUN model_args.width=0.5",
            "0.9",
            r"its layers must be those of .*, \S+ is \(.*\) in .* here",
        ),
        ("densities=RUN keep_dense=[first]", "0.9", r"\S+ is \(.*\) in digits_resnet20.granet\S+ and absent here"),
        ("densities=dense", "0.9", "its runs on digits_resnet20 are dense"),
    ],
)
def test_a_donor_that_does_not_fit_is_refused_with_what_differs(done, arguments, sparsity, told):
    said = refusal(done, arguments.replace("RUN", record_of(done, GRANET)["run"]), sparsity=sparsity)
    assert re.search(told, said), said


def test_a_dense_or_narrower_donor_named_outright_is_refused(done):
    for method, sparsity, told in (
        ("dense", "0", "is dense, and a control"),
        ("small_dense", "0.9", "narrower network"),
    ):
        assert told in refusal(done, f"densities={record_of(done, method)['run']}", sparsity=sparsity)


@pytest.mark.parametrize("name", ["nosuch.json", "no/such/run", "x" * 5000, "granet\0", "no\x1b[2J/such\nrun"])
def test_a_file_that_is_not_there_is_told_without_control_characters(done, name):
    (cell,) = plan_cells("static", "0.9", TASK, "0", f"{PAGE} densities=x")
    cell = replace(cell, method=replace(cell.method, densities=name))  # not all could be typed into ARGS
    data = load_data(cell.page, done.folder / "data", torch.device("cpu"))
    with pytest.raises(UserError, match=r"no record|no such record") as caught:
        resolve_donors([cell], {TASK: data}, places_of(done))
    assert str(caught.value).isprintable()


def test_a_diverged_donor_is_refused_and_not_passed_over_for_a_later_run(done, tmp_path):
    """The first that finished counts on the leaderboard: a second try must not be the better of two."""
    record = record_of(done, GRANET)
    change(record, tmp_path, status="diverged")
    for asked in (SPELLED, record["run"]):
        said = refusal(done, f"densities={asked}", places=places_of(done, tmp_path))
        assert "diverged: name another run" in said
    change(record, tmp_path, started="2031-01-01T00:00:00Z", finished="2031-01-01T00:00:00Z")
    assert "diverged" in refusal(done, f"densities={SPELLED}", places=places_of(done, tmp_path))


def cell_of_command(said: str, after: str) -> Cell:
    """Return the one cell of the command that a message says to give, `make bench` or `sparse-bench run`."""
    words = shlex.split(said[said.index(after) + len(after) :].split(";")[0])
    if words[:2] == ["make", "bench"]:
        asked = {key.lower(): value for key, _, value in (word.partition("=") for word in words[2:])}
    else:
        assert words[:2] == [".venv/bin/sparse-bench", "run"]
        asked = {key.removeprefix("--"): value for key, value in zip(words[2::2], words[3::2], strict=True)}
    (cell,) = plan_cells(asked["method"], asked["sparsity"], asked["task"], asked["seed"], asked.get("args", ""))
    return cell


def test_a_row_without_the_seed_is_told_with_what_there_is_and_the_command_that_makes_it(done):
    said = refusal(done, f"densities={SPELLED}", seeds="0,7")
    assert "no run at sparsity 0.9 and seed 7 on digits_resnet20, only 0.9 s0, 0.9 s1; make it first:" in said
    cell = cell_of_command(said, "make it first: ")
    assert (cell.label, cell.sparsity, cell.seed, cell.page_name) == (GRANET, 0.9, 7, TASK)
    assert cell.variant == record_of(done, GRANET)["page"]["variant"]


@pytest.mark.parametrize("asked", ["rigl:update_every=7,prune_rate=0.2", "rigl (prune_rate=0.2, update_every=7)"])
def test_a_method_without_any_record_here_is_told_with_the_command_that_makes_it(done, asked):
    cell = cell_of_command(refusal(done, shlex.quote(f"densities={asked}"), seeds="2"), "make it first: ")
    assert (cell.label, cell.sparsity, cell.seed) == ("rigl (prune_rate=0.2, update_every=7)", 0.9, 2)
    assert cell.variant == record_of(done, GRANET)["page"]["variant"]


def test_an_edited_record_is_refused(done, tmp_path):
    """Two layers trade a weight: every sum still holds, the seal does not."""
    source = done.folder / "records" / record_of(done, GRANET)["file"]
    content = json.loads(source.read_text())
    first, second = [layer for layer in content["layers"] if layer["prunable"]][:2]
    first["active"], second["active"] = first["active"] - 1, second["active"] + 1
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(content))
    assert f"record {edited}: " in refusal(done, f"densities={edited}")
    # sealed anew: the exported masks tell
    path = change(content, tmp_path)
    assert "are not those of its record, which was edited" in refusal(done, f"masks={path}")
    edited.write_text(source.read_text()[:500])
    assert "not readable as JSON" in refusal(done, f"densities={edited}")


def test_masks_that_are_missing_or_another_run_s_are_refused_and_counts_do_not_need_them(done, tmp_path):
    record, other = record_of(done, GRANET), record_of(done, GRANET, 1)
    places = Places(records=done.folder / "records", runs=tmp_path)
    assert resolve(done, f"densities={SPELLED}", places=places)[0].donor.counts == counts_of(record)
    said = refusal(done, f"masks={SPELLED}", places=places)
    assert f"{record['run']}/{WEIGHTS} cannot be read" in said
    assert cell_of_command(said, "run it again: ").identity == record["run"]
    shutil.copytree(done.folder / "runs" / other["run"], tmp_path / record["run"])
    said = refusal(done, f"masks={SPELLED}", places=places)
    assert "must be those of its record" in said and record["masks_sha256"][:16] in said
    (tmp_path / record["run"] / MASKS).write_bytes(b"damaged")
    assert "cannot be read" in refusal(done, f"masks={SPELLED}", places=places)
    # which run a control is made from is known without any file of it
    cells = plan_cells("static", "0.9", TASK, "0", f"{PAGE} masks={SPELLED}")
    data = load_data(cells[0].page, done.folder / "data", torch.device("cpu"))
    (found,) = find_donors(cells, {TASK: data}, places, torch.device("cpu"))
    (whole,) = resolve(done, f"masks={SPELLED}")
    assert found.identity == whole.identity and found.donor.bits is None and whole.donor.bits


def test_rows_of_two_versions_of_a_method_are_told_apart_by_their_files(done, tmp_path):
    record = record_of(done, GRANET)
    change(record, tmp_path)
    change(record, tmp_path, method={**record["method"], "sha256": "ab" * 32}, masks_sha256="a" * 64)
    places = places_of(done, tmp_path)
    said = refusal(done, f"densities={SPELLED}", places=places)
    name = f"{GRANET} (file abababab)"
    assert "several rows of this name" in said and name in said
    (cell,) = resolve(done, shlex.quote(f"densities={name}"), places=places)
    assert cell.donor.masks_sha256 == "a" * 64
    assert cell.label == f"static (densities={name})"


def test_a_plugin_whose_donor_fails_is_named():
    class Fails(Reader):
        def donor(self) -> Donor | None:
            raise KeyError("oops")

    plugin = Plugin("fails", Fails, "test", "0" * 64)
    cell = replace(plan_cells("static", "0.9", TASK, "0", "")[0], plugin=plugin, method=Fails(sparsity=0.9))
    with pytest.raises(UserError, match=r"method 'fails' fails in donor\(\): KeyError"):
        resolve_donors([cell], {}, Places())


def test_a_grid_is_refused_before_its_first_batch_and_writes_nothing(done, monkeypatch):
    monkeypatch.setattr("benchmark.runs.run.train", lambda *_: pytest.fail("a batch was trained"))
    before = done.written()
    with pytest.raises(UserError):
        done("static", arguments=f"{PAGE} masks=nosuch")
    assert done.written() == before


# -------------------------------------------------------------------------------------------------- names and resuming


def with_donor(cell: Cell, **changes: Any) -> Cell:
    donor = DonorRun("run", "granet", 0.9, 0, "masks", "a" * 64, {"w": 1}, {"w": torch.zeros(1, dtype=torch.uint8)})
    return replace(cell, donor=replace(donor, **changes))


def test_a_run_s_name_changes_with_its_donor_s_masks_and_kind_and_with_nothing_else_of_it():
    (cell,) = plan_cells("static", "0.9", TASK, "0", "masks=granet")
    base = with_donor(cell)
    names = [c.identity for c in (cell, base, with_donor(cell, masks_sha256="b" * 64), with_donor(cell, kind="x"))]
    assert len(set(names)) == 4
    same = with_donor(cell, run="other", label="other", seed=3, sparsity=0.5, counts={}, bits=None)
    assert same.identity == base.identity


def test_without_a_donor_runs_keep_the_names_of_the_committed_records():
    named = 0
    for record in read_records(ROOT / "leaderboard" / "records")[0]:
        method = record["method"]
        if method["name"] not in built_in_names() or find_method(method["name"]).sha256 != method["sha256"]:
            continue  # of another version of the method's file, which is in a run's name
        if record["protocol"] != 2 or "donor" in method or record["seed"]:
            continue
        given_anew = ("update_every", "threshold")  # by pages
        taken = {key: value for key, value in method["settings"].items() if key in given_anew}
        changed = {**record["page"]["changed"], **method["changed"], **taken}
        arguments = " ".join(f"{key}={value}" for key, value in changed.items())
        (cell,) = plan_cells(
            method["name"], str(record["sparsity"]), record["page"]["name"], str(record["seed"]), arguments
        )
        assert record["run"] in cell.names(record["data"]["fingerprint"])
        named += 1
    assert named >= 20


def test_packed_masks_of_a_donor_are_what_the_method_sees():
    weights = {name: torch.zeros(mask.shape) for name, mask in HAND.items()}
    counts = {name: int(mask.sum()) for name, mask in HAND.items()}
    donor = DonorRun("run", "x", 0.5, 0, "masks", hash_masks(HAND), counts, pack_all(HAND))
    shown = show_donor(donor, weights)
    assert all(torch.equal(shown["donor_masks"][name], mask) for name, mask in HAND.items())
    assert show_donor(replace(donor, bits=None), weights) == {"donor_counts": counts}
    assert show_donor(None, weights) == {}
    assert np.packbits(HAND["fc"].numpy()).tolist() == donor.bits["fc"].tolist()
