"""The leaderboard on Weights & Biases: one run with a table and the pictures of each section, and one artifact."""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leaderboard.store.privacy import hide_secrets
from leaderboard.store.schema import Record
from leaderboard.tables.comparisons import make_ranks
from leaderboard.tables.sections import section_name
from leaderboard.tables.table import HEADINGS, Entry, Row, make_rows, mean, mean_and_std, percent, show_rank
from leaderboard.web.rows import average, control_of, unescape, visible
from leaderboard.web.wandb_session import MODES, choose_mode, open_session

SHEETS = ("LEADERBOARD.md", "RESULTS.md", "PAPER.md", "PLASTICITY.md", "PRECISION.md")  # beside the folder of pictures

# Texts as in the Markdown sheet; then, for W&B's own plots, unrounded numbers.
COLUMNS = (
    "method",
    "group",
    "control",
    "sparsity",
    "accuracy, %",
    "rank",
    "selected on validation, %",
    "best on test, % (not for comparison)",
    "inference FLOPs",
    "training FLOPs",
    "density, prunable weights",
    "density, all parameters",
    "seeds",
    "records",
    "n",
    "diverged",
    "sparsity_share",
    "accuracy_mean_pct",
    "accuracy_std_pct",
    "inference_share",
    "train_share",
)


def log_board(
    sections: Sequence[tuple[str, list[Record]]],
    pictures: Path | None,
    mode: str,
    folder: Path,
    warn: Callable[[str], None],
) -> bool:
    """Log the sections (of `leaderboard.tables.sections.make_sections`) as one W&B run; return whether it succeeded.

    `pictures` is the folder of the pictures, which lies beside the Markdown sheets; `folder` is where W&B writes.
    `mode` is offline or online; online without a key becomes offline, with a warning, other modes raise ValueError.
    Invariant: no failure of W&B reaches the caller; it is warned once.
    """
    if mode not in MODES[1:]:
        raise ValueError(f"WANDB must be offline or online to log the leaderboard, got '{mode}'")
    mode = choose_mode(mode, warn)
    if mode == "off":
        return True
    try:
        import wandb  # here, because the import alone takes a second

        run = open_run(wandb, mode, folder, warn)
    except Exception as error:  # no failure of W&B may cost a sheet
        warn(failure(error))
        return False
    try:
        log_sections(wandb, run, sections, pictures)
        run.finish()
    except Exception as error:
        warn(failure(error))
        close_quietly(run)
        return False
    return True


def failure(error: Exception) -> str:
    """Return the warning for a W&B error, with secrets hidden."""
    return hide_secrets(f"W&B failed and the leaderboard is not logged: {type(error).__name__}: {error}")


def close_quietly(run: Any) -> None:
    """Close a failed run, which would stay open until this process ends."""
    try:
        run.finish(exit_code=1)
    except Exception:  # the first failure was reported
        return


def open_run(wandb: Any, mode: str, folder: Path, warn: Callable[[str], None]) -> Any:
    """Open a new run without host, command line, packages and code.

    WANDB_NAME, WANDB_RUN_ID and WANDB_RESUME are for training runs and do not count here.
    """
    private = {"host": "", "disable_git": True, "x_disable_stats": True, "x_save_requirements": False}
    own = {"id": secrets.token_hex(8), "name": "leaderboard", "job_type": "leaderboard", "resume": "allow"}
    return open_session(wandb, mode, folder, warn, private, **own)


def log_sections(wandb: Any, run: Any, sections: Sequence[tuple[str, list[Record]]], pictures: Path | None) -> None:
    """Log every section's table and pictures, and an artifact of them and the Markdown sheets."""
    artifact = wandb.Artifact("leaderboard", type="leaderboard")
    logged: dict[str, Any] = {}
    for title, runs in sections:
        name = section_name(runs[0])
        table = wandb.Table(columns=list(COLUMNS), data=make_cells(runs))
        logged[f"{name}/table"] = table
        artifact.add(table, name)
        run.config.update({name: visible(unescape(title))})
        for path, caption in find_pictures(runs, pictures):
            artifact.add_file(str(path), name=f"pictures/{path.name}")
            if path.suffix == ".png":  # W&B shows no SVG
                logged[f"{name}/{path.stem.rpartition('.')[2]}"] = wandb.Image(str(path), caption=caption)
    for sheet in [pictures.parent / sheet for sheet in SHEETS] if pictures is not None else []:
        if sheet.is_file():
            artifact.add_file(str(sheet), name=sheet.name)
    run.log(logged)
    run.log_artifact(artifact)


def find_pictures(runs: list[Record], pictures: Path | None) -> list[tuple[Path, str]]:
    """Return the existing files of a section's pictures, each with its title."""
    if pictures is None:
        return []
    from leaderboard.drawing.pictures import name_pictures

    named = [
        (pictures / f"{stem}.{kind}", picture.title)
        for stem, picture in name_pictures(section_name(runs[0]), runs).items()
        for kind in ("png", "svg")
    ]
    return [(path, title) for path, title in named if path.is_file()]


def make_cells(runs: list[Record]) -> list[list[Any]]:
    """Return a section's table: a row for each method and sparsity, a value for each of COLUMNS."""
    rows = make_rows(runs)
    ranks = make_ranks(rows)
    return [
        make_row(row, sparsity, entry, show_rank(ranks.get((number, sparsity))))
        for number, row in enumerate(rows)
        for sparsity, entry in row.cells.items()
    ]


def make_row(row: Row, sparsity: float, entry: Entry, rank: str) -> list[Any]:
    """Return one row of a section's table."""
    runs = entry.finished
    accuracy = {
        key: [run["accuracy_pct"][key] for run in runs] for key in ("last_epoch", "validation_selected", "best_on_test")
    }
    return [
        unescape(row.label),
        HEADINGS[row.group],
        visible(control_of(entry.counted[0], row.made_from)),
        percent(sparsity),
        entry.accuracy(),
        rank,
        mean_and_std(accuracy["validation_selected"]),
        mean_and_std(accuracy["best_on_test"]),
        entry.cost("inference", row.dense),
        entry.cost("train", row.dense),
        mean((run["density"]["prunable"] for run in runs), "{:.4g}".format),
        mean((run["density"]["all_parameters"] for run in runs), "{:.4g}".format),
        ", ".join(str(run["seed"]) for run in entry.counted),
        ", ".join(visible(run["file"]) for run in [*entry.counted, *entry.repeats]),
        len(runs),
        entry.diverged,
        sparsity,
        average(accuracy["last_epoch"]),
        statistics.stdev(accuracy["last_epoch"]) if len(runs) > 1 else None,
        average(run["macs"]["inference_share"] for run in runs),
        average(run["macs"]["train_share"] for run in runs),
    ]
