"""Promises of the study of growth in bf16: what is counted, that looking changes nothing, and its sheet."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmark.studies import precision
from benchmark.studies.precision import Watch, correlate, count_growth, next_batches
from benchmark.training.train import serve, train
from leaderboard.board.build import build_all, find_stale
from leaderboard.results.precision import render_precision
from leaderboard.store.growth import load_growth, write_growth
from tests.harness.record_factory import make_runs, table
from tests.harness.small import Silent, finish, make_run


def count(grown: list[int], **more: Any) -> dict[str, Any]:
    return {"grown": grown, "zero": 0, "tied": 0, "by_index": 0, "grown_at_zero": 0, **more}


def make_growth(seed: int = 0, shared: int = 80, **more: Any) -> dict[str, Any]:
    """Return a measurement: of 100 weights that fp32 grows bf16 shares `shared` of its 90, another batch 30 of 100."""
    update = {
        "step": 10,
        "inactive": 1000,
        "fp32": count([60, 40], tied=10),
        "bf16": count([50, 40], shared=[shared - 30, 30], tied=900, by_index=9, correlation=0.9),
        "batch": count([60, 40], shared=[30, 0], correlation=None),
    }
    return {
        "schema": 1,
        "run": f"digits_resnet20.granet.0.9.s{seed}.3f9a1c2e",
        "masks_sha256": "a" * 64,
        "page": {"name": "digits_resnet20", "title": "Digits"},
        "method": {"label": "granet", "sha256": "0" * 64},
        "sparsity": 0.9,
        "seed": seed,
        "data": {"name": "digits", "fingerprint": "f"},
        "steps": 20,
        "layers": ["a|b", "c"],
        "updates": [update],
        "measured": "2025-01-31T12:00:00+00:00",
        "command": "python -m benchmark.studies.precision",
        "environment": {"device": "cpu", "device_name": "Some CPU", "torch": "2"},
        **more,
    }


def test_zeros_ties_and_what_their_order_decides_are_counted():
    # 1 + 2**-9 is 1 in bf16: there the first three are equal, and one of them is left out by its place alone
    dense = torch.tensor([1.0, 1 + 2**-9, -1.0, 4.0, 0.0, 0.25, 2.0])
    inactive = {"w": torch.tensor([True] * 6 + [False])}
    grown = {"w": torch.tensor([True, True, False, True, False, False, False])}
    rounded = {"w": dense.bfloat16().float()}
    assert count_growth(grown, rounded, inactive) == count([3], zero=1, tied=3, by_index=2)
    assert count_growth({"w": torch.tensor([False, True, False, True, *[False] * 3])}, {"w": dense}, inactive) == count(
        [2], zero=1, tied=2
    )
    # where nothing is left out, no order decides
    assert count_growth(inactive, rounded, inactive) == count([6], zero=1, tied=3, grown_at_zero=1)
    assert correlate({"w": dense}, {"w": 2 * dense}, inactive) == pytest.approx(1)
    assert correlate({"w": dense}, {"w": torch.zeros(7)}, inactive) is None


@pytest.mark.parametrize("method", ["granet", "rigl_itop"])
def test_watching_changes_nothing_and_sees_what_is_grown(method):
    plain, watched = finish(make_run(method)), make_run(method)
    before: dict[int, dict[str, torch.Tensor]] = {}
    watching = Watch(watched)

    def after_step(run):
        watching(run)
        before[run.step] = {name: mask.clone() for name, mask in run.maskset.masks.items()}

    train(watched, Silent(), lambda _: None, after_step)
    assert watched.maskset.sha256() == plain.maskset.sha256()
    assert all(torch.equal(one, plain.model.state_dict()[name]) for name, one in watched.model.state_dict().items())
    assert [row["step"] for row in watching.updates] == list(watched.method.update_steps(watched.timeline))
    grown = [sum(row["fp32"]["grown"]) for row in watching.updates]
    assert sum(grown) > 0 and all(
        sum(row["bf16"]["shared"]) <= n for row, n in zip(watching.updates, grown, strict=True)
    )
    ties = {name: sum(row[name]["tied"] for row in watching.updates) for name in ("fp32", "bf16")}
    assert ties["bf16"] > 1.2 * ties["fp32"]  # so it is bf16
    # the step between looking and updating moves few weights across what is dropped
    really = [sum(int((before[s][n] & ~before[s - 1][n]).sum()) for n in before[s]) for s in before if s - 1 in before]
    assert sum(grown) == pytest.approx(sum(really), rel=0.2)


def test_the_batches_that_are_looked_at_are_those_that_are_trained_on():
    run = make_run("rigl_itop", mixup=0.8)
    images, labels = next(iter(serve(run, 0)))
    seen = next_batches(run)[0]
    assert labels.dim() == 2 and torch.equal(seen[0], images) and torch.equal(seen[1], labels)


def test_the_sheet_shows_shares_worked_out_by_hand_and_chooses_its_words(tmp_path):
    growths = [make_growth(seed, shared) for seed, shared in enumerate((80, 81, 82))]
    fp32 = make_runs("granet", [90.0, 90.1, 90.2], environment={"precision": "fp32"})
    worse = make_runs("granet", [80.0, 80.1, 80.3], environment={"precision": "bf16"}, page={"variant": "other"})
    text = render_precision(growths, [*fp32, *worse], [], "precision", "records")
    assert render_precision(growths[::-1], [*worse, *fp32][::-1], [], "precision", "records") == text
    row = table(text, 0)[1]
    assert row[:7] == ["Digits", "granet", "90 %", "3", "300", "81.00 ± 1.00", "30.00 ± 0.00"]
    # 80, 81 and 82 of 110, 109 and 108; 30 of 170
    assert row[7:10] == ["74.32 ± 1.60", "17.65 ± 0.00", "+51.00"] and row[-1] == "3"
    assert table(text, 2)[1:] == [["a&#124;b", "85.0 / 50.0"], ["c", "75.0 / 0.0"]]
    assert table(text, 3)[1][3:] == ["0.00 / 0.00", "1.00 / 90.00", "10.00", "0.00", "0.900", "·"]
    assert table(text, 4)[1][-1] == "**worse**" and "bf16 costs accuracy" in text
    assert "picks 81.0 % of the weights that fp32 picks, where another batch of the same data picks 30.0 %" in text
    same = make_runs("granet", [90.1, 90.0, 90.2], environment={"precision": "bf16"})
    shown = render_precision(growths, [*fp32, *same], [], "precision", "records")
    assert "no difference shown in 1" in shown and "a failure in bf16 is not seen here" in shown
    few = render_precision(growths[:2], [*fp32, *same[:2]], [], "precision", "records")
    assert "too few seeds" in few and "not decided yet in 1" in few and "**So" not in few


def test_measurements_of_other_settings_have_rows_of_their_own_and_the_first_of_a_seed_counts():
    usual = [make_growth(seed, 80) for seed in range(3)]
    page = {**usual[0]["page"], "changed": {"epochs": 5, "precision": "fp32", "data_dir": "x"}}

    def late(seed: int, shared: int, **more: Any) -> dict[str, Any]:
        update = {**make_growth(seed, shared)["updates"][0], "step": 12}
        return make_growth(seed, updates=[update], run=f"other.s{seed}", **more)

    other = [late(seed, 85, page=page) for seed in range(3)]
    repeat = make_growth(0, 60, run="zz.digits")
    text = render_precision([*usual, *other, repeat], [], [], "precision", "records")
    assert [row[0] for row in table(text, 0)[1:]] == ["Digits", "Digits, with epochs = 5"]
    assert [row[5] for row in table(text, 0)[1:]] == ["80.00 ± 0.00", "85.00 ± 0.00"]
    slower = [late(seed, 70, method={"label": "rigl", "sha256": "1" * 64}) for seed in range(3)]
    steps = table(render_precision([*usual, *slower], [], [], "precision", "records"), 1)[1:]
    assert steps == [["step 10", "80.0 / 30.0", "·"], ["step 12", "·", "70.0 / 30.0"]]


def test_of_a_repeated_measurement_the_first_counts(tmp_path):
    write_growth(make_growth(0, 80), tmp_path)
    assert write_growth(make_growth(0, 60), tmp_path).name.endswith(".2.json")
    (growth,), problems = load_growth(tmp_path)
    assert not problems and growth["updates"][0]["bf16"]["shared"] == [50, 30]
    nested = '{"a":' * 950 + "1" + "}" * 950
    (tmp_path / "nested.json").write_text(nested)
    found, problems = load_growth(tmp_path)
    assert found == [growth] and [problem.file for problem in problems] == ["precision/nested.json"]


def test_a_pair_whose_images_lie_elsewhere_is_a_pair():
    fp32 = make_runs("granet", [90.0, 90.1, 90.2], environment={"precision": "fp32"})
    page = {"variant": "other", "changed": {"data_dir": "elsewhere"}, "settings": {"data_dir": "elsewhere"}}
    bf16 = make_runs("granet", [80.0, 80.1, 80.3], environment={"precision": "bf16"}, page=page)
    text = render_precision([make_growth()], [*fp32, *bf16], [], "precision", "records")
    assert table(text, 4)[1][-1] == "**worse**"


def test_the_sheet_is_verified_and_damaged_files_are_told(tmp_path):
    page, folder = tmp_path / "LEADERBOARD.md", tmp_path / "precision"
    write_growth(make_growth(), folder)
    other = write_growth(make_growth(1), folder)
    assert len(load_growth(folder)[0]) == 2
    assert "PRECISION.md does not match the records" in find_stale(tmp_path / "records", page)
    build_all(tmp_path / "records", page)
    assert find_stale(tmp_path / "records", page) == []
    other.write_text(other.read_text().replace('"by_index":9', '"by_index":8'))
    faults = find_stale(tmp_path / "records", page)
    assert len(faults) == 2 and f"precision/{other.name}" in faults[0] and "PRECISION.md" in faults[1]


def test_the_command_writes_a_file_for_each_run_once(tmp_path, capsys):
    words = ["--args", "epochs=1 update_every=8", "--sparsity", "0.9", "--seed", "0", "--to", str(tmp_path)]
    assert precision.main([*words, "--method", "rigl_itop"]) == 0
    (file,) = tmp_path.iterdir()
    (growth,), problems = load_growth(tmp_path)
    assert not problems and [row["step"] for row in growth["updates"]] == [8, 16]
    assert precision.main([*words, "--method", "rigl_itop"]) == 0 and list(tmp_path.iterdir()) == [file]
    words[words.index("--seed") + 1] = "1"
    assert precision.main([*words, "--method", "rigl_itop,set"]) == 2  # before anything is trained
    assert "method 'set' grows by no dense gradient" in capsys.readouterr().err and list(tmp_path.iterdir()) == [file]
