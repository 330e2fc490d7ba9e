"""Narrower networks for the control `small_dense`: the same backbone with every hidden width multiplied by one factor.

Which argument of `timm.create_model` does that depends on the family. A backbone that its arguments shrink only in part
is refused, since that would be another architecture; `narrow_resnet` documents the one exception.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import nn

from benchmark.base.errors import UserError
from benchmark.networks.cifar import CifarNetwork, scale

STEPS = 1000  # widths are multiples of 1/1000, finer than one channel of the widest common stage (512 or 768)
NEIGHBOURS = (-4, -2, -1, 1, 2, 4)
FAMILIES = "cifar_*, ResNet, EfficientNet and MobileNet where timm takes channel_multiplier, ViT and DeiT, ConvNeXt"

Rule = Callable[[str, Any, Mapping[str, Any], float], dict[str, Any]]  # name, full network, its arguments, width

_references: dict[str, nn.Module] = {}


def find_width(build: Callable[[float], nn.Module], count: Callable[[nn.Module], int], budget: int) -> float:
    """Return the smallest width in (0, 1] at which `build(width)` has the largest `count` within `budget`.

    Widths are multiples of 1/1000; networks are built for their shapes alone. The search assumes that the count grows
    with the width; ViT breaks that where its head count changes, so a few neighbours are tried as well. Raises
    UserError when `budget` is below 1 or smaller than the narrowest network. Keeps the global random state.
    """
    if budget < 1:
        raise UserError(f"the budget of a narrow network must be at least 1 weight, got {budget}: lower the sparsity")
    counts: dict[int, int] = {}

    def count_at(step: int) -> int:
        if step not in counts:
            counts[step] = count(build_shapes(lambda: build(step / STEPS)))
        return counts[step]

    steps = range(1, STEPS + 1)
    below = max(1, bisect.bisect_right(steps, budget, key=count_at))  # the last step within the budget
    # many widths round to the same channels: visit the smallest, so that it is returned
    bisect.bisect_left(steps, count_at(below), key=count_at)
    for neighbour in (below + offset for offset in NEIGHBOURS):
        if neighbour in steps:
            count_at(neighbour)
    within = [step for step in counts if counts[step] <= budget]
    if not within:
        raise UserError(
            f"no width of this network is within the budget of {budget:,} weights, the narrowest has "
            f"{min(counts.values()):,}: lower the sparsity"
        )
    return max(within, key=lambda step: (counts[step], -step)) / STEPS


def narrow_arguments(name: str, model_args: Mapping[str, Any], width: float) -> dict[str, Any]:
    """Return the arguments for `timm.create_model(name, ...)` that multiply every hidden width by `width`.

    These extend `model_args`, the full network's. Raises UserError when `width` is not positive, and for a backbone
    that cannot be narrowed. Width 1.0 gives the full network's shapes.
    """
    scale(1, width)  # refuses a width that is not positive
    reference = build_reference(name, model_args)
    rule = next((rule for family, rule in RULES if isinstance(reference, family)), None)
    if rule is None:
        raise refusal(name, f"its family ({type(reference).__name__}) has no rule")
    check_rule(name, model_args, reference, rule)
    return {**model_args, **rule(name, reference, model_args, width)}


def check_rule(name: str, model_args: Mapping[str, Any], reference: Any, rule: Rule) -> None:
    """Raise UserError unless `rule` rebuilds the full network at width 1.0 and shrinks it at width 0.5."""
    same, half = ({**model_args, **rule(name, reference, model_args, width)} for width in (1.0, 0.5))
    added = " and ".join(key for key in half if key not in model_args or half[key] != model_args[key])
    try:
        rebuilt, halved = build_reference(name, same), build_reference(name, half)
    except TypeError as error:
        raise refusal(name, f"timm fixes its {added} and takes no other") from error
    except (AssertionError, ValueError) as error:
        raise refusal(name, f"timm cannot build it with {added} halved") from error
    shapes, rebuilt_shapes, halved_shapes = (
        [weight.shape for weight in network.parameters()] for network in (reference, rebuilt, halved)
    )
    if rebuilt_shapes != shapes:
        raise refusal(name, f"its layers do not all follow {added}")
    if halved_shapes == shapes or halved.head_hidden_size >= reference.head_hidden_size:
        raise refusal(name, f"its last {reference.head_hidden_size} features ignore {added}")


def narrow_cifar(name: str, reference: Any, model_args: Mapping[str, Any], width: float) -> dict[str, Any]:
    """Return `width`, multiplied by that of `model_args`."""
    return {"width": model_args.get("width", 1.0) * width}


def narrow_resnet(name: str, reference: Any, model_args: Mapping[str, Any], width: float) -> dict[str, Any]:
    """Return `channels`, and `stem_width` for a deep stem. Raises UserError for grouped layers and other blocks.

    timm fixes the plain 7x7 stem at 64 channels, so it keeps its width (9,408 of ResNet-50's 25.5 million weights);
    where the first stage has 64 channels and no projection, as in ResNet-18, the narrow one gains a 1x1 projection.
    """
    block = reference.layer1[0]
    if type(block) not in (BasicBlock, Bottleneck):
        raise refusal(name, f"its blocks are {type(block).__name__}, not BasicBlock or Bottleneck")
    for module in reference.modules():
        if isinstance(module, nn.GroupNorm) or (isinstance(module, nn.Conv2d) and module.groups > 1):
            raise refusal(name, "its grouped layers tie channels to a fixed number of groups")
    stem, *stages = (stage["num_chs"] for stage in reference.feature_info)
    channels = [scale(stage // block.expansion, width) for stage in stages]
    if not isinstance(reference.conv1, nn.Sequential):
        return {"channels": tuple(channels)}
    # a deep stem ends with twice stem_width; a tiered one starts with a multiple of stem_width // 4, so at least 4
    stem_width = max(4, scale(stem // 2, width))
    if stem == stages[0]:
        channels[0] = 2 * stem_width // block.expansion  # otherwise rounding would add a projection at some widths
    return {"channels": tuple(channels), "stem_width": stem_width}


def narrow_efficientnet(name: str, reference: Any, model_args: Mapping[str, Any], width: float) -> dict[str, Any]:
    """Return `channel_multiplier`; timm then rounds channels to multiples of 8 (16 for some).

    `check_rule` refuses the many models that fix it by name, such as `efficientnet_b0` and `mobilenetv2_100`, and
    those whose last features do not follow it.
    """
    return {"channel_multiplier": model_args.get("channel_multiplier", 1.0) * width}


def narrow_vit(name: str, reference: Any, model_args: Mapping[str, Any], width: float) -> dict[str, Any]:
    """Return `num_heads` and `embed_dim`; MLPs follow by their ratio. Raises UserError for non-standard blocks.

    The head count is scaled and rounded (at least 1), and `embed_dim` is its multiple nearest to width times the old
    one, so the head dimension stays about the same. A fixed head dimension would leave DeiT-Ti, with 3 heads, only
    three sizes.
    """
    attention: Any = getattr(reference.blocks[0], "attn", None)
    if type(reference.patch_embed) is not PatchEmbed or type(attention) is not Attention:
        raise refusal(name, "its patch embedding or attention is not the standard one")
    num_heads = scale(attention.num_heads, width)
    return {"num_heads": num_heads, "embed_dim": num_heads * scale(reference.embed_dim, width / num_heads)}


def narrow_convnext(name: str, reference: Any, model_args: Mapping[str, Any], width: float) -> dict[str, Any]:
    """Return `dims`. Raises UserError when the head has a hidden layer of fixed width."""
    if reference.head_hidden_size != reference.num_features:
        raise refusal(name, f"its head has a hidden layer of fixed width {reference.head_hidden_size}")
    return {"dims": tuple(scale(stage["num_chs"], width) for stage in reference.feature_info)}


RULES: tuple[tuple[type[nn.Module], Rule], ...] = (
    (CifarNetwork, narrow_cifar),
    (ResNet, narrow_resnet),
    (EfficientNet, narrow_efficientnet),
    (MobileNetV3, narrow_efficientnet),
    (VisionTransformer, narrow_vit),
    (ConvNeXt, narrow_convnext),
)


def refusal(name: str, reason: str) -> UserError:
    """Return the error for backbone `name` that cannot be narrowed."""
    return UserError(
        f"backbone '{name}' cannot be narrowed: {reason}; small_dense can narrow {FAMILIES}: "
        "choose one of these or leave small_dense out"
    )


def build_shapes(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network for its shapes, on the meta device where possible; keeps the random state."""
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError):
        # some networks compute with values while they are built, which meta tensors do not have
        with torch.random.fork_rng(devices=[]):
            return build()


def build_reference(name: str, model_args: Mapping[str, Any]) -> Any:
    """Build backbone `name` for its shapes, once per set of arguments (a search asks many times)."""
    key = f"{name} {sorted(model_args.items(), key=lambda item: item[0])!r}"
    if key not in _references:
        if len(_references) >= 8:
            _references.clear()
        _references[key] = build_shapes(lambda: timm.create_model(name, **model_args))
    return _references[key]
