"""CIFAR networks registered with timm: `cifar_resnet20`, `cifar_vgg19_bn`, `cifar_resnet50`, and `cifar_wrn22_2`.

The first three are the GraNet paper's, the last is RigL's (Evci et al., 2020, arXiv:1911.11134).
Importing this module is enough for `timm.create_model("cifar_resnet20", num_classes=10, in_chans=3, width=1.0)`.
Shapes and initial values are those of the authors' code (Liu et al., 2021, arXiv:2106.10404), the last batch-norm gain
of a residual block included: it starts at one, since a zero would hide most gradients from scores taken at step 0.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn
from torch.nn import functional

from benchmark.base.errors import UserError

VGG19_STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels, convolutions; a pooling between stages


def scale(channels: int, width: float) -> int:
    """Return `channels` times `width`, rounded to the nearest whole channel (halves up).

    The result is at least 1 and never falls when `width` grows. Raises UserError when `width` is not positive.
    """
    if not width > 0:
        raise UserError(f"width must be positive, got {width}: 1.0 is the network as published, 0.5 half its channels")
    return max(1, math.floor(channels * width + 0.5))


class CifarNetwork(nn.Module):
    """timm's interface around a body that maps images (N, C, H, W) to features (N, num_features, h, w).

    A subclass sets `body` and `num_features`, calls `reset_classifier`, and may override `init_classifier`.
    """

    body: nn.Module
    classifier: nn.Module
    num_features: int
    classifier_bias = True

    @property
    def head_hidden_size(self) -> int:
        """Features that reach the classifier, timm's second name for `num_features`."""
        return self.num_features

    def init_classifier(self, classifier: nn.Linear) -> None:
        """Initialise a new classifier; PyTorch's default unless a subclass overrides this."""

    def get_classifier(self) -> nn.Module:
        """Return the last layer: `Linear`, or `Identity` when there are no classes."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a new one for `num_classes`, or the identity for 0.

        Raises UserError for any pooling but "avg".
        """
        if global_pool not in (None, "avg"):
            raise UserError(f"the CIFAR networks use mean pooling, got global_pool={global_pool!r}: use 'avg'")
        self.num_classes = num_classes
        self.classifier = nn.Identity()
        if num_classes:
            self.classifier = nn.Linear(self.num_features, num_classes, bias=self.classifier_bias)
            self.init_classifier(self.classifier)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, C, H, W) to the last feature map (N, num_features, h, w)."""
        features: torch.Tensor = self.body(x)
        return features

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Map a feature map (N, num_features, h, w) to logits (N, num_classes), or to pooled features."""
        # not adaptive pooling, whose backward pass is not deterministic on a GPU
        x = x.mean(dim=(2, 3))
        return x if pre_logits else self.classifier(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias, padded to keep the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def make_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the identity, or a 1x1 projection with batch norm where the shapes differ."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(OrderedDict(conv=conv(in_channels, out_channels, 1, stride), bn=nn.BatchNorm2d(out_channels)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al., 2015, Fig. 2)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(in_channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels, 3), nn.BatchNorm2d(channels)
        self.shortcut = make_shortcut(in_channels, channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 (here the stride) and 1x1 to four times the channels, with a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1, self.bn1 = conv(in_channels, channels, 1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = conv(channels, out_channels, 1), nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut(in_channels, out_channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, 4 channels, H / stride, W / stride)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = functional.relu(self.bn2(self.conv2(out)))
        return functional.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class CifarResNet(CifarNetwork):
    """A residual network with a 3x3 stem of stride 1; every stage but the first halves the image.

    `channels` and `depths` give channels and blocks of each stage; the stem has as many channels as the first stage.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        channels: tuple[int, ...],
        depths: tuple[int, ...],
        num_classes: int = 10,
        in_chans: int = 3,
        width: float = 1.0,
        global_pool: str | None = None,
        classifier_bias: bool = True,
        kaiming: bool = False,
    ) -> None:
        super().__init__()
        self.classifier_bias, self.kaiming = classifier_bias, kaiming
        current = scale(channels[0], width)
        body: OrderedDict[str, nn.Module] = OrderedDict(
            conv=conv(in_chans, current, 3), bn=nn.BatchNorm2d(current), relu=nn.ReLU()
        )
        for stage, (planes, depth) in enumerate(zip(channels, depths, strict=True), 1):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(block(current, scale(planes, width), stride))
                current = block.expansion * scale(planes, width)
            body[f"stage{stage}"] = nn.Sequential(*blocks)
        self.body, self.num_features = nn.Sequential(body), current
        for module in self.body.modules():
            if kaiming and isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        self.reset_classifier(num_classes, global_pool)

    def init_classifier(self, classifier: nn.Linear) -> None:
        """Draw the weights like those of the convolutions; the bias keeps PyTorch's default."""
        if self.kaiming:
            nn.init.kaiming_normal_(classifier.weight)


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, with dropout between (Zagoruyko & Komodakis, 2016, Fig. 1).

    Where the channels differ, the shortcut is a 1x1 convolution of the normalised input.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(in_channels), conv(in_channels, channels, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(channels), conv(channels, channels, 3)
        self.drop = nn.Dropout(drop_rate)
        self.shortcut = conv(in_channels, channels, 1, stride) if in_channels != channels else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out = functional.relu(self.bn1(x))
        x = x if self.shortcut is None else self.shortcut(out)
        out = self.drop(functional.relu(self.bn2(self.conv1(out))))
        return torch.add(self.conv2(out), x)


class CifarWideResNet(CifarNetwork):
    """A wide residual network of three stages of `depth` blocks, with a 3x3 stem of 16 channels."""

    def __init__(
        self,
        depth: int,
        factor: int,
        num_classes: int = 10,
        in_chans: int = 3,
        width: float = 1.0,
        global_pool: str | None = None,
        drop_rate: float = 0.3,
    ) -> None:
        super().__init__()
        current = scale(16, width)
        body: OrderedDict[str, nn.Module] = OrderedDict(conv=conv(in_chans, current, 3))
        for stage, channels in enumerate((16, 32, 64), 1):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(WideBlock(current, scale(factor * channels, width), stride, drop_rate))
                current = scale(factor * channels, width)
            body[f"stage{stage}"] = nn.Sequential(*blocks)
        body["bn"], body["relu"] = nn.BatchNorm2d(current), nn.ReLU()
        self.body, self.num_features = nn.Sequential(body), current
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        self.reset_classifier(num_classes, global_pool)

    def init_classifier(self, classifier: nn.Linear) -> None:
        """Draw the weights like those of the convolutions and set the bias to zero."""
        nn.init.xavier_uniform_(classifier.weight)
        nn.init.zeros_(classifier.bias)


class CifarVGG19(CifarNetwork):
    """VGG-19 with batch norm and one linear layer: 16 convolutions, four poolings (Simonyan & Zisserman, 2014)."""

    def __init__(
        self, num_classes: int = 10, in_chans: int = 3, width: float = 1.0, global_pool: str | None = None
    ) -> None:
        super().__init__()
        body: OrderedDict[str, nn.Module] = OrderedDict()
        current = in_chans
        for stage, (channels, depth) in enumerate(VGG19_STAGES, 1):
            if stage > 1:
                # ceil_mode changes nothing at 32x32 and lets 8x8 images through: 8, 4, 2, 1, 1
                body[f"pool{stage - 1}"] = nn.MaxPool2d(2, ceil_mode=True)
            for index in range(1, depth + 1):
                body[f"conv{stage}_{index}"] = conv(current, scale(channels, width), 3)
                current = scale(channels, width)
                body[f"bn{stage}_{index}"] = nn.BatchNorm2d(current)
                body[f"relu{stage}_{index}"] = nn.ReLU()
        self.body, self.num_features = nn.Sequential(body), current
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.reset_classifier(num_classes, global_pool)

    def init_classifier(self, classifier: nn.Linear) -> None:
        """Draw the weights from N(0, 0.01^2) and set the bias to zero."""
        nn.init.normal_(classifier.weight, 0.0, 0.01)
        nn.init.zeros_(classifier.bias)


default_cfgs = generate_default_cfgs(  # timm looks for this name in the module of a registered network
    {
        name: {"num_classes": 10, "input_size": (3, 32, 32), "first_conv": f"body.{first}", "classifier": "classifier"}
        for name in ("cifar_resnet20", "cifar_vgg19_bn", "cifar_resnet50", "cifar_wrn22_2")
        for first in ("conv1_1" if "vgg" in name else "conv",)
    }
)


def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> CifarNetwork:
    """Build ResNet-20 with projection shortcuts: 270,896 prunable weights for 10 classes (He et al., 2015, 4.2).

    Weights of convolutions and classifier are Kaiming-normal over the inputs (fan_in). Takes `num_classes`,
    `in_chans` and `width`, which multiplies every hidden channel count; images of 8x8 and larger.
    """
    network = partial(CifarResNet, BasicBlock, (16, 32, 64), (3, 3, 3), kaiming=True)
    model: CifarNetwork = build_model_with_cfg(network, "cifar_resnet20", pretrained, **kwargs)
    return model


def cifar_vgg19_bn(pretrained: bool = False, **kwargs: Any) -> CifarNetwork:
    """Build VGG-19 with batch norm: 20,024,000 prunable weights for 10 classes (Simonyan & Zisserman, 2014).

    Convolutions are Kaiming-normal over the outputs (fan_out), the classifier is N(0, 0.01^2). Takes `num_classes`,
    `in_chans` and `width`, which multiplies every hidden channel count; images of 8x8 and larger.
    """
    model: CifarNetwork = build_model_with_cfg(CifarVGG19, "cifar_vgg19_bn", pretrained, **kwargs)
    return model


def cifar_resnet50(pretrained: bool = False, **kwargs: Any) -> CifarNetwork:
    """Build ResNet-50 for 32x32 images: 23,467,712 prunable weights for 10 classes, no classifier bias.

    All weights keep PyTorch's default initial values. Takes `num_classes`, `in_chans` and `width`, which multiplies
    every hidden channel count; a bottleneck still expands by four.
    """
    network = partial(CifarResNet, Bottleneck, (64, 128, 256, 512), (3, 4, 6, 3), classifier_bias=False)
    model: CifarNetwork = build_model_with_cfg(network, "cifar_resnet50", pretrained, **kwargs)
    return model


def cifar_wrn22_2(pretrained: bool = False, **kwargs: Any) -> CifarNetwork:
    """Build WRN-22-2 as in RigL's code: 1,076,912 prunable weights for 10 classes (Zagoruyko & Komodakis, 2016).

    Weights are Glorot-uniform, dropout has the rate `drop_rate`, 0.3 there. Also takes `num_classes`, `in_chans` and
    `width`, which multiplies every hidden channel count.
    """
    model: CifarNetwork = build_model_with_cfg(partial(CifarWideResNet, 3, 2), "cifar_wrn22_2", pretrained, **kwargs)
    return model


for entrypoint in (cifar_resnet20, cifar_vgg19_bn, cifar_resnet50, cifar_wrn22_2):
    register_model(entrypoint)
