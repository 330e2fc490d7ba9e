"""What a network costs, in multiply-adds: counted by fvcore, layer by layer, and integrated over training.

Unit: one multiply-add counts one (fvcore's unit); FLOPs = 2 x macs. Convolutions, linear layers, products of matrices
and outer products are counted; norms, pooling, activations and the loss are left out, as in RigL's Appendix H, and
listed. An operator that is neither refuses the backbone: `benchmark.networks.operators` has both lists, and
`benchmark.networks.witness` a second count that has to agree before a run begins.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from benchmark.errors import UserError, reason
from benchmark.networks.operators import COUNTED, HANDLES, find_unknown
from benchmark.networks.prunable import Layer
from benchmark.networks.witness import recount
from methods.core import Scoring


@dataclass(frozen=True)
class Costs:
    """The multiply-adds of one forward pass over one image, split into prunable layers and the rest."""

    per_weight: dict[str, int]  # prunable weight -> multiply-adds of one active weight (its output positions)
    layers: dict[str, int]  # weight of any conv or linear layer -> its multiply-adds when dense
    fixed: int  # of everything that no mask touches
    dense: int  # of the whole network
    operators: dict[str, int]  # operator -> multiply-adds, counted
    omitted: dict[str, int]  # operator -> calls (or fvcore's own figure for norms and pools), left out

    def forward(self, counts: Mapping[str, int]) -> int:
        """Return the multiply-adds of a forward pass when `counts[name]` weights are active in each prunable layer."""
        return self.fixed + sum(self.per_weight[name] * count for name, count in counts.items())


def count_costs(model: nn.Module, layers: list[Layer], shape: tuple[int, int, int]) -> Costs:
    """Count the multiply-adds of `model` on one image of `shape` (channels, height, width).

    Runs in evaluation mode with timm's fused attention off and leaves the model as it was.
    Raises UserError for an operator that is neither counted nor known to be free, and when the trace fails.
    """
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    unfused = unfuse_attention(model)
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    analysis = FlopCountAnalysis(model, torch.zeros(1, *shape, device=device))
    analysis.set_op_handle(**HANDLES).unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings(
        "none"
    )
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            by_operator, unsupported = analysis.by_operator(), analysis.unsupported_ops()
            by_module = analysis.by_module_and_operator()
    except Exception as error:  # a backbone may raise anything at all
        raise UserError(f"the backbone's cost on images of {shape} cannot be counted: {reason(error)}") from error
    finally:
        fuse_attention(unfused)
        model.train(was_training)
    refuse_unknown(unsupported)
    dense = {layer.name: sum(counted(by_module.get(module, {})) for module in layer.modules) for layer in layers}
    price_outside(model, layers, dense, shape)
    total = counted(by_operator)
    per_weight = {}
    for layer in layers:
        if layer.prunable:
            numel = model.get_parameter(layer.name).numel()
            if dense[layer.name] % numel:
                raise UserError(f"layer '{layer.name}': {dense[layer.name]} multiply-adds do not divide by {numel}")
            per_weight[layer.name] = dense[layer.name] // numel
    return Costs(
        per_weight=per_weight,
        layers=dense,
        fixed=total - sum(dense[name] for name in per_weight),
        dense=total,
        operators={op: int(n) for op, n in by_operator.items() if op in COUNTED},
        omitted={
            **{op: int(n) for op, n in by_operator.items() if op not in COUNTED},
            **{op: int(n) for op, n in unsupported.items()},
        },
    )


def price_outside(model: nn.Module, layers: list[Layer], dense: dict[str, int], shape: tuple[int, int, int]) -> None:
    """Price, in `dense`, the layers whose weights are used from outside alone: a trace does not name these.

    BEiT's attention does that. Raises UserError for a prunable layer that computes nothing.
    """
    bypassed = [name for name, macs in dense.items() if macs == 0]
    if bypassed:
        seen = recount(model, shape)
        dense.update({name: seen.weights[name] for name in bypassed})
    unused = [layer.name for layer in layers if layer.prunable and dense[layer.name] == 0]
    if unused:
        raise UserError(
            f"layer {', '.join(unused)} computes nothing, so its sparsity could not be priced; exempt it with "
            "keep_dense or choose another backbone"
        )


def counted(operators: Mapping[str, float]) -> int:
    """Return the multiply-adds of the operators that count."""
    return int(sum(n for op, n in operators.items() if op in COUNTED))


def unfuse_attention(model: nn.Module) -> list[nn.Module]:
    """Switch timm's fused attention off, which fvcore would drop from the count, and return the modules switched."""
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    for module in fused:
        setattr(module, "fused_attn", False)  # noqa: B010 (torch types every attribute of a module as a tensor)
    return fused


def fuse_attention(modules: list[nn.Module]) -> None:
    """Switch fused attention on again in the modules that `unfuse_attention` returned."""
    for module in modules:
        setattr(module, "fused_attn", True)  # noqa: B010


def refuse_unknown(unsupported: Counter[str]) -> None:
    """Raise UserError for operators that may compute anything, since a total without them could be wrong."""
    found = find_unknown(unsupported)
    if found:
        raise UserError(
            f"the cost of this backbone cannot be counted: {', '.join(sorted(found))} is neither counted nor known to "
            "be free of multiply-adds, and every multiplication is charged; choose another backbone"
        )


# The double backward of a layer runs six products where the backward runs two, so the second pass costs 3 + 6.
PASSES = {1: 3, 2: 3 + 3 + 6}


def scoring_cost(scoring: Scoring | None, dense: int, images: int) -> int:
    """Return the multiply-adds of the gradients taken before training: 3 f_D per image for a gradient, 12 f_D with
    the Hessian-gradient product (a gradient, the same again with its graph, and the backward through both)."""
    return 0 if scoring is None else PASSES[scoring.order] * dense * images


class Meter:
    """Charges every training step with the masks then in force.

    A step on one image costs a forward f, a backward through the inputs f, and weight gradients f, or f_D where the
    method reads dense gradients (RigL, Appendix H). Invariant: `train` is an exact integer, the sum over all steps.
    """

    def __init__(self, costs: Costs, reference: Costs) -> None:
        self.costs = costs
        self.reference = reference  # of the full network: what shares are relative to
        self.forward = costs.dense
        self.train = 0
        self.train_dense = 0
        self.scoring = 0

    def on_commit(self, counts: Mapping[str, int]) -> None:
        """Take note of the masks now in force."""
        self.forward = self.costs.forward(counts)

    def charge_scoring(self, scoring: Scoring | None, images: int) -> None:
        """Charge the gradients a method took before the first step."""
        self.scoring = scoring_cost(scoring, self.costs.dense, images)
        self.train += self.scoring

    def step(self, images: int, forward_macs: int, dense_gradients: bool) -> None:
        """Charge one training step on so many images, whose forward pass cost `forward_macs` each."""
        weight_gradients = self.costs.dense if dense_gradients else forward_macs
        self.train += images * (2 * forward_macs + weight_gradients)
        self.train_dense += images * 3 * self.reference.dense

    def state(self) -> dict[str, int]:
        """Return what a checkpoint needs."""
        return {"train": self.train, "train_dense": self.train_dense, "scoring": self.scoring}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Restore what `state` returned."""
        self.train, self.train_dense, self.scoring = state["train"], state["train_dense"], state["scoring"]
