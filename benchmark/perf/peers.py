"""What the suite is compared with: networks, a plain dense step, and masking as in the GraNet authors' code.

The peer was written from a description of that code, not copied: weights and momentum multiplied by float masks after
a step of torch's own SGD, and an update by sorting.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

import benchmark.networks.cifar  # noqa: F401 (registers the CIFAR networks)
from benchmark.base.timing import clock, time_in_turn
from benchmark.training.masks import MaskSet
from methods.core import count_kept, erk


@dataclass(frozen=True)
class Net:
    """A network with the batch and image size its goals are stated for."""

    label: str
    model: str
    batch: int
    size: int


R20 = Net("ResNet-20", "cifar_resnet20", 128, 32)
VGG = Net("VGG-19", "cifar_vgg19_bn", 128, 32)
R50 = Net("ResNet-50", "resnet50", 8, 224)


def nets(quick: bool) -> tuple[Net, ...]:
    """Return the networks to measure on."""
    return (R20, VGG) if quick else (R20, VGG, R50)


def make_model(net: Net, channels_last: bool = True) -> nn.Module:
    """Return the network in training mode, always with the same weights."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(net.model, num_classes=1000 if net is R50 else 10).train()
    return model.to(memory_format=torch.channels_last) if channels_last else model


def make_batch(net: Net, batch: int, channels_last: bool = True) -> tuple[Tensor, Tensor]:
    """Return random images and labels."""
    images = torch.randn(batch, 3, net.size, net.size, generator=torch.Generator().manual_seed(0))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images.contiguous(memory_format=layout), torch.arange(batch) % 10


def make_sgd(model: nn.Module, fused: bool) -> Optimizer:
    """Return the CIFAR pages' SGD: fused, or torch's default on a CPU, a loop."""
    kinds = {"fused": True} if fused else {"foreach": False, "fused": False}
    return torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, nesterov=True, weight_decay=5e-4, **kinds)


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of convolutions and linear layers by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.dim() > 1}


def sparsify(model: nn.Module, sparsity: float) -> MaskSet:
    """Return a mask set with ERK counts, drawn at random and applied to the model."""
    maskset = MaskSet(prunable(model))
    counts = erk({name: tuple(w.shape) for name, w in maskset.weights.items()}, count_kept(sparsity, maskset.total))
    generator = torch.Generator().manual_seed(1)
    masks = {}
    for name, weight in maskset.weights.items():
        flat = torch.zeros(weight.numel(), dtype=torch.bool)
        flat[torch.randperm(weight.numel(), generator=generator)[: counts[name]]] = True
        masks[name] = torch.zeros_like(weight, dtype=torch.bool).copy_(flat.reshape(weight.shape))
    maskset.commit(masks, sum(counts.values()))
    return maskset


def backward(model: nn.Module, images: Tensor, labels: Tensor, precision: str = "fp32") -> None:
    """Compute new gradients."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = functional.cross_entropy(model(images), labels)
    loss.backward()


@cache
def pass_seconds(net: Net, rounds: int) -> float:
    """Return the median seconds of a forward and backward pass on the network's full batch."""
    model, batch = make_model(net), make_batch(net, net.batch)
    return statistics.median(time_in_turn({"pass": lambda: backward(model, *batch)}, rounds)["pass"])


class Peer:
    """Masks as in the authors' code: floats, multiplied into weights and momentum after every step."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, masks: Mapping[str, Tensor]) -> None:
        self.weights, self.optimizer = prunable(model), optimizer
        self.masks = {name: mask.float() for name, mask in masks.items()}

    def apply(self) -> None:
        """Multiply every weight and its momentum by its mask, into new tensors."""
        for name, weight in self.weights.items():
            weight.data = weight.data * self.masks[name]
            state = self.optimizer.state[weight]
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"] = state["momentum_buffer"] * self.masks[name]

    def step(self) -> None:
        """Take the optimiser step, then mask."""
        self.optimizer.step()
        self.apply()

    def update(self, keep: int, rate: float) -> None:
        """Prune all layers by one threshold, drop and grow within each by sorting, then mask."""
        flat = torch.cat([(w.data * self.masks[n]).abs().reshape(-1) for n, w in self.weights.items()])
        threshold = torch.topk(flat, keep, sorted=True)[0][-1]
        for name, weight in self.weights.items():
            self.masks[name] = (weight.data.abs() > threshold).float()
        self.apply()
        for name, weight in self.weights.items():
            mask = self.masks[name]
            active, total = int(mask.sum().item()), mask.numel()
            gone = math.ceil(rate * active)
            rising = torch.sort(weight.data.abs().reshape(-1))[1]
            drop = mask.reshape(-1).clone()
            drop[rising[: total - active + gone]] = 0.0
            gradient = weight.grad.reshape(-1).abs() * (drop == 0).float()  # type: ignore[union-attr]
            falling = torch.sort(gradient, descending=True)[1]
            drop[falling[:gone]] = 1.0
            self.masks[name] = drop.reshape(mask.shape)
            _ = (self.masks[name].sum().item(), int((weight.data != 0).sum().item()))
        self.apply()


def timed(action: Callable[[], object]) -> float:
    """Return the seconds an action takes."""
    began = clock()
    action()
    return clock() - began
