"""What a forward pass and a training run cost, in multiply-adds, operator by operator."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.base.errors import UserError, reason
from benchmark.base.system import modes_of, set_modes
from benchmark.networks.prunable import Layer
from benchmark.networks.witness import recount, without_fast_path
from methods.core import Scoring

with warnings.catch_warnings():  # at its import fvcore scripts a function, of which torch warns its authors
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import conv_flop_count


@dataclass(frozen=True)
class Costs:
    """The multiply-adds of one forward pass over one image, split into prunable layers and the rest."""

    per_weight: dict[str, int]  # prunable weight -> multiply-adds of one active weight (its output positions)
    layers: dict[str, int]  # weight of any conv or linear layer -> its multiply-adds when dense
    fixed: int  # of everything that no mask covers
    dense: int  # of the whole network
    operators: dict[str, int]  # operator -> multiply-adds, counted
    omitted: dict[str, int]  # operator -> calls (or fvcore's own figure for norms and pools), left out

    def forward(self, counts: Mapping[str, int]) -> int:
        """Return the multiply-adds of a forward pass when `counts[name]` weights are active in each prunable layer."""
        return self.fixed + sum(self.per_weight[name] * count for name, count in counts.items())


def count_costs(
    model: nn.Module, layers: list[Layer], shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> Costs:
    """Count the multiply-adds of `model` on one image of `shape` (channels, height, width), in evaluation mode.

    dtype: of the input, such as whole numbers for tokens; None = as the network's parameters. The model is left as it
    was. Raises UserError for an operator that is neither counted nor known to be free, and when the trace fails.
    """
    by_operator, by_module, unsupported = trace(model, shape, dtype)
    refuse_unknown(unsupported)
    dense = {layer.name: counted(*(by_module.get(module, {}) for module in layer.modules)) for layer in layers}
    price_outside(model, layers, dense, shape, dtype)
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
        omitted={op: int(n) for op, n in {**by_operator, **unsupported}.items() if op not in COUNTED},
    )


def trace(
    model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> tuple[Counter[str], dict[str, Counter[str]], Counter[str]]:
    """Return fvcore's counts by operator and by module, and its calls of operators that it cannot count."""
    first, modes = next(model.parameters()), modes_of(model)
    model.eval()
    unfused = unfuse_attention(model)
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    image = torch.zeros(1, *shape, device=first.device, dtype=dtype or first.dtype)
    analysis = FlopCountAnalysis(model, image).set_op_handle(**HANDLES)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    try:
        with warnings.catch_warnings(), torch.no_grad(), without_fast_path():
            warnings.simplefilter("ignore")
            return analysis.by_operator(), analysis.by_module_and_operator(), analysis.unsupported_ops()
    except Exception as error:  # a backbone may raise anything
        raise UserError(f"the backbone's cost on inputs of {shape} cannot be counted: {reason(error)}") from error
    finally:
        fuse_attention(unfused)
        set_modes(modes)


def price_outside(
    model: nn.Module,
    layers: list[Layer],
    dense: dict[str, int],
    shape: tuple[int, ...],
    dtype: torch.dtype | None = None,
) -> None:
    """Set, in `dense`, the cost of layers whose weights are used only from outside, as in BEiT's attention.

    A trace does not attribute these, nor the packed weights of nn.MultiheadAttention. Raises UserError for a prunable
    layer that computes nothing, and for one whose weights do not all cost the same.
    """
    bypassed = [name for name, macs in dense.items() if macs == 0]
    if bypassed:
        seen = recount(model, shape, dtype)
        dense.update({name: seen.weights[name] for name in bypassed})
        uneven = [layer.name for layer in layers if layer.name in bypassed and not seen.is_even(layer.name)]
        if any(layer.prunable for layer in layers if layer.name in uneven):
            raise UserError(
                f"layer {', '.join(uneven)} uses its weights unequally often, as where queries and keys differ in "
                "number, so its sparsity has no single cost: exempt it with keep_dense or choose another backbone"
            )
    unused = [layer.name for layer in layers if layer.prunable and dense[layer.name] == 0]
    if unused:
        raise UserError(
            f"layer {', '.join(unused)} computes nothing, so its sparsity has no cost to save: exempt it with "
            "keep_dense or choose another backbone"
        )


def counted(*operators: Mapping[str, float]) -> int:
    """Return the multiply-adds of the counted operators."""
    return int(sum(n for one in operators for op, n in one.items() if op in COUNTED))


def unfuse_attention(model: nn.Module) -> list[nn.Module]:
    """Switch timm's fused attention off, which fvcore would leave out of the count; return the modules switched."""
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    for module in fused:
        setattr(module, "fused_attn", False)  # noqa: B010 (torch types every attribute of a module as a tensor)
    return fused


def fuse_attention(modules: list[nn.Module]) -> None:
    """Switch fused attention back on in the modules that `unfuse_attention` returned."""
    for module in modules:
        setattr(module, "fused_attn", True)  # noqa: B010


def refuse_unknown(unsupported: Iterable[str]) -> None:
    """Raise UserError for operators (`aten::name` or in-place `aten::name_`) that are not known to be free."""
    found = sorted(op for op in unsupported if op.removeprefix("aten::").strip("_") not in FREE)
    if found:
        raise UserError(
            f"the cost of this backbone cannot be counted: {', '.join(found)} is neither counted nor known to be free "
            "of multiply-adds; choose another backbone"
        )


# The double backward of a layer runs six products where the backward runs two, so the second pass costs 3 + 6.
PASSES = {1: 3, 2: 3 + 3 + 6}


def scoring_cost(scoring: Scoring | None, dense: int, images: int, forward: int | None = None) -> int:
    """Return the multiply-adds of one round of gradients taken before training, for so many images.

    3 f_D an image for a gradient, 12 f_D with the Hessian-gradient product (a gradient, the same again with its graph,
    and the backward through both). `forward`: f_S of the masks that a further round runs under; a gradient is then
    2 f_S + f_D, since those of inactive weights are taken too. Second derivatives under masks are charged as dense.
    """
    if scoring is None:
        return 0
    if forward is not None and scoring.order == 1:
        return images * (2 * forward + dense)
    return PASSES[scoring.order] * dense * images


class Meter:
    """Charges every training step with the masks it was done with.

    A step on one image costs a forward f, a backward through the inputs f, and weight gradients: f of the weights that
    are trained, f_D where that is all of them, and f_D in all where dense gradients are read (RigL, Appendix H;
    Top-KAST: 2 f(A) + f(B)). Invariant: `train` is an exact integer, the sum over all steps.
    """

    def __init__(self, costs: Costs, reference: Costs) -> None:
        self.costs = costs
        self.reference = reference  # of the full network: what shares are relative to
        self.forward: int | Tensor = costs.dense  # a number on the device where masks follow from weights at every step
        self.settled = 0
        self.owed: Tensor | None = None  # of `train`, on the device: what the host has not yet heard of
        self.weights: Tensor | None = None  # multiply-adds of one active weight in each layer, on the device
        self.train_dense = 0
        self.scoring = 0
        self.reading: int | None = 0  # of `train`: what dense gradients cost beyond those the step is taken with

    @property
    def train(self) -> int:
        """The multiply-adds of training so far; where some are known to the device alone, the host waits for it."""
        if self.owed is not None:
            self.settled += int(self.owed)
            self.owed = None
        return self.settled

    @train.setter
    def train(self, macs: int) -> None:
        self.settled, self.owed = macs, None

    def on_commit(self, counts: Mapping[str, int] | Tensor) -> None:
        """Take note of the masks now applied: active weights by layer, or on the device, in the layers' order."""
        if not isinstance(counts, Tensor):
            self.forward = self.costs.forward(counts)
            return
        if self.weights is None:
            self.weights = torch.tensor(list(self.costs.per_weight.values())).to(counts.device, non_blocking=True)
        self.forward = (self.weights * counts).sum() + self.costs.fixed

    def charge_scoring(self, scoring: Scoring | None, images: int, counts: Mapping[str, int] | None = None) -> None:
        """Charge the gradients of a round of scoring; `counts`: of the masks it ran under, None = of no masks."""
        forward = None if counts is None else self.costs.forward(counts)
        cost = scoring_cost(scoring, self.costs.dense, images, forward)
        self.scoring += cost
        self.train += cost

    def charge_moments(self, images: int, sizes: Mapping[str, int]) -> None:
        """Charge second moments of layers' inputs, so many numbers for each layer, over so many images.

        An image runs forward under the masks, and adds the products x x^T at each output position.
        """
        products = sum(self.costs.per_weight[name] * size for name, size in sizes.items())
        self.train += int(images * (self.forward + products))

    def weight_gradients(self, dense: bool, trained: Mapping[str, int] | None = None) -> int | Tensor:
        """Return the multiply-adds of an image's weight gradients: of all weights, of the trained or of the active."""
        if dense:
            return self.costs.dense
        return self.forward if trained is None else self.costs.forward(trained)

    def step(
        self,
        images: int,
        forward_macs: int | Tensor,
        gradient_macs: int | Tensor,
        extra_gradient_macs: int = 0,
        repeat_round: bool = False,
    ) -> None:
        """Charge one training step on so many images, each at `forward_macs` and weight gradients of `gradient_macs`.

        `extra_gradient_macs`: an image's multiply-adds of further gradients that the method reads. `repeat_round`: a
        step of a further round, of which dense training, what shares are relative to, has none.
        """
        macs = images * (2 * forward_macs + gradient_macs + extra_gradient_macs)
        if isinstance(macs, Tensor):
            self.owed = macs + (0 if self.owed is None else self.owed)
        else:
            self.settled += macs
        if self.reading is not None:
            self.reading += images * extra_gradient_macs
        if not repeat_round:
            self.train_dense += images * 3 * self.reference.dense

    def state(self) -> dict[str, int | None]:
        """Return what a checkpoint needs."""
        return {key: getattr(self, key) for key in ("train", "train_dense", "scoring", "reading")}

    def load_state(self, state: Mapping[str, int | None]) -> None:
        """Restore what `state` returned; a checkpoint that does not know `reading` leaves it unknown."""
        self.train, self.train_dense, self.scoring = (state[key] or 0 for key in ("train", "train_dense", "scoring"))
        self.reading = state.get("reading")


Handle = Callable[[Sequence[Any], Sequence[Any]], Counter[str]]

COUNTED = {"conv", "linear", "addmm", "matmul", "mm", "bmm", "einsum"}  # by fvcore's names, or by those below
COUNTED |= {"addbmm", "addmv", "attention", "baddbmm", "dot", "inner", "mv", "outer", "vdot"}


def sizes(value: Any) -> list[int]:
    """Return the shape of a value in a trace."""
    return list(value.type().sizes())


def count_product(name: str, first: int = 0) -> Handle:
    """Return a counter of products whose first factor is the input at `first`, each a sum over its last dimension."""

    def count(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
        factor, out = sizes(inputs[first]), sizes(outputs[0])
        summed = factor[0] if name == "addbmm" else 1  # products that are added up
        return Counter({name: summed * prod(out) * factor[-1]})

    return count


def outer(out: int, first: int, second: int) -> int:
    """Return the multiply-adds of an elementwise product, given the numbers of elements.

    Zero unless the result is larger than either factor: that is an outer product, and summing it gives a matrix
    product.
    """
    return out if out > max(first, second) else 0


def count_elements(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count an elementwise product; a free one is recorded as a call, as fvcore does for what it leaves out."""
    factors = [value for value in inputs[:2] if value.isCompleteTensor()]
    macs = outer(prod(sizes(outputs[0])), *(prod(sizes(value)) for value in factors)) if len(factors) == 2 else 0
    return Counter({"outer": macs} if macs else {"aten::mul": 1})


def count_padded(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count a convolution whose padding is given by name, `same` or `valid`."""
    return Counter({"conv": int(conv_flop_count(sizes(inputs[0]), sizes(inputs[1]), sizes(outputs[0])))})


def count_attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count fused attention: the scores, then the weighted mean of the values."""
    query, key, value = (sizes(tensor) for tensor in inputs[:3])
    return Counter({"attention": prod(query[:-1]) * key[-2] * (query[-1] + value[-1])})


def count_einsum(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Count an einsum of two tensors as torch computes it: indices that only one of them has are summed first.

    Raises ValueError for three or more tensors, whose order of multiplication the equation does not fix.
    """
    equation = str(inputs[0].toIValue()).replace(" ", "")
    tensors = [sizes(value) for value in inputs[1].node().inputs()]
    terms, arrow, result = equation.partition("->")
    if not arrow:  # indices that occur once are kept
        result = "".join(index for index in terms if terms.count(index) == 1)
    return Counter({"einsum": sum_of_products(terms.split(","), result, tensors)})


def sum_of_products(terms: list[str], result: str, tensors: list[list[int]]) -> int:
    """Return the multiply-adds of an einsum, given its indices, such as `["bij", "bjk"]` and `"bik"`."""
    if len(terms) > 2 or len(terms) != len(tensors):
        raise ValueError(f"it has an einsum of {len(tensors)} tensors, {','.join(terms)}: multiply them two at a time")
    if len(terms) == 1:
        return 0
    named = [expand_dots(term, len(shape)) for term, shape in zip(terms, tensors, strict=True)]
    kept = result.replace("...", "0123456789")
    first, second = (dict(zip(term, shape, strict=True)) for term, shape in zip(named, tensors, strict=True))
    extents = {index: max(first.get(index, 1), second.get(index, 1)) for index in {**first, **second}}
    out, *left = (prod(n for index, n in sides.items() if index in kept) for sides in (extents, first, second))
    both = {index for index in first.keys() & second.keys() if min(first[index], second[index]) > 1}
    summed = [extents[index] for index in both if index not in kept]
    return prod(summed) * out if summed else outer(out, *left)


def expand_dots(term: str, dimensions: int) -> str:
    """Replace the dots of an einsum term by a digit for each dimension they cover, counted from the right."""
    hidden = dimensions - len(term.replace("...", ""))
    return term.replace("...", "".join(str(place) for place in reversed(range(hidden))))


HANDLES: dict[str, Handle] = {
    "aten::_convolution_mode": count_padded,
    **{f"aten::{name}": count_elements for name in ("mul", "multiply", "outer")},
    "aten::scaled_dot_product_attention": count_attention,
    "aten::einsum": count_einsum,
    **{f"aten::{name}": count_product(name) for name in ("matmul", "mv", "dot", "vdot", "inner")},
    **{f"aten::{name}": count_product(name, first=1) for name in ("addmv", "baddbmm", "addbmm")},
}

# Operators without multiply-adds of their own: elementwise, shapes, indexing, norms, pools, sums, constants.
# fvcore's own list of ignored operators applies first.
NAMES = """
    abs acos adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d add addcdiv addcmul adjoint alias all alpha_dropout amax amin and any arange argmax argmin
    argsort as_strided asin atan atan2 atleast_1d atleast_2d avg_pool1d avg_pool2d avg_pool3d batch_norm bernoulli
    bitwise_and bitwise_not bitwise_or block_diag Bool broadcast_tensors broadcast_to bucketize ceil celu
    channel_shuffle clamp clamp_max clamp_min clone col2im column_stack complex concat concatenate conj contiguous
    copy cos cosh count_nonzero cummax cummin cumprod cumsum diag diagonal diff dim div divide dropout dsplit dstack
    elu embedding empty_like eq erf erfc exp exp2 expand_as expm1 feature_dropout fill flatten flip fliplr flipud
    Float FloatImplicit floor floordiv fmod frac frobenius_norm ge gelu glu grid_sampler group_norm gt hardshrink
    hardsigmoid hardswish hardtanh hsplit hstack hypot im2col imag index_add index_copy index_fill index_put
    index_select instance_norm IntImplicit is_nonzero isfinite isinf isnan item layer_norm le leaky_relu lerp
    lift_fresh linalg_vector_norm linspace log log10 log1p log2 log_sigmoid log_softmax logaddexp logcumsumexp
    logical_and logical_not logical_or logical_xor logit logsumexp lt masked_fill masked_scatter masked_select
    matrix_H max max_pool1d max_pool2d max_pool2d_with_indices max_pool3d max_unpool2d maximum mean median meshgrid
    mH min minimum mish mode moveaxis movedim mT mul nan_to_num narrow_copy native_batch_norm native_group_norm
    native_layer_norm ne neg new_full new_ones new_zeros norm normal not_equal numel numpy_T one_hot ones_like or
    pad permute pixel_shuffle pixel_unshuffle polar pow prelu prod rand rand_like randint randn randn_like randperm
    ravel real reciprocal reflection_pad1d reflection_pad2d relu relu6 remainder renorm repeat repeat_interleave
    replication_pad1d replication_pad2d reshape_as resolve_conj rms_norm roll rot90 round rrelu rsqrt rsub
    scalar_tensor scatter scatter_add searchsorted select_scatter selu sigmoid sign silu sin sinh slice_scatter
    softmax softplus softshrink sort split split_with_sizes sqrt square squeeze stack std std_mean stride sub
    subtract sum swapaxes swapdims take take_along_dim tan tanh tensor tensor_split threshold tile topk tril triu
    true_divide trunc unflatten unfold uniform unsafe_chunk unsafe_split upsample_bicubic2d upsample_bicubic2d_aa
    upsample_bilinear2d upsample_bilinear2d_aa upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_trilinear3d var var_mean view_as view_as_complex view_as_real vsplit vstack where
    xor zero
"""
FREE = frozenset(NAMES.split())
