"""Pages: what methods share. A page is a data set, a backbone and a recipe, in one flat YAML file of `configs/`."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmark.base.errors import UserError, nearest, unknown
from benchmark.config.settings import load_yaml, merge_maps, read_value

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

CHOICES = {
    "data": ("digits", "cifar10", "cifar100", "imagenet", "folder"),
    "split": ("paper", "holdout", "full"),
    "crop_mode": ("reflect", "zero"),
    "conv_init": ("network", "fan_in", "fan_out"),
    "optimizer": ("sgd", "adam", "adamw"),
    "lr_schedule": ("step", "cosine"),
    "precision": ("auto", "fastest", "fp32", "bf16"),
    "distribution": ("erk", "er", "uniform"),
}
SHARES = ("momentum", "lr_gamma", "label_smoothing", "ema_decay", "prune_end")
AT_LEAST_ONE = ("image_size", "epochs", "batch_size", "accumulate", "eval_every", "update_every")
AT_LEAST_ZERO = (
    "crop_pad",
    "resized",
    "workers",
    "lr",
    "weight_decay",
    "warmup_epochs",
    "clip_norm",
    "mixup",
    "cutmix",
)

# The key in `methods` for every method that takes the page's value of a setting. Unlike the page's own value it is not
# part of the table: rows of methods that do not read it stay comparable when it changes.
EVERY_METHOD = "all"
FROM_PAGE = ("update_every", "prune_end", "distribution")


@dataclass
class Page:
    """The settings of a page, typed. Every one is part of the protocol: a changed setting makes another page."""

    title: str
    data: str  # digits, cifar10, cifar100, imagenet, or folder (train/CLASS/*, test or val/CLASS/*)
    model: str  # any name of timm.create_model, or cifar_resnet20, cifar_vgg19_bn, cifar_resnet50, cifar_wrn22_2
    epochs: int
    lr: float
    update_every: int  # ΔT in steps, for methods that take the page's
    mean: list[float]  # per channel, in [0, 1] units
    std: list[float]

    # data
    data_dir: str = ""  # folder under DATA, or absolute; "" = the data set's name
    split: str = "full"  # paper: first 90 % train; holdout: stratified 10 % held out; full: all train, none held out
    image_size: int = 32
    crop_pad: int = 4  # random crops after padding by so many pixels; 0 = none
    crop_mode: str = "reflect"  # or zero
    flip: bool = True
    in_memory: bool = True  # False: stream from a folder, ImageNet's transforms
    resized: int = 0  # when streaming: shorter side that images are resized to once, on first use; 0 = the files
    workers: int = 0  # loader processes when streaming; 0 = decide
    batch_size: int = 128  # images of an optimiser step
    accumulate: int = 1  # passes that a step's images are divided among; its gradient is the mean over all of them
    drop_last: bool = False
    mixup: float = 0.0  # alpha of mixup, and of CutMix; 0 = none. With both, each step has one or the other
    cutmix: float = 0.0

    # network
    model_args: dict[str, Any] = field(default_factory=dict)  # passed to timm.create_model
    conv_init: str = "network"  # convolutions as the network draws them; fan_in, fan_out: Kaiming normal by this fan
    init: str = ""  # weights to start from: a file, or the folder of a finished run; "" = drawn by the seed
    init_sha256: str = ""  # of that file, filled in when a run is asked for; one that is given must be the file's
    pretrained: bool = False  # start from timm's weights of this model, or of its tag: resnet50.a1_in1k
    reset_head: bool = False  # whether the classifier is drawn by the seed all the same

    # recipe
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_norm_and_bias: bool = True
    no_decay: list[str] = field(default_factory=list)  # parts of parameter names that are not decayed either
    lr_schedule: str = "step"  # step: times lr_gamma at each of lr_drops; cosine: to zero
    lr_drops: list[float] = field(default_factory=lambda: [0.5, 0.75])  # shares of the run, rounded down to epochs
    lr_gamma: float = 0.1
    warmup_epochs: int = 0  # lr x (epoch + 1) / (warmup_epochs + 1) in these
    label_smoothing: float = 0.0
    clip_norm: float = 0.0  # norm of the active weights' gradients; 0 = none
    ema_decay: float = 0.0  # 0 = none; otherwise the averaged weights are evaluated and exported

    # arithmetic
    precision: str = "auto"  # auto: bf16 autocast on a GPU, fp32 on a CPU; fastest: by a probe at the start
    channels_last: bool = True
    deterministic: bool = True
    compile: bool = False  # training steps by torch.compile: other last bits, and half a minute to start
    sync_batchnorm: bool = False  # batch norm over the images of all ranks, on GPUs; else each rank takes its own

    # sparsity
    keep_dense: list[str] = field(default_factory=list)  # patterns of weight names never pruned; first and last too
    prune_depthwise: bool = False
    allow_dense: list[str] = field(default_factory=list)  # patterns of parameters that may compute under no mask
    distribution: str = "erk"  # of layer densities where a method draws masks at random
    prune_end: float = 0.5  # t_f as a share of the run: when gradual pruning reaches its target
    allow_empty_layers: bool = False  # whether a layer may have no weights at the start
    methods: dict[str, Any] = field(default_factory=dict)  # settings of named methods on this page; all: EVERY_METHOD

    # evaluation
    eval_every: int = 1  # epochs between evaluations; the last epoch is always evaluated


FOLDERS = ("folder", "imagenet")  # data sets whose content is whatever the user's folder holds
KINDS = get_type_hints(Page)  # the type of each setting
SETTINGS = set(KINDS)
DEFAULTS = {  # by setting; a setting that every page must give has none
    f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
    for f in dataclasses.fields(Page)
}


def images_per_pass(page: Page) -> int:
    """Return the most images of one forward pass: a step has `accumulate` of them."""
    return -(-page.batch_size // page.accumulate)


def page_names() -> list[str]:
    """Return the names of the pages in `configs/`, sorted."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def load_page(name: str, changes: dict[str, Any] | None = None) -> Page:
    """Read the page `name` and apply `changes` (setting -> value), typed and validated.

    Raises UserError for an unknown page, an unknown setting (the nearest is offered), a wrong type or an impossible
    value. Invariant: the result holds only plain Python values.
    """
    path = CONFIGS / f"{name}.yaml"
    if name not in page_names():
        raise UserError(unknown("page", name, page_names()))
    try:
        page = copy.deepcopy(read_page(path, path.stat().st_mtime_ns))
    except (OSError, ValueError) as error:
        raise UserError(f"configs/{name}.yaml: cannot be read: {error}") from error
    return apply_changes(page, changes) if changes else page


@functools.cache
def read_page(path: Path, mtime_ns: int) -> Page:
    """Return the page in a file; a grid asks for the same one for each of its cells."""
    settings = load_yaml(path.read_text(encoding="utf-8"), f"configs/{path.name}")
    if not isinstance(settings, dict):
        raise UserError(f"configs/{path.name}: must be a flat list of `setting: value` lines")
    return merge_settings(settings, f"configs/{path.name}")


def apply_changes(page: Page, changes: Mapping[str, Any]) -> Page:
    """Return a copy of a page with the `changes` of ARGS applied, as `load_page` does."""
    return merge_settings(merge_maps({name: getattr(page, name) for name in KINDS}, changes), "ARGS")


def merge_settings(settings: dict[str, Any], source: str) -> Page:
    """Return a validated Page of settings, typed or as written; every error message begins with `source`."""
    for key in settings:
        if key not in SETTINGS:
            raise UserError(f"{source}: no setting '{key}'{nearest(key, SETTINGS).replace(': did', '; did')}")
    try:
        if "${" in repr(settings):  # would be interpolated, from the environment too, and end in a record
            raise UserError(f"{source}: settings must be plain values, without ${{...}}: write the value itself")
        page = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Page), read_settings(settings, KINDS, source)))
    except RecursionError as error:
        raise UserError(f"{source}: settings are nested too deeply") from error
    except OmegaConfBaseException as error:
        setting = getattr(error, "full_key", None) or "?"
        reason = str(error).splitlines()[0]
        if "ListConfig" in reason:
            reason = "must be a list, such as [0.5]"
        missing = "is missing" if "mandatory" in reason.lower() or "MISSING" in reason else reason
        raise UserError(f"{source}: setting '{setting}': {missing}") from error
    assert isinstance(page, Page)
    validate(page, source)
    return page


def validate(page: Page, source: str) -> None:
    """Raise UserError for an impossible value: `SOURCE: epochs must be at least 1, got 0`."""

    def refuse(name: str, rule: str) -> None:
        raise UserError(f"{source}: {name} must be {rule}, got {getattr(page, name)!r}")

    for name, choices in CHOICES.items():
        value = getattr(page, name)
        if value not in choices:
            hint = nearest(str(value), choices)
            raise UserError(f"{source}: {name} must be one of {', '.join(choices)}, got {value!r}{hint}")
    for name in SHARES:
        if not 0 <= getattr(page, name) <= 1:
            refuse(name, "in [0, 1]")
    for name in AT_LEAST_ONE:
        if getattr(page, name) < 1:
            refuse(name, "at least 1")
    for name in AT_LEAST_ZERO:
        if not 0 <= getattr(page, name) < float("inf"):
            refuse(name, "a number of at least 0")
    validate_together(page, refuse)
    validate_resized(page, refuse)
    validate_start(page, refuse)


def validate_together(page: Page, refuse: Callable[[str, str], None]) -> None:
    """Refuse values that contradict each other; `refuse(name, rule)` raises."""
    if page.lr == 0:
        refuse("lr", "above 0")
    if any(not 0 < drop <= 1 for drop in page.lr_drops) or sorted(page.lr_drops) != page.lr_drops:
        refuse("lr_drops", "rising shares of the run in (0, 1]")
    if len(page.mean) != len(page.std) or not page.mean:
        refuse("std", f"a list as long as mean ({len(page.mean)})")
    if not all(0 < value < float("inf") for value in page.std):
        refuse("std", "above 0 for every channel")
    if not all(abs(value) < float("inf") for value in page.mean):
        refuse("mean", "a finite number for every channel")
    for name in ("momentum", "ema_decay"):
        if getattr(page, name) == 1:
            refuse(name, "below 1")
    for name, settings in page.methods.items():
        if not isinstance(settings, dict):
            refuse("methods", f"a map of settings for each method ('{name}' has none)")
    if page.warmup_epochs >= page.epochs and page.warmup_epochs:
        refuse("warmup_epochs", f"less than epochs ({page.epochs})")
    if page.nesterov and page.optimizer == "sgd" and page.momentum == 0:
        refuse("nesterov", "false where momentum is 0")
    if page.crop_mode == "reflect" and page.crop_pad >= page.image_size:
        refuse("crop_pad", f"smaller than image_size ({page.image_size}) for reflect padding")


def validate_resized(page: Page, refuse: Callable[[str, str], None]) -> None:
    """Refuse `resized` for images in memory, or below the size of the crop."""
    if page.resized and page.in_memory:
        refuse("resized", "0 where in_memory is on (images in memory have the page's image_size)")
    if 0 < page.resized < page.image_size:
        refuse("resized", f"0 (the original files) or at least image_size ({page.image_size})")


def validate_start(page: Page, refuse: Callable[[str, str], None]) -> None:
    """Refuse weights to start from that are named twice, and what is said of such weights where none are named."""
    if page.pretrained and page.init:
        refuse("pretrained", f"false where init ({page.init}) gives the weights")
    if page.reset_head and not (page.pretrained or page.init):
        refuse("reset_head", "false where neither init nor pretrained gives weights")
    if page.init_sha256 and not page.init:
        refuse("init_sha256", "empty where init names no file")


def read_settings(settings: dict[str, Any], kinds: dict[str, Any], source: str) -> dict[str, Any]:
    """Return settings converted to their types, `kinds`; raises UserError for one that cannot be converted."""
    found = {}
    for name, value in settings.items():
        try:
            found[name] = read_value(kinds.get(name, Any), value)
        except (ValueError, UserError) as error:
            raise UserError(f"{source}: setting '{name}' {error}") from error
    return found


def changed_settings(page: Page, default: Page) -> dict[str, Any]:
    """Return the settings of `page` that differ from `default`, in the order of the class."""
    names = [f.name for f in dataclasses.fields(Page)]
    return {name: getattr(page, name) for name in names if getattr(page, name) != getattr(default, name)}
