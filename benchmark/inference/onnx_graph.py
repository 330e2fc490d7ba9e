"""A network as an ONNX graph: written by torch's exporter, read back by onnx, and run by onnxruntime.

Weights keep the names of the state_dict and the batch has any size. The graph is not simplified, or weights would be
folded into others under new names; runtimes simplify it when they load it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import re
import warnings
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.base.errors import UserError, reason
from benchmark.base.system import import_extra
from benchmark.inference.passes import Mode, Pass

OPSET = 18  # the lowest that torch's exporter writes, so the one that most runtimes read
INPUT, OUTPUT = "images", "logits"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # onnxscript is needed by torch's exporter


def has_packages() -> bool:
    """Return whether everything is installed that ONNX needs here."""
    return all(find_spec(name) is not None for name in PACKAGES)


def import_package(name: str) -> Any:
    """Return one of PACKAGES; raises UserError, which names the extra to install, where one of them is absent."""
    return {package: import_extra(package, "onnx", "ONNX needs") for package in PACKAGES}[name]


def to_onnx(network: nn.Module, shape: tuple[int, int, int]) -> bytes:
    """Return the network, in evaluation mode, as an ONNX file; `shape`: channels, height and width of an image.

    Raises UserError where a package is absent, and where an operator or a Python branch cannot be written as ONNX.
    """
    import_package("onnx")
    images, batch = torch.zeros(2, *shape), torch.export.Dim("batch")  # a batch of 1 would be taken for a constant
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                copy.deepcopy(network).eval().cpu().float(),
                (images,),
                dynamo=True,
                optimize=False,
                opset_version=OPSET,
                dynamic_shapes=({0: batch},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
            assert program is not None
            content = strip(program.model_proto)
    except Exception as error:  # the exporter traces the network, which may raise anything
        raise UserError(f"the network cannot be written as ONNX: {explain_refusal(error)}") from error
    return content


def strip(model: Any) -> bytes:
    """Return an ONNX model as a file, without what the exporter notes of this machine: paths, stack traces, docs."""
    graphs = [model.graph, *(function for function in model.functions)]
    for graph in graphs:
        for part in (graph, *graph.node, *graph.value_info, *getattr(graph, "initializer", ())):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
        for value in (*graph.input, *graph.output):
            if not isinstance(value, str):  # of a function they are names
                value.ClearField("metadata_props")
                value.ClearField("doc_string")
    model.ClearField("metadata_props")
    content: bytes = model.SerializeToString()
    return content


def explain_refusal(error: BaseException) -> str:
    """Return why the exporter failed: the operator that has no ONNX form, or the first cause in one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    operator = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", str(error))
    if operator:
        return f"there is no ONNX operator for {operator[1]}"
    first_line = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first_line[:300]}"


def read_weights(content: bytes) -> dict[str, Tensor]:
    """Return the tensors in an ONNX file by their names."""
    onnx = import_package("onnx")
    stored = onnx.load_from_string(content).graph.initializer
    return {entry.name: torch.from_numpy(onnx.numpy_helper.to_array(entry).copy()) for entry in stored}


def open_session(content: bytes, threads: int) -> Any:
    """Return an onnxruntime session on the CPU; raises UserError for a graph that it cannot run."""
    runtime = import_package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or its threads slow what runs next
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"onnxruntime {runtime.__version__} cannot run the graph: {reason(error)[:300]}") from error


class OnnxPass(Pass):
    """A pass by onnxruntime over `images`, on the CPU in fp32."""

    def __init__(self, content: bytes, images: Tensor, mode: Mode) -> None:
        self.session = open_session(content, torch.get_num_threads())
        self.images, self.mode = images, mode

    def __call__(self) -> Tensor:
        """Return the outputs for the batch."""
        return torch.from_numpy(self.session.run([OUTPUT], {INPUT: self.images.numpy()})[0])
