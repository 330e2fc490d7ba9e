"""Grids: finished cells are skipped, a failure costs no other cell, processes share, and pages are rebuilt after."""

from __future__ import annotations

import re
import shutil
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from rich.console import Console

import benchmark.base.stopping
import benchmark.data.sets
import benchmark.grids.grid
import benchmark.grids.states
import benchmark.grids.sweep
import benchmark.runs.donors
import benchmark.runs.run
import benchmark.training.train
from benchmark.base.errors import PassingError, UserError
from benchmark.grids.states import LOCK
from benchmark.runs.export import export_network, read_export
from leaderboard import write_record
from tests.harness.benches import BROKEN, CONTROLS, DENSE, HEAD, NARROW, PLACES, SET, SHORT, ask, read_grid, start


def test_a_grid_runs_its_rows_then_their_controls_and_skips_what_is_finished(grid, monkeypatch):
    """Without a look at the whole store for controls, and without images or checks for what is finished."""
    text = HEAD + SET + DENSE + CONTROLS
    monkeypatch.setattr(benchmark.runs.donors, "load_store", lambda *_: pytest.fail("the store was read"))
    assert grid(text) == 0
    names = [re.search(r"done: (\w+)", line)[1] for line in grid.done()]
    assert names == ["set", "dense", "static"]
    assert "1/3 done: set" in grid.done()[0] and "; 2 left, about" in grid.done()[0]
    assert grid.done()[-1].endswith("none left")
    assert "Small: 3 made, 0 finished already, 0 failed" in grid.shown
    by_name = {record["method"]["name"]: record for record in grid.records()}
    assert by_name["static"]["method"]["donor"]["run"] == by_name["set"]["run"]
    layers = {name: [layer["active"] for layer in by_name[name]["layers"]] for name in ("set", "static")}
    assert layers["set"] == layers["static"]

    for name in ("load_data", "check_cell"):
        monkeypatch.setattr(benchmark.grids.sweep, name, lambda *_: pytest.fail("nothing is due"))
    assert grid(text, METHOD="dense") == 0 and "0 made, 1 finished already" in grid.shown
    assert grid(text) == 0
    assert grid.done() == []
    assert "0 made, 3 finished already" in grid.shown
    assert len(grid.records()) == 3


def test_a_run_that_was_made_while_a_sweep_prepared_it_is_not_made_again(grid, monkeypatch):
    """As by `make bench`, which holds no lock of grids."""
    checked, finished = benchmark.grids.sweep.check_cells, []

    def check(cells, loaded, options):
        networks = checked(cells, loaded, options)
        if not finished:
            data, quiet = loaded[cells[0].page_name], Console(quiet=True)
            finished.append(benchmark.runs.run.run_cell(cells[0], data, options, quiet))
        return networks

    monkeypatch.setattr(benchmark.grids.sweep, "check_cells", check)
    monkeypatch.setattr(benchmark.grids.sweep, "pause", lambda _: None)
    assert grid(HEAD + DENSE) == 0
    assert "0 made, 1 finished already" in grid.shown and len(grid.records()) == len(finished) == 1


def test_what_a_probe_chose_is_found_again(grid, monkeypatch):
    """Whichever precision was the faster one that day, and whatever is faster now."""
    for chosen in ("bf16", "fp32"):
        monkeypatch.setattr(benchmark.runs.run, "probe_precision", lambda *_, chosen=chosen: chosen)
        assert grid(HEAD + SET.replace("epochs", "precision: fastest, epochs") + CONTROLS) == 0
        made = "2 made, 0 finished" if chosen == "bf16" else "0 made, 2 finished already"
        assert made in grid.shown
    assert {record["environment"]["precision"] for record in grid.records()} == {"bf16"}


def test_a_cell_that_fails_costs_no_other_and_is_listed_at_the_end_with_its_error(grid):
    plugin = grid.folder / "broken.py"
    plugin.write_text(BROKEN)
    text = HEAD + f"  - {{method: {plugin}, args: {{{SHORT}}}}}\n" + DENSE + CONTROLS
    assert grid(text) == 2
    assert [record["method"]["name"] for record in grid.records()] == ["dense"]
    listed = [line for line in grid.said if line.startswith("failed: ")]
    assert len(listed) == 2
    assert "digits_resnet20.broken.0.9.s0" in listed[0] and "too many layers" in listed[0]
    assert "digits_resnet20.static.0.9.s0" in listed[1] and "the run it is made from failed" in listed[1]
    assert "1 made, 0 finished already, 2 failed" in grid.shown


@pytest.mark.parametrize(
    ("error", "times", "tried", "failed"),
    [(RuntimeError, 9, 3, 1), (OSError, 1, 2, 0), (UserError, 1, 1, 1)],
)
def test_a_failed_cell_is_tried_again_up_to_a_bound_unless_a_user_has_to_mend_it(
    error, times, tried, failed, grid, monkeypatch
):
    calls: list[str] = []
    run_cell = benchmark.runs.run.run_cell

    def fail(cell, *rest):
        calls.append(cell.plugin.name)
        if cell.plugin.name == "set" and calls.count("set") <= times:
            raise error("the disk was busy")
        return run_cell(cell, *rest)

    monkeypatch.setattr(benchmark.grids.sweep, "run_cell", fail)
    assert grid(HEAD + SET + DENSE) == failed
    assert Counter(calls) == {"set": tried, "dense": 1}
    assert sum("failed and is tried again" in line for line in grid.said) == tried - 1
    assert sum(line.startswith("failed: ") and "the disk was busy" in line for line in grid.said) == failed
    assert len(grid.records()) == 2 - failed
    assert not list(grid.folder.glob("runs/sweeps/*"))


def test_a_cell_that_was_stopped_is_not_counted_as_tried(grid, monkeypatch):
    """Asked to stop, a run saves a checkpoint at its next step, though none is due; the same command goes on."""
    train_step = benchmark.training.train.train_step
    steps: list[int] = []

    def stop(run, *rest):
        steps.append(run.step)
        if len(steps) == 3:
            benchmark.base.stopping.ask_to_stop()
        return train_step(run, *rest)

    monkeypatch.setattr(benchmark.training.train, "train_step", stop)
    monkeypatch.setattr(benchmark.base.stopping.Wish, "asked", False)
    grid.checkpoint_s = 3600.0
    with pytest.raises(KeyboardInterrupt):
        grid(HEAD + SET)
    assert steps == [1, 2, 3]
    assert len(list(grid.folder.glob("runs/*/checkpoint"))) == 1 and grid.records() == []
    assert grid(HEAD + SET, plan=True) == 0 and "interrupted" in grid.shown
    benchmark.base.stopping.Wish.asked = False
    assert grid(HEAD + SET) == 0
    assert steps[3] == 4 and "after step 3 of" in grid.shown and len(grid.records()) == 1


def test_a_control_is_made_from_the_very_run_of_the_grid_whatever_else_has_its_row_s_name(grid):
    """Another seed of the row has a record of another version of the method's file: two rows of one name."""
    seeds = "seeds: [0]", "seeds: [1]"
    assert grid(HEAD.replace(*seeds) + SET) == 0
    (other,) = grid.records()
    (grid.folder / "records" / other["file"]).unlink()
    content = {key: value for key, value in other.items() if key not in ("seal", "file")}
    write_record({**content, "method": {**content["method"], "sha256": "ab" * 32}}, grid.folder / "records")
    assert grid(HEAD + SET + CONTROLS) == 0, grid.said
    made = {(r["method"]["name"], r["seed"]): r for r in grid.records()}
    assert len(made) == 3
    control = made["static", 0]["method"]
    assert control["donor"]["run"] == made["set", 0]["run"]
    assert control["label"] == f"static (densities={made['set', 0]['method']['label']})"
    assert grid(HEAD + SET + CONTROLS) == 0 and "2 finished already" in grid.shown


DIVERGES = SET.replace("epochs: 1", "epochs: 2, lr: 1.0e+20")


def test_a_control_of_a_run_that_diverged_is_passed_over_and_does_not_count_as_failed(grid):
    text = HEAD + DIVERGES + DENSE + CONTROLS
    assert grid(text) == 0
    assert {r["method"]["name"]: r["status"] for r in grid.records()} == {"set": "diverged", "dense": "ok"}
    assert "Small: 2 made, 0 finished already, 1 without a run to be made from, 0 failed" in grid.shown
    told = "no control possible (its run diverged): static (densities=set (update_every=2)) at sparsity 0.9, seed 0"
    assert told in grid.shown
    assert grid(text) == 0
    assert "0 made, 2 finished already, 1 without a run to be made from, 0 failed" in grid.shown
    assert grid(text, plan=True) == 0
    assert "no control possible: 1 of 3 runs: its run diverged" in grid.shown
    assert "to do: 0 of 3 runs" in grid.shown


ALL_CONTROLS = "controls: [densities, masks, shuffled]\n"


def test_controls_of_the_masks_need_the_runs_files_when_they_are_made_and_never_after(grid):
    text = HEAD + SET + ALL_CONTROLS
    assert grid(text) == 0, grid.said
    donor = "set (update_every=2)"
    kinds = {
        f"static (densities={donor})": "densities",
        f"static (masks={donor})": "masks",
        f"static (masks={donor}, shuffle=filters)": "shuffled filters",
    }
    controls = {r["method"]["label"]: r for r in grid.records() if "donor" in r["method"]}
    assert {label: record["method"]["donor"]["kind"] for label, record in controls.items()} == kinds

    shutil.rmtree(grid.folder / "runs")
    assert grid(text, plan=True) == 0
    assert "to do: 0 of 4 runs" in grid.shown and "no control possible" not in grid.shown
    assert grid(text) == 0
    assert "0 made, 4 finished already, 0 failed" in grid.shown

    for label in list(kinds)[:2]:
        (grid.folder / "records" / controls[label]["file"]).unlink()
    assert grid(text, plan=True) == 0
    assert "to do: 1 of 4 runs" in grid.shown  # densities need no file
    assert "no control possible: 1 of 4 runs: the masks of its run are not in" in grid.shown
    assert [line for line in grid.shown.splitlines() if line.endswith(" no control")]
    assert grid(text) == 0, grid.said
    assert "1 made, 2 finished already, 1 without a run to be made from, 0 failed" in grid.shown
    assert re.search(
        r"no control possible \(the masks .* FRESH=1\): static \(masks=set \(update_every=2\)\)", grid.shown
    )


def test_masks_of_a_repeat_that_ended_otherwise_are_not_the_run_s(grid):
    text = HEAD + SET + "controls: [masks]\n"
    assert grid(text) == 0
    for record in grid.records():
        if record["method"]["name"] == "static":
            (grid.folder / "records" / record["file"]).unlink()
        else:
            masks = read_export(grid.folder / "runs" / record["run"])[1]
            gone = {name: torch.zeros(mask.shape, dtype=torch.bool) for name, mask in masks.items()}
            weights = {name: torch.zeros(mask.shape) for name, mask in masks.items()}
            export_network(weights, gone, grid.folder / "runs" / record["run"], {})
    assert grid(text) == 0
    assert "0 made, 1 finished already, 1 without a run to be made from, 0 failed" in grid.shown


def test_masks_are_taken_with_the_repeat_whose_files_lie_there(grid):
    """The record that counts may be of another kind of machine, whose masks differ by a rounding."""
    assert grid(HEAD + SET) == 0
    (donor,) = grid.records()
    stamp = "2001-01-01T00:00:00Z"
    first = {key: value for key, value in donor.items() if key not in ("seal", "file")}
    write_record({**first, "masks_sha256": "a" * 64, "started": stamp, "finished": stamp}, grid.folder / "records")
    assert grid(HEAD + SET + "controls: [masks]\n") == 0, grid.said
    (control,) = [record for record in grid.records() if "donor" in record["method"]]
    assert control["method"]["donor"]["masks_sha256"] == donor["masks_sha256"]
    shutil.rmtree(grid.folder / "runs")
    assert grid(HEAD + SET + "controls: [masks]\n") == 0, grid.said
    assert "0 made, 2 finished already, 0 failed" in grid.shown


def test_a_finished_control_that_the_file_names_outright_needs_no_file_of_its_donor(grid):
    text = HEAD + SET + "  - {method: static, args: {" + SHORT + ", masks: set (update_every=2)}}\n"
    assert grid(text) == 0, grid.said
    shutil.rmtree(grid.folder / "runs")
    assert grid(text) == 0, grid.said
    assert "0 made, 2 finished already, 0 failed" in grid.shown


def test_what_a_skipped_record_says_reaches_the_terminal_without_control_characters(grid):
    (grid.folder / "records").mkdir()
    (grid.folder / "records" / "a\x1b[2J\u202eb.json").write_text('{"schema": "\\u001b[31m"}')
    assert grid(HEAD + DENSE) == 0
    (said,) = grid.said
    assert "was skipped" in said and said.isprintable()


def test_every_fault_of_the_cells_that_needs_no_image_is_told_before_the_first_run(grid, monkeypatch):
    monkeypatch.setattr(benchmark.grids.sweep, "load_data", lambda *_: pytest.fail("images were read"))
    text = (
        HEAD
        + DENSE
        + "  - {method: gmp, args: {epochs: 1, update_every: 100}, sparsities: [0.9, 0.95], seeds: [0, 1]}\n"
        + "  - {method: static, sparsities: [0.9999]}\n"
        + "  - {method: set, tasks: [cifar10_vgg19], args: {epochs: 1, update_every: 400}}\n"  # not here, yet known
        + "  - {method: set, tasks: [folder_resnet20]}\n"  # not known: a failure of its own
    )
    with pytest.raises(UserError) as caught:
        grid(text)
    head, *faults = str(caught.value).splitlines()
    assert "3 faults, and nothing was run" in head
    assert faults[0].startswith("  digits_resnet20, gmp (update_every=100): method 'gmp' makes no update in")
    assert faults[1].startswith(
        "  digits_resnet20, static: method 'static' at sparsity 0.9999 leaves no weight in layer"
    )
    assert faults[2].startswith("  cifar10_vgg19, set (update_every=400): method 'set' makes no update in a run of 352")
    assert not grid.records()


def test_a_page_without_data_fails_with_one_message_and_the_others_go_on(grid):
    text = HEAD + "  - {method: set, tasks: [folder_resnet20], seeds: [0, 1]}\n" + DENSE
    assert grid(text) == 2
    assert [record["method"]["name"] for record in grid.records()] == ["dense"]
    told = [line for line in grid.said if "no image folder at" in line]
    assert len(told) == 2  # when it is met, and at the end, for both cells
    assert told[1].count("folder_resnet20.set") == 2


STALE = PassingError("im.png: cannot be read now (Stale file handle): try again")


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: out of memory"), STALE], ids=["device", "file system"])
@pytest.mark.parametrize(("failing", "made"), [(2, 3), (3, 0)])
def test_data_that_cannot_be_had_for_a_while_are_loaded_as_often_as_a_cell_is_tried(
    grid, monkeypatch, failing, made, error
):
    calls, load = [], benchmark.data.sets.load_data

    def fail_first(*asked):
        calls.append(asked)
        if len(calls) <= failing:
            raise error
        return load(*asked)

    monkeypatch.setattr(benchmark.grids.sweep, "load_data", fail_first)
    assert grid(HEAD + DENSE.replace("}}", "}, seeds: [0, 1, 2]}")) == 3 - made
    assert len(grid.records()) == made and len(calls) == 3
    assert sum("is tried again: " in line for line in grid.said) == 2


def test_data_are_loaded_when_a_cell_is_due_and_only_one_page_at_a_time(grid, monkeypatch):
    sweeps, batches = [], []
    load_page_of, load = benchmark.grids.sweep.Sweep.load, benchmark.data.sets.load_data

    def note_sweep(sweep, cell):
        sweeps.append(sweep)
        return load_page_of(sweep, cell)

    def note_page(page, *rest):
        assert sweeps[-1].loaded is None, "the images of the page before were not let go"
        batches.append(page.batch_size)
        return load(page, *rest)

    monkeypatch.setattr(benchmark.grids.sweep.Sweep, "load", note_sweep)
    monkeypatch.setattr(benchmark.grids.sweep, "load_data", note_page)
    small = DENSE.replace("400", "300").replace("}}", "}, seeds: [0, 1]}")
    assert grid(HEAD + small + DENSE + SET) == 0
    assert len(sweeps) == 4 and batches == [300, 400]
    assert sweeps[-1].loaded is None


def test_faults_and_plans_write_nothing_and_a_plan_fails_where_a_run_could_not_begin(grid, monkeypatch):
    monkeypatch.setattr(benchmark.runs.run, "train_cell", lambda *_: pytest.fail("a plan must not train"))
    with pytest.raises(UserError, match="2 faults"):
        grid(HEAD + DENSE + "  - {method: sett}\n  - {method: set, args: {epochz: 1}}\n")
    assert grid(HEAD + DENSE, plan=True) == 0
    assert grid(HEAD + "  - {method: gmp, args: {epochs: 1, update_every: 100}}\n", plan=True) == 1
    assert "makes no update" in grid.shown
    assert [path.name for path in grid.folder.iterdir()] == ["grid.yaml"]


@pytest.mark.parametrize("name", [LOCK, "lock"])
def test_a_cell_that_another_process_holds_is_passed_over_and_looked_at_again(grid, name, monkeypatch):
    """Held by another grid, or by a run of that cell alone; once it is let go without a record, it is made here."""
    monkeypatch.setattr(benchmark.grids.sweep, "POLL_S", 0.1)
    text = HEAD + SET + DENSE
    first = read_grid(grid.write(text)).items[0].cell
    folder = grid.folder / "runs" / first.identity
    folder.mkdir(parents=True)
    lock = FileLock(folder / name, thread_local=False)
    lock.acquire()

    def let_go():
        if "waiting: another process holds 1 of 2 runs" not in grid.shown:
            timer = threading.Timer(0.2, let_go)
            timer.daemon = True
            timer.start()
        else:
            lock.release()

    let_go()
    assert grid(text) == 0
    assert [re.search(r"done: (\w+)", line)[1] for line in grid.done()] == ["dense", "set"]
    assert len(grid.records()) == 2


def test_a_record_that_appears_while_a_cell_is_due_is_not_made_twice(grid, monkeypatch):
    """The last look at the records is taken under the lock."""
    text = HEAD + SET
    assert grid(text) == 0
    (record,) = (grid.folder / "records").iterdir()
    content = record.read_bytes()
    record.unlink()
    hold = benchmark.grids.states.holding

    def publish_then_hold(folder):
        record.write_bytes(content)
        return hold(folder)

    monkeypatch.setattr(benchmark.grids.sweep, "holding", publish_then_hold)
    assert grid(text) == 0
    assert len(grid.records()) == 1 and grid.done() == []


@pytest.mark.slow
def test_two_processes_share_a_grid_and_leave_one_record_of_each_cell(grid):
    grid.write(HEAD.replace("seeds: [0]", "seeds: [0, 1]") + SET + CONTROLS)
    both = [start(grid.folder, "sweep", "grid.yaml") for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    records = grid.records()
    assert Counter(record["run"] for record in records) == {record["run"]: 1 for record in records}
    assert Counter(record["method"]["name"] for record in records) == {"set": 2, "static": 2}
    made = [int(re.search(r"(\d+) made", text)[1]) for text in said]
    assert sum(made) == 4, said


@pytest.fixture
def command(grid, monkeypatch):
    """Run the command line in this process on small grids; return its exit status."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.chdir(grid.folder)
    return lambda *words: ask(*words, *PLACES, "--device", "cpu").exit_code


@pytest.mark.parametrize("asked", ["run", "sweep"])
def test_all_pages_are_rebuilt_once_when_records_came_and_a_failing_picture_costs_a_warning(
    asked, grid, command, monkeypatch, capfd
):
    import leaderboard.board.build

    built: list[tuple[Path, Path]] = []

    def build(records: Path, page: Path) -> str:
        built.append((records, page))
        raise RuntimeError("no picture today")

    monkeypatch.setattr(leaderboard.board.build, "build_all", build)
    told: list[str] = []
    monkeypatch.setattr("benchmark.cli.shell.tell", lambda message: told.append(str(message)))
    broken = grid.folder / "broken.py"
    broken.write_text(BROKEN)
    grid.write(HEAD + DENSE + DENSE.replace("}}", "}, seeds: [1]}"))
    short = f"epochs=1 {NARROW}"
    run = ["run", "--method", "dense", "--seed", "0,1", "--task", "digits_resnet20", "--args", short]
    assert command(*(run if asked == "run" else ["sweep", "grid.yaml"])) == 0
    assert built == [(Path("records"), Path("L.md"))]
    assert any("no picture today" in text and "make leaderboard" in text for text in told)
    if asked == "sweep":
        assert command("sweep", "grid.yaml") == 0
        assert len(built) == 2  # nothing new, but the page is still missing
        grid.write(HEAD + f"  - {{method: {broken}, args: {{{SHORT}}}}}\n" + DENSE.replace("}}", "}, seeds: [2]}"))
        assert command("sweep", "grid.yaml") == 1
        assert len(built) == 3  # also when a cell failed


@pytest.mark.parametrize(
    ("records", "built", "said"),
    [
        (1, [], ["stopped"]),
        (1, [RuntimeError("no picture today")], ["stopped", "no picture today"]),
        (1, [KeyboardInterrupt()], ["stopped"]),  # stopped once more
        (0, None, ["stopped"]),
    ],
)
def test_a_grid_that_is_stopped_rebuilds_the_pages_of_what_it_finished(
    records, built, said, grid, command, monkeypatch
):
    import leaderboard.board.build

    calls, told = [], []

    def stop(*_):
        for number in range(records):
            (grid.folder / "records").mkdir()
            (grid.folder / "records" / f"{number}.json").write_text("{}")
        raise KeyboardInterrupt

    def build(*places: Path) -> tuple[str, tuple[list, list]]:
        calls.append(places)
        for error in built:
            raise error
        return "", ([], [])

    grid.write(HEAD + DENSE)
    monkeypatch.setattr(benchmark.grids.sweep, "run_sweep", stop)
    monkeypatch.setattr(leaderboard.board.build, "build_all", build)
    monkeypatch.setattr("benchmark.cli.shell.tell", lambda message: told.append(str(message)))
    assert command("sweep", "grid.yaml") == 130
    assert calls == ([] if built is None else [(Path("records"), Path("L.md"))])
    assert len(told) == len(said) and all(part in text for part, text in zip(said, told, strict=True))


def test_faults_of_a_grid_end_with_status_2(grid, command):
    grid.write("rows: []")
    assert command("sweep", "grid.yaml") == 2
    assert command("sweep", "none.yaml") == 2
    grid.write(HEAD + DENSE)
    assert command("sweep", "grid.yaml", "--gpus", "8") == 2  # of a plan alone: 8 GPUs would train nothing faster
