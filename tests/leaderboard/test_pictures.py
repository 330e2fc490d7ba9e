"""Promises of the pictures: the table's numbers and no others, the same bytes everywhere, no edit unseen."""

from __future__ import annotations

import io
import itertools
import os
import random
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from leaderboard.drawing import draw
from leaderboard.drawing import style as draw_style
from leaderboard.drawing.figures import make_figure
from leaderboard.drawing.pictures import (
    MOST_POINTS,
    AccuracyPoint,
    Picture,
    accuracy_points,
    cost_points,
    curves_of,
    layer_densities,
    list_pictures,
    make_series,
    name_pictures,
    pareto_front,
)
from leaderboard.store.records import read_records
from leaderboard.tables.comparisons import is_replaced
from leaderboard.tables.sections import make_sections, section_name
from leaderboard.tables.table import make_rows, mean_and_std, multiple
from tests.harness.record_factory import make_epoch, make_record, make_runs

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = read_records(ROOT / "leaderboard" / "records")[0]
SECTIONS = [runs for _, runs in make_sections(COMMITTED)]
SUITE = ["dense", "gmp", "granet", "grasp", "rigl", "rigl_itop", "set", "small_dense", "snip", "static"]
EVIL = ["$x^2$ <b>bold</b>", "$\\bad{", "W" * 300, "a--b-->c", "\x1b[31mred\u202e", "_hidden", "\u4e2d\u6587", "\x07"]


def make(label: str, sparsity: float, seed: int = 0, accuracy: float = 92.5, **changes: Any) -> dict[str, Any]:
    """Return a record as read from a file of its own."""
    method = {"name": label, "label": label, **changes.pop("method", {})}
    record = make_record(sparsity=sparsity, seed=seed, accuracy_pct={"last_epoch": accuracy}, method=method, **changes)
    return {**record, "file": f"{label}.{sparsity}.{seed}.json"}


def without_exploration(epochs: int = 3) -> list[dict[str, Any]]:
    """Return the history of a record older than the column `explored`."""
    rows = [make_epoch(epoch, 92.5) for epoch in range(1, epochs + 1)]
    return [{key: value for key, value in row.items() if key != "explored"} for row in rows]


def make_dense(accuracy: float = 94.0, seed: int = 0) -> dict[str, Any]:
    return make("dense", 0.0, seed, accuracy, method={"group": "dense", "budget": "dense"})


def make_section() -> list[dict[str, Any]]:
    """Return three methods at two sparsities with two seeds, a dense run, and a history with exploration."""
    runs = [make_dense()]
    for number, (label, sparsity, seed) in enumerate(itertools.product(("granet", "set", "mine"), (0.9, 0.98), (0, 1))):
        history = [{**make_epoch(epoch, 90 + number / 4), "explored": 0.1 * epoch} for epoch in (1, 2, 3)]
        runs.append(make(label, sparsity, seed, 90 + number / 4, history=history))
    return runs


def kinds(runs: list[dict[str, Any]]) -> list[str]:
    return [picture.kind for picture in list_pictures(runs)]


def picture_of(kind: str, runs: list[dict[str, Any]]) -> Picture:
    (found,) = [picture for picture in list_pictures(runs) if picture.kind == kind]
    return found


# Numbers


def test_accuracy_and_interval_are_those_worked_by_hand() -> None:
    # mean 93, sd 3.60555; t(2 degrees of freedom, 97.5 %) = 4.30265; half width 4.30265 x 3.60555 / sqrt(3) = 8.95671
    series = make_series([make("granet", 0.9, seed, value) for seed, value in enumerate((90.0, 92.0, 97.0))])
    (point,) = accuracy_points(series, [0.9])
    assert (point.label, point.sparsity, point.seeds_pct, point.accuracy_pct) == ("granet", 0.9, [90, 92, 97], 93.0)
    assert point.low_pct == pytest.approx(93 - 8.95671, abs=1e-4)
    assert point.high_pct == pytest.approx(93 + 8.95671, abs=1e-4)


@pytest.mark.parametrize("values", [(90.0,), (90.0, 90.0)])
def test_one_seed_and_seeds_that_agree_have_no_interval(values: tuple[float, ...]) -> None:
    (point,) = accuracy_points(make_series([make("set", 0.9, seed, value) for seed, value in enumerate(values)]), [0.9])
    assert (point.seeds_pct, point.low_pct, point.high_pct) == (list(values), None, None)


@pytest.mark.parametrize("runs", SECTIONS, ids=[section_name(runs[0]) for runs in SECTIONS])
def test_the_numbers_drawn_are_the_tables(runs: list[dict[str, Any]]) -> None:
    rows = [row for row in make_rows(runs) if not row.made_from]  # controls made from a row are in no picture
    rows = [row for row in rows if not is_replaced(row, rows)]
    series = make_series(runs)
    assert len(rows) == len(series) > 1
    shown = sorted({sparsity for row in rows for sparsity in row.cells if not row.dense})
    accuracy = {(point.label, point.sparsity): point for point in accuracy_points(series, shown)}
    costs = {(point.label, point.sparsity): point for point in cost_points(series)}
    for row, one in zip(rows, series, strict=True):
        for sparsity, cell in row.cells.items():
            place = (one.label, sparsity)
            reached = [run["accuracy_pct"]["last_epoch"] for run in cell.finished]
            assert cell.accuracy().startswith(mean_and_std(reached))
            assert f"{accuracy[place].accuracy_pct:.2f}" == cell.accuracy().split(" ")[0]
            assert costs[place].accuracy_pct == accuracy[place].accuracy_pct
            assert multiple(costs[place].train_share) == cell.cost("train", False)
            assert multiple(costs[place].inference_share) == cell.cost("inference", False)


def test_curves_end_at_the_tables_costs_and_densities() -> None:
    series = make_series(COMMITTED)
    costs = {(point.label, point.sparsity): point.train_share for point in cost_points(series)}
    ends = {(c.label, c.sparsity): c.values[-1] for c in curves_of(series, "train_share", (0.9, 0.98))}
    assert len(ends) > 15
    assert ends == pytest.approx({place: costs[place] for place in ends}, rel=1e-12)
    ended = {(one.label, asked): runs for one in series for asked, runs in one.cells.items()}
    for curve in curves_of(series, "density", (0.9, 0.98)):
        densities = [
            run["weights"]["active"] / run["weights"]["prunable"] for run in ended[curve.label, curve.sparsity]
        ]
        assert curve.values[-1] == pytest.approx(sum(densities) / len(densities), rel=1e-12)
        near = 0.005 if curve.label.startswith("srigl") or "_structured" in curve.label else 1e-5  # of whole filters
        assert curve.values[-1] == pytest.approx(1 - curve.sparsity, abs=near)


@pytest.mark.parametrize("seed", range(5))
def test_the_pareto_front_is_that_of_the_definition(seed: int) -> None:
    rng = random.Random(seed)
    points = [(rng.randrange(8) / 8, float(rng.randrange(8))) for _ in range(rng.randrange(1, 25))]

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    expected = {point for point in points if not any(beats(other, point) for other in points)}
    front = pareto_front(points)
    assert set(front) == expected and len(front) == len(expected)
    assert front == sorted(front) and [accuracy for _, accuracy in front] == sorted(a for _, a in front)


def test_layer_densities_are_means_over_seeds_in_network_order_and_empty_layers_stay() -> None:
    full, empty = make("snip", 0.9, 0), make("snip", 0.9, 1)
    for layer, active in zip(empty["layers"], (100, 100, 0), strict=True):
        layer["active"] = active
    (line,) = layer_densities(make_series([full, empty]), [0.9])
    assert line.layers == ["first.weight", "second.weight"]  # the stem is not prunable
    assert line.densities == pytest.approx([(60 / 600 + 100 / 600) / 2, (40 / 400 + 0) / 2])
    assert line.empty == [0, 1]


def test_dense_and_narrower_networks_have_no_layer_densities_and_no_curves() -> None:
    small = make("small_dense", 0.9, method={"group": "control", "budget": "outcome"})
    small["weights"]["dense_prunable"] = 5000
    series = make_series([make_dense(), small, make("set", 0.9)])
    assert [one.label for one in series] == ["dense", "set", "small_dense"]
    assert [line.label for line in layer_densities(series, [0.0, 0.9])] == ["set"]
    assert [curve.label for curve in curves_of(series, "density", [0.0, 0.9])] == ["set"]


def test_curves_are_means_where_every_seed_has_a_value() -> None:
    def history(*rows: tuple[int, float | None]) -> list[dict[str, Any]]:
        return [{**make_epoch(epoch, 92.5), "explored": value} for epoch, value in rows]

    runs = [
        make("set", 0.9, 0, history=history((1, 0.2), (2, 0.4), (3, None), (4, 0.8))),
        make("set", 0.9, 1, history=history((2, 0.6), (3, 0.7), (4, 1.0))),
        make("set", 0.9, 2, history=without_exploration()),
    ]
    (curve,) = curves_of(make_series(runs), "explored", [0.9])
    assert curve.epochs == [2.0, 4.0]
    assert curve.values == pytest.approx([0.5, 0.9])


def test_diverged_runs_repeats_and_controls_from_a_donor_enter_no_mean() -> None:
    donor = {"run": "r", "label": "granet", "sparsity": 0.9, "seed": 0, "kind": "masks", "masks_sha256": "ab" * 32}
    runs = [
        make("granet", 0.9, 0, 90.0),
        {**make("granet", 0.9, 0, 99.0, finished="2025-01-31T13:00:00+00:00"), "file": "repeat.json"},
        make("granet", 0.9, 1, status="diverged"),
        make("static (masks)", 0.9, 0, 50.0, method={"group": "control", "donor": donor}),
    ]
    (point,) = accuracy_points(make_series(runs), [0.9])
    assert (point.label, point.seeds_pct, point.accuracy_pct) == ("granet", [90.0], 90.0)


# Which pictures there are


def test_a_row_that_a_newer_version_of_its_file_replaced_is_in_no_picture() -> None:
    old = {"method": {"sha256": "ef" * 32}, "started": "2024-01-01T00:00:00Z", "finished": "2024-01-01T01:00:00Z"}
    first = make_runs("granet", (90.0, 91.0), **old)

    def labels(*runs: list[dict[str, Any]]) -> list[str]:
        return [one.label for one in make_series(list(itertools.chain(*runs)))]

    assert labels(first, make_runs("granet", (92.0, 93.0))) == ["granet"]
    for newer in ((92.0,), (92.0, None)):  # fewer runs do not replace it
        assert len(labels(first, make_runs("granet", newer))) == 2
    elsewhere = make_runs("granet", (92.0, 93.0), sparsity=0.98)
    other = make_runs("granet", (92.0, 93.0), method={"changed": {"update_every": 7}})
    assert len(labels(first, elsewhere)) == len(labels(first, other)) == 2


def test_a_section_has_all_five_pictures_and_exploration_only_where_records_have_it() -> None:
    assert kinds(make_section()) == ["accuracy", "cost", "layers", "time", "exploration"]
    assert kinds([make("set", 0.9, history=without_exploration())]) == ["accuracy", "cost", "layers", "time"]


@pytest.mark.parametrize("runs", [[], [make_dense()], [make("set", 0.9, status="diverged"), make_dense()]])
def test_without_a_finished_sparse_run_there_is_no_picture(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    assert list_pictures(runs) == []
    assert draw.draw_all(name_pictures("empty", runs), tmp_path / "pictures") == []
    assert not (tmp_path / "pictures").exists()


def test_the_four_highest_sparsities_have_panels_and_the_caption_says_what_is_left_out() -> None:
    runs = [make("set", sparsity) for sparsity in (0.5, 0.8, 0.9, 0.95, 0.98)]
    picture = picture_of("layers", runs)
    assert sorted({line.sparsity for line in picture.numbers}) == [0.8, 0.9, 0.95, 0.98]
    assert picture.caption.endswith("Left out: sparsity 50 %.")
    assert len(picture_of("accuracy", runs).numbers) == 4 and len(picture_of("cost", runs).numbers) == 5


def test_titles_and_captions_hold_nothing_from_records() -> None:
    evil = [make(label, 0.9, page={"title": "<script>"}) for label in EVIL]
    plain_runs = [make(f"method_{number}", 0.9) for number in range(len(EVIL))]
    assert all("controls made from another run" in picture.caption for picture in list_pictures(plain_runs))
    texts = [[(p.title, p.caption) for p in list_pictures(runs)] for runs in (evil, plain_runs)]
    assert texts[0] == texts[1]


# Style


def test_the_suites_methods_differ_in_colour_and_in_black_and_white() -> None:
    styles = draw_style.styles_of([*SUITE, "granet (start_sparsity=0.0)"])
    assert len({style.colour for style in styles.values()}) == len(styles)
    assert len({style.shape[:2] for style in styles.values()}) == len(styles)
    assert len({(style.marker, style.dash) for style in styles.values()}) == len(styles)


def test_a_methods_style_does_not_depend_on_the_others() -> None:
    many = [*SUITE, *(f"mine_{number}" for number in range(15))]
    together = draw_style.styles_of(many)
    assert together == draw_style.styles_of(reversed(many))
    assert all(together[label] == draw_style.styles_of([label])[label] for label in SUITE)
    alone = draw_style.styles_of(["mine_3"])["mine_3"]
    assert alone == draw_style.styles_of(["mine_3", "dense", "set"])["mine_3"]


def test_twenty_five_methods_are_told_apart_without_colour() -> None:
    rng = random.Random(0)
    styles = draw_style.styles_of([*SUITE, *(f"method {rng.random()}" for _ in range(15))])
    assert len({style.shape for style in styles.values()}) == 25
    others = [style.colour for label, style in styles.items() if label not in SUITE]
    assert max(others.count(colour) for colour in others) == 2  # 15 methods, 10 colours


# Files


def test_a_collapsed_method_does_not_flatten_the_others_and_a_wide_interval_is_cut() -> None:
    low, high = draw_style.accuracy_limits([10.0, 92.0, 92.5, 93.0, 93.5, 94.0], [40.0, 120.0])
    assert 90 < low < 92 and 94 < high < 96
    low, high = draw_style.accuracy_limits([99.5, 100.0], [99.0, 100.4])
    assert 98 < low < 99 and 100 < high < 100.2
    assert draw_style.accuracy_limits([50.0], []) == pytest.approx((49.94, 50.06))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("pictures")
    draw.draw_all(name_pictures("page.1", make_section()), folder)
    return folder


@pytest.fixture
def files(drawn: Path, tmp_path: Path) -> Path:
    """Return a folder of pictures that a test may damage."""
    for path in drawn.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def faults(folder: Path, runs: list[dict[str, Any]] | None = None) -> list[str]:
    return draw.check_all(name_pictures("page.1", make_section() if runs is None else runs), folder)


def test_every_picture_is_written_as_svg_and_png_and_passes_the_check(drawn: Path) -> None:
    names = [f"page.1.{kind}.{form}" for kind in kinds(make_section()) for form in ("svg", "png")]
    assert sorted(path.name for path in drawn.iterdir()) == sorted(names)
    assert faults(drawn) == []
    for path in drawn.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    for path in drawn.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG") and matplotlib.image.imread(path).shape[1] == 1020


def test_the_order_of_runs_does_not_matter() -> None:
    runs = make_section()
    expected = list_pictures(runs)
    random.Random(1).shuffle(runs)
    assert list_pictures(runs) == expected


def test_another_process_with_settings_of_its_own_draws_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nlines.linewidth: 9\nsvg.fonttype: none\nsavefig.dpi: 30\n")
    code = (
        "import sys; from pathlib import Path; from tests.leaderboard.test_pictures import make_section\n"
        "from leaderboard.drawing.pictures import name_pictures\n"
        "from leaderboard.drawing import draw\n"
        "draw.draw_all(name_pictures('page.1', make_section()), Path(sys.argv[1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    environment = {
        **os.environ,
        "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": "7",
    }
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], env=environment, check=True)
    for path in drawn.iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_files_that_are_current_are_not_touched(files: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in files.iterdir()}
    draw.draw_all(name_pictures("page.1", make_section()), files)
    assert {path.name: path.stat().st_mtime_ns for path in files.iterdir()} == before


@pytest.mark.parametrize("form", ["svg", "png"])
def test_an_edited_picture_is_found_and_mended(files: Path, drawn: Path, form: str) -> None:
    path = files / f"page.1.cost.{form}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert faults(files) == [f"picture page.1.cost.{form} was changed after it was drawn"]
    draw.draw_all(name_pictures("page.1", make_section()), files)
    assert path.read_bytes() == (drawn / path.name).read_bytes()


def test_an_edited_svg_with_a_fitting_seal_is_found_by_drawing_it_again(files: Path) -> None:
    path = files / "page.1.cost.svg"
    data = path.read_bytes()
    body = data[: -len(draw.make_end(b"", "0" * 64))]
    path.write_bytes(draw.seal(body.replace(b"#d55e00", b"#009e73")))
    assert faults(files) == [f"picture page.1.cost.svg is not what the drawing code (version {draw.DRAWING}) draws"]


def test_another_matplotlibs_picture_is_held_to_its_digest_alone(files: Path) -> None:
    path = files / "page.1.cost.svg"
    body = path.read_bytes()[: -len(draw.make_end(b"", "0" * 64))]
    other = body.replace(f"matplotlib {matplotlib.__version__}".encode(), b"matplotlib 9.9.9").replace(b"\n", b"\n ")
    path.write_bytes(draw.seal(other))
    assert faults(files) == []
    changed = [*make_section(), make("rigl", 0.9)]
    assert "picture page.1.cost.svg does not match the records" in faults(files, changed)


def test_changed_records_missing_files_and_superfluous_ones_are_named(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = make_section()
    runs[1]["accuracy_pct"]["last_epoch"] += 0.01
    stale = [f"picture page.1.{k}.{form} does not match the records" for k in ("accuracy", "cost") for form in FORMS]
    assert faults(files, runs) == stale
    monkeypatch.setattr(draw, "DRAWING", draw.DRAWING + 1)
    assert faults(files)[0] == "picture page.1.accuracy.svg was drawn by another version of the drawing code"
    monkeypatch.undo()
    (files / "page.1.time.png").unlink()
    assert faults(files) == ["picture page.1.time.png is missing"]
    without = [{**run, "history": without_exploration()} for run in make_section()]
    superfluous = [fault for fault in faults(files, without) if "exploration" in fault]
    assert superfluous == [f"picture page.1.exploration.{f} belongs to no record: delete it" for f in FORMS[::-1]]
    assert len(faults(files / "absent")) == 10


FORMS = ("svg", "png")


@pytest.mark.slow
def test_many_pictures_are_drawn_by_other_processes_to_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    paths = draw.draw_all(name_pictures("page.1", make_section()) | name_pictures("page.2", make_section()), tmp_path)
    assert len(paths) == 20 and all(path.is_file() for path in paths)
    assert not list(tmp_path.glob(".*"))
    for path in paths:
        assert path.read_bytes() == (drawn / path.name.replace("page.2", "page.1")).read_bytes(), path.name


def test_names_from_records_are_drawn_as_they_are_and_nothing_else_comes_of_them() -> None:
    runs = [make(label, sparsity, page={"title": "$\\x$ <script>"}) for label in EVIL for sparsity in (0.9, 0.98)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for picture in list_pictures(runs):
            root = ElementTree.fromstring(draw.render(picture, ["svg"])["svg"])
            tags = {re.sub("{.*}", "", element.tag) for element in root.iter()}
            assert not tags & {"script", "b", "a", "image", "foreignObject"}


def crowded() -> list[dict[str, Any]]:
    """Return 25 methods with long names at five sparsities, one of them collapsed."""
    labels = [*SUITE[1:], *(f"my_method_{number} (alpha=0.{number}, beta=2)" for number in range(15))]
    histories = [{**make_epoch(epoch, 92.5), "explored": epoch / 3} for epoch in (1, 2, 3)]
    return [make_dense()] + [
        make(label, sparsity, accuracy=10.0 if label == "snip" else 90 + len(label) / 10, history=histories)
        for label in labels
        for sparsity in (0.5, 0.8, 0.9, 0.95, 0.98)
    ]


@pytest.mark.parametrize("runs", [crowded(), make_section()], ids=["crowded", "usual"])
def test_no_text_is_cut_off_and_none_lies_on_another(runs: list[dict[str, Any]], monkeypatch: Any) -> None:
    shown: list[tuple[str, Any, float]] = []
    draw_text = matplotlib.text.Text.draw

    def note(text: Any, renderer: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            shown.append((text.get_text(), text.get_window_extent(renderer), text.get_rotation()))
        draw_text(text, renderer)

    monkeypatch.setattr(matplotlib.text.Text, "draw", note)
    for picture in list_pictures(runs):
        shown.clear()
        with matplotlib.rc_context(draw_style.SETTINGS):
            figure = make_figure(picture)
            figure.savefig(io.BytesIO(), format="png")
        assert len(shown) > 8
        for text, box, _ in shown:
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
        for (one, a, turned), (two, b, _) in itertools.combinations(shown, 2):
            width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            allowed = 2.0 if turned == 90.0 else 0.5  # points; the box of standing letters has room for accents
            assert min(width, height) <= allowed, (picture.kind, one, two)


def legend_of(kind: str, runs: list[dict[str, Any]]) -> list[str]:
    figure = make_figure(picture_of(kind, runs))
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_of_many_methods_those_on_a_front_are_told_apart_and_the_others_counted() -> None:
    few = [make_dense(), *(make(f"method_{number:02}", 0.9, accuracy=80.0 + number) for number in range(11))]
    assert len(legend_of("cost", few)) == 13  # all twelve, and the front
    assert legend_of("cost", [*few, make("method_11", 0.9, accuracy=79.0)]) == [
        "dense",
        "method_10",
        "11 other methods",
        "Pareto front",
    ]
    captions = [picture_of("cost", runs).caption for runs in (few, [*few, make("method_11", 0.9)])]
    assert ["have a colour" in caption for caption in captions] == [False, True]


def test_a_method_has_the_same_colour_in_every_picture_of_a_page() -> None:
    runs = crowded()
    labels = {point.label for point in picture_of("accuracy", runs).numbers if isinstance(point, AccuracyPoint)}
    styles = draw_style.styles_of(labels)
    for line in make_figure(picture_of("cost", runs)).legends[0].get_lines():
        label = line.get_label()
        assert label not in labels or line.get_color() == styles[label].colour


def test_methods_are_listed_by_their_mean_at_the_highest_sparsity_which_they_have() -> None:
    means = {"low": (95.0, 80.0), "high": (91.0, 90.0), "middle": (93.0, 85.0)}
    runs = [make(label, (0.9, 0.98)[n], accuracy=pair[n]) for label, pair in means.items() for n in (0, 1)]
    figure = make_figure(picture_of("accuracy", [*runs, make("alone", 0.9, accuracy=96.0), make_dense()]))
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names[::-1] == ["high", "middle", "low", "alone"]  # from the top
    assert [axes.get_title("left") for axes in figure.axes] == ["sparsity 90 %", "sparsity 98 %"]


def test_layers_empty_in_every_seed_are_crossed_and_have_no_colour() -> None:
    runs = [make("snip", 0.9), make("set", 0.9)]
    for layer in runs[0]["layers"]:
        layer["active"] = 0
    for shown, filled in ((runs, 2), (runs[:1], 0)):
        panel = make_figure(picture_of("layers", shown)).axes[0]
        assert len(panel.collections[0].get_offsets()) == filled
        crosses = {(*line.get_xdata(), *line.get_ydata()) for line in panel.lines if len(line.get_xdata())}
        assert crosses == {(0, 1, len(shown) - 1, len(shown) - 1)}  # both layers; snip is the table's last row


def test_of_many_methods_each_is_a_strip_with_the_colours_of_its_values_and_the_cheapest_is_first() -> None:
    labels = [f"method_{number:02}" for number in range(13)]
    runs = [make(label, 0.9, macs={"train_share": 0.1 + 0.01 * n}) for n, label in enumerate(reversed(labels))]
    for run in runs:
        explored = [0.2, 0.2, 0.6] if run["method"]["label"] == "method_04" else [0.3, 0.3, 0.3]
        run["history"] = [{**make_epoch(epoch + 1, 92.5), "explored": share} for epoch, share in enumerate(explored)]
    assert len(make_figure(picture_of("exploration", runs[:12])).axes[0].lines) == 12
    picture = picture_of("exploration", runs)
    assert ["strip" in p.caption for p in (picture_of("exploration", runs[:12]), picture)] == [False, True]
    panel, scale = make_figure(picture).axes
    names = [text.get_text() for text in panel.get_yticklabels()]
    assert names == [*(label for label in labels if label != "method_04"), "method_04"]  # 0.6 comes last
    strips = [strip.get_segments() for strip in panel.collections]
    parts = {names[round(parts[0][0][1])]: [(*part[:, 0],) for part in parts] for parts in strips}
    assert parts == {**{label: [(0.0, 3.0)] for label in labels}, "method_04": [(0.0, 2.0), (2.0, 3.0)]}
    assert scale.get_xlim()[1] == 1.0
    time = make_figure(picture_of("time", runs)).axes[:2]
    assert [len(panel.collections) for panel in time] == [13, 13]


def test_a_legend_has_as_many_columns_as_its_entries_leave_room_for() -> None:
    assert [draw_style.columns_of([1.0] * count) for count in (1, 3, 7)] == [1, 3, 5]
    assert draw_style.columns_of([4.0, 4.0, 1.0, 1.0, 1.0, 1.0]) == 5  # 4 + 1 + 1 + 1 + 1
    assert draw_style.columns_of([4.2, 1.0, 4.2, 1.0, 4.2, 1.0]) == 1 and draw_style.columns_of([9.0, 9.0]) == 1


def test_digests_are_those_of_the_numbers_to_ten_digits() -> None:
    runs = make_section()
    before = picture_of("cost", runs).digest()
    runs[1]["macs"]["train_share"] *= 1 + 1e-14
    assert picture_of("cost", runs).digest() == before
    runs[1]["macs"]["train_share"] *= 1 + 1e-6
    assert picture_of("cost", runs).digest() != before


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    run = make("set", 0.9, history=[make_epoch(epoch, 92.5) for epoch in range(1, 1001)])
    (curve,) = curves_of(make_series([run]), "density", [0.9])
    assert len(curve.epochs) == len(set(curve.epochs)) == MOST_POINTS
    assert (curve.epochs[0], curve.epochs[-1]) == (1.0, 1000.0)


def test_ticks_are_round_and_few() -> None:
    assert draw_style.log_ticks(0.018, 1.1, 7) == [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    assert draw_style.log_ticks(1e-7, 1.1, 4) == [1e-6, 1e-4, 1e-2, 1.0]
