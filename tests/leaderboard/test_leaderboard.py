"""Promises of the leaderboard: a pure function of the records, with nothing averaged, dropped or chosen in silence."""

from __future__ import annotations

import re
from typing import Any

import pytest

from leaderboard import Problem
from leaderboard.tables.table import duration, flops, make_rows, multiple
from tests.harness.record_factory import USAGE, make_record, named, row, show, table


def details(text: str, label: str) -> dict[str, str]:
    """Return the one row of the details (a section's last table) that starts with `label`, by column."""
    return dict(zip(table(text, -1)[0], row(text, label, -1), strict=True))


def with_accuracy(*values: float, **changes: Any) -> list[dict[str, Any]]:
    return [make_record(seed=seed, accuracy_pct={"last_epoch": value}, **changes) for seed, value in enumerate(values)]


# Numbers


def test_mean_and_sample_deviation_are_those_worked_by_hand() -> None:
    # mean 93, deviations -3, -1, 4: 26 / 2 = 13, root 3.606 (with ddof = 0 it would be 2.94)
    assert row(show(*with_accuracy(90.0, 92.0, 97.0)), "granet")[1] == "93.00 ± 3.61 (n=3)"


def test_costs_are_multiples_of_dense_and_absolute_for_dense() -> None:
    # 2,800 of 10,000 multiply-adds; the whole run is 3 x 300 images: 2 x 10,000 x 900 = 1.8e7 FLOPs when dense
    text = show(make_record(), make_record(sparsity=0.8), make_record(method={"name": "dense"}))
    assert table(text)[0] == [
        "method",
        *["sparsity 80 %: accuracy, %", "rank", "inference FLOPs", "training FLOPs"],
        *["sparsity 90 %: accuracy, %", "rank", "inference FLOPs", "training FLOPs"],
    ]
    at_80, at_90 = ["92.50 (n=1)", "·", "0.36×", "0.36×"], ["92.50 (n=1)", "·", "0.28×", "0.28×"]
    assert row(text, "granet") == ["granet", *at_80, *at_90]
    assert row(text, "dense") == ["dense", "92.50 (n=1)", "·", "2.0e4", "1.8e7", *["·"] * 4]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (multiple(0.194), "0.19×"),
        (multiple(0.0996), "0.10×"),
        (multiple(0.0994), "0.099×"),
        (multiple(0.00421), "0.0042×"),
        (flops(4_089_184_256), "8.2e9"),
        (duration(41.26), "41.3 s"),
        (duration(7199), "7199 s"),
        (duration(7200), "2.0 h"),
    ],
)
def test_numbers_are_shown_with_the_digits_that_matter(shown: str, expected: str) -> None:
    assert shown == expected


def test_the_details_have_what_the_main_table_has_no_room_for() -> None:
    shown = details(show(*with_accuracy(90.0, 92.0), make_record(method={"name": "dense"})), "granet")
    assert shown["seeds"] == "0, 1"
    assert shown["last epoch, %"] == "91.00 ± 1.41"
    assert shown["selected on validation, %"] == "92.00 ± 0.00"
    assert shown["best on test, % (not for comparison: chosen on the test set)"] == "95.00 ± 0.00"
    assert (shown["density, prunable weights"], shown["density, all parameters"]) == ("0.1", "0.2174")  # 250 / 1150
    assert (shown["inference FLOPs"], shown["training FLOPs"]) == ("5.6e3", "5.0e6")  # 2 x 2,800; x 900 = 5.04e6
    assert (shown["training time"], shown["images/s"], shown["notes"]) == ("40.0 s", "8", "·")
    assert shown["records"] == "[seed 0](records/0.json), [seed 1](records/1.json)"


def test_times_of_different_devices_are_not_averaged() -> None:
    gpu = make_record(seed=1, environment={"device": "GPU X"}, time={"train_s": 4.0, "images_per_s": 1234.0})
    text = show(make_record(), gpu)
    assert details(text, "granet")["training time"] == "GPU X, 2 threads: 4.0 s; cpu, 2 threads: 40.0 s"
    assert details(text, "granet")["images/s"] == "GPU X, 2 threads: 1,234; cpu, 2 threads: 8"
    assert "devices: GPU X (1 run), cpu (1 run)." in text
    assert row(text, "granet")[1] == "92.50 ± 0.00 (n=2)"
    alone = make_record(seed=1, environment={"threads": 1}, time={"train_s": 60.0})
    shown = details(show(make_record(), alone), "granet")["training time"]
    assert shown == "cpu, 1 thread: 60.0 s; cpu, 2 threads: 40.0 s"


def test_what_runs_took_has_columns_where_records_tell_it() -> None:
    first = make_record(usage=USAGE, time={"updates_s": 0.5}, updates=12)
    half = {"process_peak_bytes": 2**30, "gpu": {"of": USAGE["gpu"]["of"], "energy_j": 3_000.0}}
    runs = [first, make_record(seed=1, usage=half), make_record(seed=2), make_record(method={"name": "set"})]
    text = show(*runs)
    shown = details(text, "granet")
    assert shown["mask updates"] == "0.5 s in 12 updates"
    assert shown["peak memory"] == "process 2.00 GiB, device 5.00 GiB"
    assert shown["energy"] == (
        "6 kJ, 70 % at work, up to 2 processes: NVIDIA X (whole device), NVML; "
        "500 J: 1 processor package (whole machine), RAPL"
    )
    assert {details(text, "set")[name] for name in ("mask updates", "peak memory", "energy")} == {"·"}
    repeat = {**first, "finished": "2999-01-01T00:00:00Z"}
    assert "Mask updates" not in show(*runs[2:], make_record(), repeat)  # it does not count, so it has no column
    without = show(*runs[2:])
    assert "**Mask updates, peak memory, energy**" in text and "peak memory" not in without + show()
    assert not {"mask updates", "energy"} & set(details(without, "granet"))


# Nothing in silence


def test_diverged_runs_are_counted_and_not_averaged() -> None:
    diverged = make_record(seed=2, status="diverged", accuracy_pct={"best_on_test": 10.0}, time={"train_s": 1.0})
    text = show(*with_accuracy(93.0, 93.2), diverged)
    assert row(text, "granet")[1] == "93.10 ± 0.14 (n=2, 1 diverged)"
    shown = details(text, "granet")
    assert (shown["seeds"], shown["notes"]) == ("0, 1, 2", "diverged (seed 2)")
    assert shown["best on test, % (not for comparison: chosen on the test set)"] == "95.00 ± 0.00"
    assert shown["training time"] == "40.0 s"
    assert "[seed 2](records/2.json)" in shown["records"]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_one_seed_counts_once_and_the_first_that_finished_is_the_one(order: list[int]) -> None:
    times = ["2025-01-31T12:01:00Z", "2025-01-31T12:01:00.500000+00:00", "2025-02-01T12:00:00Z"]
    runs = [make_record(run="r", finished=times[n], accuracy_pct={"last_epoch": 90.0 + n}, updates=n) for n in range(3)]
    text = show(*(runs[n] for n in order))
    assert row(text, "granet")[1] == "90.00 (n=1)"
    shown = details(text, "granet")
    assert (shown["seeds"], shown["notes"]) == ("0", "repeats: 2")
    assert shown["records"].count("[repeat of seed 0]") == 2
    assert "the first that finished counts" in text


def test_a_repeat_does_not_replace_a_diverged_run() -> None:
    text = show(make_record(status="diverged"), make_record(finished="2025-02-01T12:00:00Z"))
    assert row(text, "granet")[1] == "· (n=0, 1 diverged)"


def test_empty_layers_skipped_steps_and_uncommitted_code_are_told() -> None:
    dirty = {"weights": {"nonzero": 90}, "git": {"dirty": True}}
    runs = [make_record(skipped_steps=3), make_record(seed=1, skipped_steps=3, **dirty)]
    for run in runs:
        run["empty_layers"] = ["first.weight"]
    notes = details(show(*runs), "granet")["notes"]
    told = ["empty layers: first.weight (seed 0, 1)", "skipped steps: 3 (seed 0, 1)"]
    assert notes.split("; ") == [*told, "active weights that are zero: 10 (seed 1)", "uncommitted code (seed 1)"]


def test_skipped_files_are_listed_with_reasons() -> None:
    text = show(problems=(Problem("b.json", "x is missing"), Problem("a|.json", "<b>\nbad")))
    assert text.endswith("## Skipped files\n\n- a&#124;.json: &lt;b&gt; bad\n- b.json: x is missing\n")


# What shares a table, and in which order


def test_groups_come_in_the_order_of_the_paper() -> None:
    groups = ["control", "dense-to-sparse", "sparse-to-sparse", "before training"]
    runs = [make_record(method={"name": f"m{n}", "group": group}) for n, group in enumerate(groups)]
    text = show(*runs, make_record(method={"name": "dense"}))
    assert [cells[0] for cells in table(text)[1:]] == [
        *["*dense*", "dense", "*before training*", "m3", "*sparse-to-sparse*", "m2"],
        *["*dense-to-sparse*", "m1", "*controls*", "m0"],
    ]


def test_an_edited_method_is_another_row() -> None:
    text = show(make_record(), make_record(seed=1, method={"sha256": "ef" * 32}))
    assert [cells[0] for cells in table(text)[2:]] == ["granet (file abababab)", "granet (file efefefef)"]


def of_setting(every: int, day: int, seed: int = 0, asked: bool = False, **method: Any) -> dict[str, Any]:
    """Return a run of rigl_itop with this update_every, of the page's `methods` or `asked` for, finished on a day."""
    told = {"label": f"rigl_itop (update_every={every})", "changed": {"update_every": every}} if asked else {}
    return make_record(
        run=f"rigl_itop.s{seed}.{every}",
        seed=seed,
        started=f"2025-02-{day:02}T00:00:00Z",
        finished=f"2025-02-{day:02}T01:00:00Z",
        method={"name": "rigl_itop", "settings": {"prune_rate": 0.5, "update_every": every}, **told, **method},
    )


def first_column(*records: dict[str, Any]) -> dict[str, str]:
    """Return the accuracies of the main table by the label of their row."""
    return {cells[0]: cells[1].split("(")[1] for cells in table(show(*records))[2:]}


def test_runs_of_another_setting_of_the_page_are_another_row_not_repeats() -> None:
    old, new = [of_setting(50, 1, seed) for seed in (0, 1)], [of_setting(140, 9, seed) for seed in (0, 1, 2)]
    assert first_column(*old, *new) == {"rigl_itop": "n=3)", "rigl_itop (update_every=50)": "n=2)"}
    assert first_column(*new, *old) == first_column(*old, *new) and "repeat of seed" not in show(*old, *new)
    # the newest runs have the plain label, whichever setting they have
    assert first_column(*new, of_setting(50, 10)) == {"rigl_itop": "n=1)", "rigl_itop (update_every=140)": "n=3)"}


def test_equal_settings_share_a_row_whether_the_page_or_the_user_chose_them() -> None:
    old, new, asked = of_setting(50, 1), of_setting(140, 9), of_setting(50, 5, seed=1, asked=True)
    assert first_column(old, new, asked) == {"rigl_itop": "n=1)", "rigl_itop (update_every=50)": "n=2)"}
    # asked for, so no default, while no run says what the default is now
    assert first_column(old, asked) == {"rigl_itop (update_every=50)": "n=2)"}
    assert first_column(new, of_setting(140, 5, seed=1, asked=True)) == {"rigl_itop": "n=2)"}


def test_a_control_is_told_apart_by_the_row_it_was_made_from() -> None:
    donors = [of_setting(50, 1), of_setting(140, 9)]
    controls = []
    for donor, day in zip(donors, (2, 10), strict=True):
        about = {"run": donor["run"], "label": "rigl_itop", "kind": "densities", "masks_sha256": donor["masks_sha256"]}
        told = {"densities": "rigl_itop"}
        method = {"name": "static", "label": "static (densities=rigl_itop)", "changed": told, "settings": told}
        method |= {"group": "control", "donor": {**about, "sparsity": 0.9, "seed": 0}}
        stamp = f"2025-02-{day:02}T01:00:00Z"
        controls.append(make_record(run=f"static.{day}", method=method, started=stamp, finished=stamp))
    made = {row.label: (row.made_from, len(row.cells[0.9].counted)) for row in make_rows(named(*donors, *controls))}
    assert made == {
        "rigl_itop": ("", 1),
        "rigl_itop (update_every=50)": ("", 1),
        "static (densities=rigl_itop (update_every=50))": ("rigl_itop (update_every=50)", 1),
        "static (densities=rigl_itop)": ("rigl_itop", 1),
    }
    versions = [of_setting(50, 1), of_setting(50, 9, sha256="ef" * 32)]
    versions[1]["run"] = controls[1]["method"]["donor"]["run"]
    assert [row.label for row in make_rows(named(*versions, *controls))][2:] == [
        "static (densities=rigl_itop (file abababab))",
        "static (densities=rigl_itop (file efefefef))",
    ]


def test_no_two_rows_have_one_name_whatever_records_say() -> None:
    alike = [
        make_record(seed=seed, method={"settings": {"a": value}}) for seed, value in enumerate((1, "1", True, "x"))
    ]
    loose = make_record(method={"label": "granet (a=2)", "settings": {"a": 1}})  # the label says otherwise
    labels = [row.label for row in make_rows(named(*alike, loose))]
    assert len(set(labels)) == 5 and "granet (a=2)" in labels


STARTED = {"init": "runs/a/weights.safetensors", "init_sha256": "34064d21" + 56 * "0", "lr": 1}


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"protocol": 2}, "(protocol 2, variant 0a1b2c3d, data d1d1d1d1d1d1, fp32)"),
        ({"page": {"variant": "ffff0000"}}, "(protocol 1, variant ffff0000, data d1d1d1d1d1d1, fp32)"),
        ({"environment": {"precision": "bf16"}}, "(protocol 1, variant 0a1b2c3d, data d1d1d1d1d1d1, bf16)"),
        ({"data": {"fingerprint": "e2" * 32}}, "(protocol 1, variant 0a1b2c3d, data e2e2e2e2e2e2, fp32)"),
        ({"page": {"variant": "f", "changed": {"epochs": 3, "b": ["x"]}}}, r'ResNet-20 on digits, with b = \["x"\], '),
        ({"page": {"variant": "f", "changed": STARTED}}, "ResNet-20 on digits, from weights 34064d21, with lr = 1"),
        ({"page": {"variant": "f", "changed": {"pretrained": True}}}, "ResNet-20 on digits, from timm's weights"),
        ({"page": {"name": "other", "title": "Other"}}, "Other"),
    ],
)
def test_other_protocols_settings_and_data_never_share_a_table(changes: dict[str, Any], title: str) -> None:
    text = show(*with_accuracy(90.0), make_record(seed=1, **changes))
    headings = re.findall(r"^## (.*)", text, flags=re.MULTILINE)
    assert len(headings) == len(set(headings)) == 2
    assert any(heading.removeprefix("ResNet-20 on digits ").startswith(title) for heading in headings)
    assert "n=2" not in text and text.count("(n=1)") == 2


def test_starts_whose_hashes_begin_alike_are_told_apart() -> None:
    starts = [{**STARTED, "init_sha256": f"34064d21{end}"} for end in "ab"]
    headings = show(*(make_record(page={"changed": start, "variant": f"v{n}"}) for n, start in enumerate(starts)))
    assert len(set(re.findall(r"^## (.*)", headings, flags=re.MULTILINE))) == 2


def test_newest_protocol_first_and_changed_pages_last() -> None:
    pages = [{"name": "a", "title": "A", "changed": {"lr": 1}, "variant": "1"}, {"name": "b", "title": "B"}]
    runs = [make_record(page=page) for page in pages] + [make_record(protocol=2, page={"name": "c", "title": "C"})]
    assert re.findall(r"^## (.*)", show(*runs), flags=re.MULTILINE) == ["C", "B", "A, with lr = 1"]


def test_a_method_that_only_diverged_is_still_there() -> None:
    text = show(make_record(status="diverged"), make_record(status="diverged", seed=1))
    assert row(text, "granet") == ["granet", "· (n=0, 2 diverged)", "·", "·", "·"]
