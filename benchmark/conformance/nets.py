"""Small networks and small data that the checks train on, and a count of their cost made without fvcore."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmark.config.pages import Page
from benchmark.data.arrays import Arrays
from benchmark.data.sets import Data, MemoryImages
from benchmark.networks.witness import recount

SIZE, CHANNELS, CLASSES, IMAGES, BATCH = 6, 2, 3, 45, 8  # the last batch, of 5, cannot be halved


class ConvNet(nn.Module):
    """Two convolutions with batch norm and a classifier: 144, 1,152 and 48 prunable weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(CHANNELS, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class DepthwiseNet(nn.Module):
    """A pointwise, a depthwise and a strided grouped convolution: what MobileNets and ResNeXts are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Conv2d(CHANNELS, 12, 1, bias=False)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.bn = nn.BatchNorm2d(12)
        self.grouped = nn.Conv2d(12, 32, 3, padding=1, stride=2, groups=4, bias=False)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        x = torch.relu(self.bn(self.depth(self.point(x))))
        logits: Tensor = self.fc(torch.relu(self.grouped(x)).mean((2, 3)))
        return logits


class OddNet(nn.Module):
    """What breaks assumptions: a frozen layer, a tied weight, a layer of one weight, one without gradient, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Conv2d(CHANNELS, 10, 3, padding=1, bias=False)
        self.frozen.weight.requires_grad_(False)
        self.mix = nn.Conv2d(10, 10, 3, padding=1, bias=False)
        self.again = nn.Conv2d(10, 10, 3, padding=1, bias=False)
        self.again.weight = self.mix.weight
        self.single = nn.Conv2d(1, 1, 1, bias=False)
        self.dead = nn.Linear(10, 10, bias=False)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        x = torch.relu(self.frozen(x))
        x = torch.relu(self.again(torch.relu(self.mix(x))))
        x = (x * (1 + self.single(x.mean(1, keepdim=True)))).mean((2, 3))
        logits: Tensor = self.fc(self.drop(x) + 0 * self.dead(x))
        return logits


def make_vit() -> nn.Module:
    """Return a vision transformer of one block: layer norms only, so its gradients are sums over images."""
    sizes: dict[str, Any] = {"img_size": SIZE, "patch_size": 2, "in_chans": CHANNELS, "num_classes": CLASSES}
    model: nn.Module = VisionTransformer(**sizes, embed_dim=20, depth=1, num_heads=2, mlp_ratio=2)
    return model


NETWORKS = {"conv": ConvNet, "vit": make_vit, "depthwise": DepthwiseNet, "odd": OddNet}


def make_network(name: str, seed: int) -> nn.Module:
    """Return the network `name` with weights that depend on `seed` alone; the global random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name]()


def make_kit_page(**changes: Any) -> Page:
    """Return the page the checks train on."""
    settings: dict[str, Any] = {
        "title": "conformance",
        "data": "digits",
        "model": "small",
        "epochs": 4,
        "lr": 0.05,
        "update_every": 3,
        "mean": [0.5] * CHANNELS,
        "std": [0.25] * CHANNELS,
        "batch_size": BATCH,
        "image_size": SIZE,
        "crop_pad": 1,
        "channels_last": False,
        "prune_depthwise": True,
        "ema_decay": 0.9,
        "allow_empty_layers": True,
        "precision": "fp32",
    }
    return Page(**{**settings, **changes})


def make_data(page: Page) -> Data:
    """Return random images through the suite's own loader; the last batch of an epoch is smaller than the others."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (IMAGES, CHANNELS, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    arrays, cpu = Arrays(pixels, torch.arange(IMAGES) % CLASSES), torch.device("cpu")
    train, test = MemoryImages(arrays, page, cpu, 1, "reflect", True), MemoryImages(arrays, page, cpu)
    return Data("kit", ("a", "b", "c"), CHANNELS, SIZE, train, None, test, "kit")


def count_macs(model: nn.Module) -> tuple[dict[str, int], int]:
    """Return multiply-adds per active weight by parameter name (positions it is used at), and those of attention.

    Counted by watching one image pass: no fvcore, no tracing.
    """
    seen = recount(model, (CHANNELS, SIZE, SIZE))
    uses = {name: macs // seen.sizes[name] for name, macs in seen.weights.items()}
    return uses, seen.total - sum(seen.weights.values())
