"""A run as others need it: weights, masks, record and a card, in a folder or a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmark.base.errors import UserError, reason
from benchmark.base.files import Places, expand
from benchmark.base.system import import_extra
from benchmark.config.pages import merge_settings
from benchmark.networks.build import model_arguments
from benchmark.networks.narrow import narrow_arguments
from benchmark.runs.export import MASKS, WEIGHTS
from benchmark.runs.finished import RECORD, Finished, find_finished, load_record, read_images
from benchmark.runs.verify import compare_files, compare_masks, compare_nonzero
from leaderboard import Record
from leaderboard.store.files import write_atomically
from leaderboard.store.repeat import repeat_words, write_command
from leaderboard.tables.table import escape, multiple, percent, plain

CARD = "README.md"
FILES = (WEIGHTS, MASKS, RECORD, CARD)
HUB = "hf://"
OURS = ".gitattributes"  # what a new repository of the Hub holds


def publish_run(name: str, target: str, folders: Mapping[str, Path | None], console: Console) -> None:
    """Write a run's weights, masks, record and card to the folder `target`, or to the Hub's repository hf://USER/NAME.

    folders: records and runs, None for the default. Raises UserError for a run that is not there or whose files are not
    those of its record, for a folder or repository that is not empty, and for what the Hub refuses.
    """
    places = Places(**{key: path for key, path in folders.items() if path is not None})
    if target.startswith(HUB):
        publish_to_hub(find_finished(name, places.records, places.runs), target, console)
        return
    folder = Path(os.path.realpath(expand(Path(target))))
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder: name another one; nothing was written")
    write_folder(find_finished(name, places.records, places.runs), folder)
    for file in FILES:
        console.print(f"wrote {folder / file}: {(folder / file).stat().st_size:,} bytes", highlight=False, markup=False)


def write_folder(run: Finished, folder: Path) -> None:
    """Write the files of a run to `folder`, new or empty, all at once and only if they agree with its record."""
    refuse_differences(run.record, run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        for file, source in ((WEIGHTS, run.folder / WEIGHTS), (MASKS, run.folder / MASKS), (RECORD, run.path)):
            write_atomically(staged / file, source.read_bytes())
        write_atomically(staged / CARD, write_card(run.record).encode())
        again = find_finished(str(staged), staged, staged)
        refuse_differences(load_record(run.path), again)
        staged.chmod(0o755)
        os.replace(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def refuse_differences(record: Record, run: Finished) -> None:
    """Raise UserError unless the files' hashes, the masks, their counts and the budget are those of the record."""
    findings = compare_files(record, run.folder) + compare_masks(record, run.masks)
    findings += compare_nonzero(record, run.weights, run.masks)
    wrong = [f"{what} is {found}, the record says {said}" for what, said, found, agrees in findings if not agrees]
    if wrong:
        raise UserError(
            f"{run.folder} does not hold the files of run {plain(record['run'])}'s record: {plain('; '.join(wrong))}; "
            "nothing was written"
        )


def publish_to_hub(run: Finished, target: str, console: Console) -> None:
    """Upload the files of a run as one commit to a repository that is new or empty."""
    repository = target.removeprefix(HUB)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"a repository of the Hub is written hf://USER/NAME, got '{plain(target)}'")
    hub = import_extra("huggingface_hub", "hub", f"{HUB}… needs")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        write_folder(run, folder)
        try:
            api = hub.HfApi()
            api.create_repo(repository, exist_ok=True)
            there = sorted(set(api.list_repo_files(repository)) - {OURS})
            if there:
                raise UserError(
                    f"{target} is not empty, it holds {plain(', '.join(there))}: name another repository; nothing "
                    "was written"
                )
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Add {run.record['run']}")
        except UserError:
            raise
        except Exception as error:  # no network, no token, no right: the client has many errors
            raise UserError(
                f"{target} could not be written: {reason(error)[:300]}; log in with `hf auth login`, or publish to a "
                "folder"
            ) from error
    console.print(f"published {run.record['run']}: https://huggingface.co/{repository}", highlight=False, markup=False)


def backbone_call(record: Record) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments with which timm creates the record's network."""
    page = merge_settings(record["page"]["settings"], f"record of {record['run']}")
    arguments = model_arguments(page, read_images(record, page))
    if record["weights"]["prunable"] != record["weights"]["dense_prunable"]:
        arguments = narrow_arguments(page.model, arguments, record["method"]["settings"]["width"])
    return page.model, arguments


CARD_TEXT = """---
library_name: timm
pipeline_tag: image-classification
tags: [sparse-bench, sparse-training, pruning]
---
# {run}

A network trained by sparse-bench, a benchmark suite for sparse training. All figures are from `record.json`.

| | |
|---|---|
{table}

## The network

```python
import timm
from safetensors.torch import load_file
{imports}
model = timm.create_model({model!r}, {arguments})
model.load_state_dict(load_file("weights.safetensors"), strict=True)
```

`weights.safetensors` is a plain state_dict: inactive weights are zero. `masks.safetensors` has one bit for each
prunable weight, row-major, 1 = active, eight to a byte; the shapes are in its metadata.

## Check it, start from it, repeat it

In {where}, with this folder as `FOLDER`:

```
{commands}
```

sparse-bench is under the {licence} licence, which says nothing of these weights nor of the images they were trained on.
"""


def write_card(record: Record) -> str:
    """Return the card of a run in Markdown, a function of its record and of what the installed suite says of itself."""
    about = metadata("sparse-bench")
    links = dict(link.split(", ", 1) for link in about.get_all("Project-URL") or [])
    model, arguments = backbone_call(record)
    table = "\n".join(f"| {name} | {escape(value)} |" for name, value in describe(record).items())
    ours = "import benchmark.networks.cifar  # of sparse-bench: registers the network in timm\n"
    return CARD_TEXT.format(
        run=escape(record["run"]),
        table=table,
        where=name_checkout(links.get("Repository", "")),
        licence=about["License-Expression"],
        imports=ours if model.startswith("cifar_") else "",
        model=model,
        arguments=", ".join(f"{key}={value!r}" for key, value in arguments.items()),
        commands="\n\n".join(f"# {what}\n{command}" for what, command in list_commands(record).items()),
    )


def name_checkout(url: str) -> str:
    """Return what the commands of a card run in, and how it is installed; `url` of the repository, if it has one."""
    found = f" (`git clone {url}`)" if url else ""
    return f"a checkout of sparse-bench{found}, installed there by `python -m pip install -c constraints.txt -e .`"


def list_commands(record: Record) -> dict[str, str]:
    """Return the commands of a card by what they do; a control has no place where no weight is pruned for good."""
    page, method, sparsity, device, *words = repeat_words(record)
    seeds, weights = [record["seed"]], record["weights"]
    commands = {"count, price and evaluate the network again": "sparse-bench verify FOLDER"}
    if record["status"] == "ok" and weights["active"] < weights["prunable"] == weights["dense_prunable"]:
        of_page = [word for word in words if word.split("=")[0] in record["page"]["changed"]]
        control = write_command(page, "static", sparsity, device, *sorted(["masks=FOLDER", *of_page]), seeds=seeds)
        commands["train with these masks from the start"] = control
    if "branch" in record:  # that command would begin at initial weights
        return commands
    return {**commands, "repeat the run": write_command(page, method, sparsity, device, *words, seeds=seeds)}


def describe(record: Record) -> dict[str, str]:
    """Return the figures of a card by their names."""
    weights, macs, accuracy = record["weights"], record["macs"], record["accuracy_pct"]["last_epoch"]
    branch = record.get("branch")
    begun = {} if branch is None else {"branch of": f"{branch['parent']} after epoch {branch['epoch']}"}
    return {
        **begun,
        "page": f"{record['page']['title']} ({record['page']['name']}, variant {record['page']['variant']})",
        "method": f"{record['method']['label']}: {record['method']['reference']}",
        "sparsity asked for": percent(record["sparsity"]),
        "active weights": f"{weights['active']:,} of {weights['prunable']:,} prunable",
        "test accuracy, last epoch": "diverged" if accuracy is None else f"{accuracy:.2f} %",
        "inference FLOPs": f"{multiple(macs['inference_share'])} of dense",
        "training FLOPs": f"{multiple(macs['train_share'])} of dense{', since then' if branch else ''}",
        "seed": str(record["seed"]),
        "data": f"{record['data']['name']}, fingerprint {record['data']['fingerprint'][:16]}",
        "masks": f"sha256 {record['masks_sha256']}",
        "software": f"torch {record['environment']['torch']}, timm {record['environment'].get('timm', 'unknown')}",
    }
