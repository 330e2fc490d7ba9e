"""The forms in which a run's network is exported, each read back and counted before it is written, and their sizes."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from benchmark.base.errors import UserError, reason
from benchmark.base.files import Places, expand_run, refuse_links, run_folder
from benchmark.inference.kernels import TOLERANCE
from benchmark.inference.onnx_graph import INPUT, OPSET, OUTPUT, OnnxPass, read_weights
from benchmark.inference.passes import PLAIN
from benchmark.inference.subject import Subject, load_subject
from benchmark.networks.filters import distance
from benchmark.runs.compact import compress, expand
from benchmark.runs.export import MASKS, WEIGHTS, export_network, read_export, read_files, read_network, serialise
from benchmark.runs.finished import RECORD, load_record
from leaderboard.store.files import write_atomically
from leaderboard.tables.sections import amount
from methods.core import count_active

ONNX, CSR, COMPRESSED, REPORT = "network.onnx", "csr.pt", "compressed.safetensors", "export.json"
FORMAT = 1  # of the report
COMPARED = (1, 3)  # batch sizes at which outputs are compared

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Network:
    """What is exported; `subject`: the rebuilt network, where a form needs more than its tensors."""

    run: str
    state: State
    masks: State
    about: dict[str, str]
    subject: Subject | None = None

    @property
    def sha256(self) -> str:
        """A hash of every tensor of the network."""
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.state.items()}
        return hashlib.sha256(serialise(tensors, {})).hexdigest()

    @property
    def dense_bytes(self) -> int:
        """The size of its tensors with all zeros stored."""
        return sum(int(tensor.nbytes) for tensor in self.state.values())


@dataclass(frozen=True)
class Form:
    """One exported file: its content, the weights read back from it by their names, and what to say of it.

    stored: the number of weights stored in each layer, where the form stores active ones alone.
    """

    content: bytes
    again: State
    note: str
    stored: Mapping[str, int] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def export_as(
    name: str, target: Path | None, asked: list[str], folders: Mapping[str, Path | None], console: Console
) -> None:
    """Write a run's network to `target` (default: export/RUN) in forms of FORMS, or as safetensors if none is asked.

    name: a run, the path of its record, or a folder in which it was published. folders: records and runs. Everything is
    made and read back before anything is written. Raises UserError for a folder that holds something else, an absent
    package, a network that a form cannot hold, and a form that does not give the network again.
    """
    places = Places(**{key: path for key, path in folders.items() if path is not None})
    network = take_network(name, places, needs_subject=bool({ONNX, CSR} & set(asked)))
    folder = Path(expand_run(str(target))) if target else run_folder(Path("export"), network.run)
    if target is None:
        refuse_links(folder, folder.parent)
    before = read_report(folder, network)
    forms = {file: FORMS[file](network) for file in asked}
    for file, form in forms.items():
        refuse_other_weights(file, form, network)
    folder.mkdir(parents=True, exist_ok=True)
    for file, form in forms.items():
        write_atomically(folder / file, form.content)
    if not asked:
        export_network(network.state, network.masks, folder, network.about)
        forms = {file: read_form(folder, file) for file in (WEIGHTS, MASKS)}
    report = make_report(network, forms, before)
    write_atomically(folder / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    print_report(console, folder, network, forms)


def take_network(name: str, places: Places, needs_subject: bool) -> Network:
    """Return the network of a run, rebuilt if needed; raises UserError for one that is not there."""
    if needs_subject:
        subject = load_subject(name, places.records, places.runs)
        about = {"run": str(subject.record["run"]), "model": str(subject.record["page"]["settings"]["model"])}
        return Network(about["run"], subject.network.state_dict(), subject.masks, about, subject)
    name = expand_run(name)
    if (Path(name) / RECORD).is_file():
        return Network(str(load_record(Path(name) / RECORD)["run"]), *read_files(Path(name)))
    run = str(load_record(Path(name))["run"]) if name.endswith(".json") else Path(name).name
    return Network(run, *read_network(run, places.runs))


def read_report(folder: Path, network: Network) -> dict[str, Any]:
    """Return the report of an earlier export of the same network to `folder`; empty for a folder that is empty.

    Raises UserError for a folder that holds anything else, so that no file of another run is replaced.
    """
    if not folder.exists() or (folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())):
        return {}
    try:
        report: dict[str, Any] = json.loads((folder / REPORT).read_text())
        same = (report["run"], report["network_sha256"]) == (network.run, network.sha256)
    except (OSError, ValueError, LookupError, TypeError):
        same = False
    if not same:
        raise UserError(
            f"{folder} is not empty, and what it holds was not exported from this network of run {network.run}: name "
            "another folder with --to, or empty it; nothing was written"
        )
    return report


def to_compressed(network: Network) -> Form:
    """Return the active values with bits or gaps, whichever is smaller in each layer."""
    content = compress(network.state, network.masks, network.about)
    again, masks = expand(content)
    if any(not torch.equal(masks[name], mask.cpu()) for name, mask in network.masks.items()):
        raise UserError(f"{COMPRESSED} gives other masks than the run's; nothing was written")
    stored = {name: int(mask.sum()) for name, mask in masks.items()}
    return Form(content, again, "active values, and bits or gaps; docs/export.md has a reader", stored)


def to_csr_layers(network: Network) -> Form:
    """Return a state_dict in which prunable linear weights are CSR tensors that hold every active weight."""
    assert network.subject is not None
    model = network.subject.network
    names = [f"{name}.weight" for name, module in model.named_modules() if holds_csr(module)]
    names = [name for name in names if name in network.masks]
    if not names:
        raise UserError(f"{CSR}: run {network.run} has no prunable linear layer, and torch multiplies no other as CSR")
    state = {name: tensor.detach().cpu().clone() for name, tensor in network.state.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sparse tensors are in beta, says torch
        state |= {name: take_rows(state[name], network.masks[name]) for name in names}
        file = io.BytesIO()
        torch.save(state, file)
        read = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        loaded = copy.deepcopy(model)
        loaded.load_state_dict(read, strict=True, assign=True)
        error = compare(network.subject, CSR, loaded)
    again = {name: tensor.to_dense() if name in names else tensor for name, tensor in read.items()}
    stored = {name: len(read[name].values()) for name in names}
    note = f"{amount(len(names), 'linear layer')} as CSR, the rest dense; load_state_dict(…, assign=True)"
    return Form(file.getvalue(), again, note, stored, {"csr": names, "largest_difference": error})


def holds_csr(module: nn.Module) -> bool:
    """Return whether torch multiplies by a CSR weight of the module; attention reads that of its output on its own."""
    return isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)


def take_rows(weight: Tensor, mask: Tensor) -> Tensor:
    """Return a matrix as CSR with 32-bit indices, which holds every active weight, also those that are zero."""
    counts = mask.cpu().sum(dim=1)
    rows = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).int()
    columns = mask.cpu().nonzero()[:, 1].int()
    return torch.sparse_csr_tensor(rows, columns, weight[mask.cpu()], size=weight.shape, check_invariants=True)


def to_graph(network: Network) -> Form:
    """Return the ONNX file, compared with the network by onnxruntime."""
    assert network.subject is not None
    shape = network.subject.images.shape
    content = network.subject.onnx
    error = compare(network.subject, ONNX, lambda images: OnnxPass(content, images, PLAIN)())
    sides = " x ".join(map(str, shape))
    note = f"opset {OPSET}; {INPUT}: any batch x {sides}, fp32; {OUTPUT}; zeros are stored"
    facts = {"opset": OPSET, "input": INPUT, "output": OUTPUT, "dynamic": ["batch"], "largest_difference": error}
    return Form(content, read_weights(content), note, facts=facts)


FORMS: dict[str, Callable[[Network], Form]] = {ONNX: to_graph, CSR: to_csr_layers, COMPRESSED: to_compressed}


def compare(subject: Subject, file: str, action: Callable[[Tensor], Tensor]) -> float:
    """Return the largest difference of outputs from the run's network, as a share of the largest output.

    Raises UserError where they differ by more than TOLERANCE, or cannot be computed.
    """
    errors = []
    for size in COMPARED:
        images = torch.randn(size, *subject.images.shape, generator=torch.Generator().manual_seed(size))
        try:
            with torch.no_grad():
                errors.append(distance(action(images), subject.network(images)))
        except RuntimeError as error:
            raise UserError(f"{file}: torch cannot compute it: {reason(error)[:300]}; nothing was written") from error
    if not max(errors) <= TOLERANCE:  # NaN fails too
        raise UserError(
            f"{file}: its outputs differ from the network's by {max(errors):.1e} of the largest, more than "
            f"{TOLERANCE:g}; nothing was written"
        )
    return max(errors)


def refuse_other_weights(file: str, form: Form, network: Network) -> None:
    """Raise UserError unless a form gives every tensor again that it has by name, and of weights with masks each one.

    Inactive weights must be zero, and their number exact where only active ones are stored.
    """
    others = [name for name in network.state if name not in network.masks and name in form.again]
    wrong = [f"{name} is another" for name in others if not torch.equal(form.again[name], network.state[name].cpu())]
    for name, mask in network.masks.items():
        weight, again = network.state[name].cpu(), form.again.get(name)
        if again is None or not torch.equal(again, weight):
            wrong.append(f"{name} is {'absent' if again is None else 'another'}")
        elif int((again[~mask.cpu()] != 0).sum()):
            wrong.append(f"{name} has inactive weights that are not zero")
        elif form.stored is not None and form.stored.get(name, int(mask.sum())) != int(mask.sum()):
            wrong.append(f"{name} stores {form.stored[name]:,} weights, {int(mask.sum()):,} are active")
    if wrong:
        raise UserError(f"{file}, read back, does not hold the network: {'; '.join(wrong[:3])}; nothing was written")


def read_form(folder: Path, file: str) -> Form:
    """Return a file of safetensors that was written and verified by `export_network`."""
    note = {WEIGHTS: "a plain state_dict, zeros are stored", MASKS: "one bit per weight, row-major, 1 = active"}[file]
    weights = read_export(folder)[0] if file == WEIGHTS else {}
    return Form((folder / file).read_bytes(), weights, note)


def make_report(network: Network, forms: Mapping[str, Form], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the folder holds: the size of each file, and the zeros counted in each layer that was read back."""
    dense, files = network.dense_bytes, dict(before.get("files", {}))
    for file, form in forms.items():
        counted = {name: int((form.again[name] == 0).sum()) for name in network.masks if name in form.again}
        files[file] = {
            "bytes": len(form.content),
            "share_of_dense": len(form.content) / dense,
            "sha256": hashlib.sha256(form.content).hexdigest(),
            **form.facts,
            **({"zeros": counted} if counted else {}),
        }
    return {
        "format": FORMAT,
        "run": network.run,
        "network_sha256": network.sha256,
        "dense_bytes": dense,
        "active": count_active(network.masks),
        "prunable": sum(mask.numel() for mask in network.masks.values()),
        "layers": {name: {"of": mask.numel(), "active": int(mask.sum())} for name, mask in network.masks.items()},
        "files": files,
    }


def print_report(console: Console, folder: Path, network: Network, forms: Mapping[str, Form]) -> None:
    """Print what was written, and how large it is."""
    active, total = count_active(network.masks), sum(mask.numel() for mask in network.masks.values())
    table = Table(box=None, pad_edge=False)
    for column in ("file", "bytes", "of dense", "what it is"):
        table.add_column(column, overflow="fold", justify="right" if column in ("bytes", "of dense") else "left")
    for file, form in forms.items():
        share = f"{100 * len(form.content) / network.dense_bytes:.1f} %"
        table.add_row(file, f"{len(form.content):,}", share, form.note)
    said = f"wrote {folder}: {active:,} of {total:,} prunable weights active, counted again in every file"
    console.print(said, highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    if "interrupted_at_step" in network.about:
        console.print(f"the run was interrupted: this is its network after step {network.about['interrupted_at_step']}")
