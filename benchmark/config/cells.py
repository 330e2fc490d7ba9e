"""From a user's request to cells: a cell is one method at one sparsity and seed on one page."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

from torch import Tensor

from benchmark.base.errors import UserError, describe_failure, nearest, unknown
from benchmark.base.files import refuse_name
from benchmark.config.pages import (
    DEFAULTS,
    EVERY_METHOD,
    FOLDERS,
    FROM_PAGE,
    SETTINGS,
    Page,
    apply_changes,
    changed_settings,
    load_page,
    read_settings,
)
from benchmark.config.plugins import ALL, Plugin, expand_name, find_method, is_method, method_names
from benchmark.config.settings import guess, nest, parse_words, read_float
from benchmark.config.start import name_pretrained, pin_start
from leaderboard.store.kinds import LARGEST, is_number
from leaderboard.store.privacy import name_secret
from leaderboard.store.repeat import drop_epochs
from leaderboard.tables.sections import amount
from leaderboard.tables.table import plain
from methods.core import Budget, Donor, Method

FIXED = {"digits": "digits (8x8)", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}  # data sets of one size
PROTOCOL = 2  # raised whenever the same settings would give other numbers
DECIMAL_COMMA = r"(?<![\d.])0,(?=0*[1-9]\d*\s*(,|$))"
ALWAYS_NAMED = ("model_args", "lr_drops", "keep_dense")  # even at their defaults, as in a table's first runs
# Where files lie (init_sha256 says what is in them), how fast they are read and what is allowed change no number, so
# these make no other page.
NOT_PROTOCOL = {"title", "data_dir", "workers", "methods", "allow_dense", "init"}
# What has no effect on images that are not in memory.
STREAMED: dict[str, Any] = {"crop_pad": 0, "crop_mode": DEFAULTS["crop_mode"]}


@dataclass(frozen=True)
class DonorRun:
    """The run that a control is made from: what its record says, and what the control takes from it.

    `counts`: active weights by prunable layer. `again`: the command that repeats the run. `bits`: its masks, eight
    weights to a byte; None where `kind`, one of methods.core.DONOR_KINDS, is "densities", and until they are read, see
    benchmark.runs.donors.take_masks. `folder`: where the run was published, if it was named by that folder.
    """

    run: str
    label: str
    sparsity: float
    seed: int
    kind: str
    masks_sha256: str
    counts: dict[str, int]
    bits: dict[str, Tensor] | None = None
    again: str = ""
    folder: Path | None = None

    def describe(self) -> dict[str, Any]:
        """Return the donor as kept in the record of its control."""
        keys = ("run", "label", "sparsity", "seed", "kind", "masks_sha256")
        return {key: getattr(self, key) for key in keys}


@dataclass(frozen=True)
class Cell:
    """One run to do: everything that decides its numbers except the machine.

    `donor` is the run that the method asks to be made from, once benchmark.runs.donors has found it; None where it
    asks for none, and until then. `data` is the fingerprint of its images where that is part of the run's name: see
    `with_data`; empty until `benchmark.grids.states.Ledger.place` has decided.
    """

    page_name: str
    page: Page
    page_changes: dict[str, Any]  # settings that differ from the page's file
    plugin: Plugin
    method: Method
    method_changes: dict[str, Any]  # settings that differ from the method's on this page
    sparsity: float
    seed: int
    donor: DonorRun | None = None
    data: str = ""

    @property
    def label(self) -> str:
        """The row's name on the leaderboard: the method and its changed settings."""
        changed = ", ".join(f"{key}={value}" for key, value in self.method_changes.items())
        return f"{self.plugin.name} ({changed})" if changed else self.plugin.name

    @property
    def title(self) -> str:
        """What the cell is trained on: the page's title, or model and data if a change makes the title untrue."""
        page, told = self.page, {"model", "data"}
        told |= {"data_dir", "image_size"} if page.data not in FIXED else set()
        told |= {"epochs"} if "epoch" in page.title else set()
        if "title" in self.page_changes or not told & set(self.page_changes):
            return page.title
        images = "ImageNet" if page.data == "imagenet" else Path(page.data_dir).name or "an image folder"
        images = FIXED.get(page.data, f"{images} at {page.image_size}x{page.image_size}")
        epochs = f", {amount(page.epochs, 'epoch')}" if "epoch" in page.title else ""
        return f"{page.model} on {images}{epochs}"

    @property
    def variant(self) -> str:
        """A hash of the page's protocol; equal for runs that may share a table."""
        return hash_protocol(self.page)

    @property
    def identity(self) -> str:
        """The run's name, such as digits_resnet20.granet.0.9.s0.3f9a1c2e: equal for runs that give the same numbers."""
        content = {
            "protocol": PROTOCOL,
            "variant": self.variant,
            "method": [self.plugin.name, self.plugin.sha256, self.method_settings()],
            "sparsity": self.sparsity,
            "seed": self.seed,
        }
        if self.donor is not None:  # a donor with other masks makes another control
            content["donor"] = [self.donor.kind, self.donor.masks_sha256]
        if self.data:
            content["data"] = self.data
        return f"{self.page_name}.{self.plugin.name}.{self.sparsity:g}.s{self.seed}.{short_hash(content)}"

    def with_data(self, fingerprint: str) -> Cell:
        """Return the cell with the name of a new run on this data.

        The fingerprint of an image folder, whose content is the user's, is part of the name, so runs on two folders
        never share one. The other data sets are fixed and are not part of it; an empty fingerprint is unknown.
        """
        return dataclasses.replace(self, data=fingerprint if self.page.data in FOLDERS else "")

    def with_name(self, run: str, fingerprint: str) -> Cell:
        """Return the cell named `run` if a run of it on this data may have that name, else named as a new run."""
        old = self.with_data("")
        return old if old.identity == run else self.with_data(fingerprint)

    def names(self, fingerprint: str) -> list[str]:
        """Return the names that a run of this cell on this data may have, a new run's first.

        Earlier versions left the data out of the name: such a run is this cell's only if its data is the same.
        """
        return list(dict.fromkeys(self.with_data(data).identity for data in (fingerprint, "")))

    def method_settings(self) -> dict[str, Any]:
        """Return the method's hyper-parameters by name, without the sparsity."""
        return {key: value for key, value in dataclasses.asdict(self.method).items() if key != "sparsity"}


def hash_protocol(page: Page) -> str:
    """Return a hash of what a page's numbers depend on, without the defaults: equal for pages that share a table."""
    page = page if page.in_memory else dataclasses.replace(page, **STREAMED)
    settings = {
        name: value
        for name, value in dataclasses.asdict(page).items()
        if name not in NOT_PROTOCOL and (name in ALWAYS_NAMED or value != DEFAULTS[name])
    }
    drops = drop_epochs(page.lr_drops, page.epochs)
    nearest_epochs = [round(share * page.epochs) for share in page.lr_drops]
    if page.lr_schedule == "step" and drops != nearest_epochs:  # where older runs dropped the rate
        settings["drop_epochs"] = drops
    if page.pretrained:
        settings["pretrained"] = name_pretrained(page.model)
    return short_hash(settings)


def short_hash(content: Any) -> str:
    """Return eight hexadecimal digits that depend only on the content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def split_list(text: str, what: str) -> list[str]:
    """Return the parts of a comma-separated list, in order and without repeats; raises UserError for an empty one.

    In a list of sparsities `0,9` is a decimal comma: no sparsity but 0 is a whole number.
    """
    if what == "SPARSITY" and re.search(DECIMAL_COMMA, text):
        meant = re.sub(DECIMAL_COMMA, "0.", text)
        raise UserError(f"SPARSITY={plain(text)} has a decimal comma: did you mean {plain(meant)}?")
    parts = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not parts:
        raise UserError(f"{what} is empty: give a value or a comma-separated list")
    return parts


def split_methods(text: str) -> list[str]:
    """Return the methods of a list, `all` and the paper's tables as the methods they stand for; see `split_list`."""
    return list(dict.fromkeys(name for part in split_list(text, "METHOD") for name in expand_name(part)))


def parse_sparsity(text: str) -> float:
    """Return a sparsity in [0, 1); a percentage raises UserError with the value that was meant."""
    try:
        value = read_float(text.strip())
    except ValueError:
        raise UserError(f"sparsity must be a number in [0, 1), got '{plain(text)}'{guess(text)}") from None
    if 0 <= value < 1:
        return value
    hint = f": did you mean {value / 100:g}?" if 1 < value < 100 else ""
    if value == 1:
        hint = ": a network without weights cannot be trained; did you mean 0.99?"
    raise UserError(f"sparsity must be in [0, 1), got {text}{hint}")


def parse_seed(text: str) -> int:
    """Return a seed: a whole number from 0 on."""
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) >= 2**31:
        raise UserError(f"SEED must be a whole number from 0 to 2147483647, got '{plain(text)}'")
    return int(text)


def parse_arguments(text: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in `name=value name=value`, or in a map, as written until their types are known.

    A dotted name reaches into a setting such as model_args.
    """
    changes = parse_words(text) if isinstance(text, str) else nest(text)
    of_methods: Any = changes.get("methods")
    for name, settings in of_methods.items() if isinstance(of_methods, dict) else ():
        if is_method(name) and isinstance(settings, dict):  # text of a method stays text as well
            of_methods[name] = read_settings(settings, get_type_hints(find_method(name).cls), f"method '{name}'")
    return changes


def choose_task(task: str, has_gpu: bool) -> tuple[str, str]:
    """Return the page for `task` and, for `auto`, one line with the choice and the reason."""
    if task != "auto":
        return task, ""
    if has_gpu:
        return "cifar10_vgg19", "TASK=auto: cifar10_vgg19, the paper's first page, because runs have a GPU"
    return "digits_resnet20", "TASK=auto: digits_resnet20, the embedded page for a CPU, because runs have no GPU"


def name_left_out(methods: str, sparsities: str, cells: Iterable[Cell]) -> str:
    """Return a line with the methods of `all` that no cell has, since they take other sparsities; empty without any."""
    left_out = set(expand_name(methods)) - {cell.plugin.name for cell in cells} if methods == ALL else ()
    return f"left out because they do not take SPARSITY={sparsities}: {', '.join(sorted(left_out))}" if left_out else ""


def plan_cells(methods: str, sparsities: str, tasks: str, seeds: str, arguments: str | Mapping[str, Any]) -> list[Cell]:
    """Return the requested grid of cells, pages outermost, with their settings checked.

    Raises UserError for the first fault of any cell, before anything is run. A method without a budget (dense)
    appears once per seed, whatever sparsities are listed. Of `all`, methods that do not take a sparsity at their
    defaults (N:M masks) are left out at that one.
    """
    everything = ALL in split_list(methods, "METHOD")
    changes = parse_arguments(arguments)
    plugins = [find_method(name) for name in split_methods(methods)]
    of_methods = {name for plugin in plugins for name in plugin.settings()}
    refuse_unknown(changes, plugins, of_methods)
    wanted = [parse_sparsity(text) for text in split_list(sparsities, "SPARSITY")]
    numbers = [parse_seed(text) for text in split_list(seeds, "SEED")]
    cells: dict[str, Cell] = {}
    of_page = {key: value for key, value in changes.items() if key not in of_methods}
    for task in split_list(tasks, "TASK"):
        refuse_name(task)
        default = load_page(task)
        page = pin_start(apply_changes(default, of_page) if of_page else default)
        for plugin, sparsity, seed in product(plugins, wanted, numbers):
            if everything and not plugin.takes(default, sparsity):
                continue
            cell = make_cell(task, default, page, plugin, sparsity, seed, changes)
            cells.setdefault(cell.identity, cell)
    return list(cells.values())


def make_cell(
    task: str, default: Page, page: Page, plugin: Plugin, sparsity: float, seed: int, changes: dict[str, Any]
) -> Cell:
    """Return one cell on `page`, which is `default` with the grid's changes.

    A setting that any method of the grid has goes to the methods, every other one to the page: so all cells of a grid
    stay on one page, and a method's changed settings are in its label.
    """
    refuse_name(plugin.name)
    own = {key: value for key, value in changes.items() if key in plugin.settings()}
    if plugin.cls.budget is Budget.DENSE:
        sparsity = 0.0
    method = plugin.build(page, sparsity, own)
    check_methods(page)
    usual = plugin.defaults(default)
    changed = {key: getattr(method, key) for key in usual if getattr(method, key) != usual[key]}
    cell = Cell(task, page, changed_settings(page, default), plugin, method, changed, sparsity, seed)
    check_values({**dataclasses.asdict(page), **cell.method_settings()})
    return cell


def check_values(settings: dict[str, Any]) -> None:
    """Raise UserError for a setting that no record can hold, or that holds a secret, because records are public."""
    for name, value in settings.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise UserError(f"setting '{name}' must be finite numbers, text or lists of them, got {value!r}") from None
        if isinstance(value, int | float) and not isinstance(value, bool) and not is_number(value):
            raise UserError(f"setting '{name}' must be within ±{LARGEST:.0e}, as numbers of records are, got {value!r}")
        secret = name_secret(json.dumps(value, ensure_ascii=False))
        if secret:
            raise UserError(f"setting '{name}' holds the secret in the environment's {secret}, and records are public")


def check_methods(page: Page) -> None:
    """Raise UserError if a page's `methods` names an unknown method, or a setting that the method lacks."""
    for name, settings in page.methods.items():
        if name != EVERY_METHOD and not is_method(name):
            raise UserError(f"setting 'methods': {unknown('method', name, (EVERY_METHOD, *method_names()))}")
        known = FROM_PAGE if name == EVERY_METHOD else find_method(name).settings()
        for key in settings:
            if key not in known:
                whose = "methods take no setting" if name == EVERY_METHOD else f"method '{name}' has no setting"
                raise UserError(f"setting 'methods': {whose} '{key}'{nearest(key, known)}")


APART = ("task", "method", "sparsity", "seed", "device")  # what a command asks for beside settings


def refuse_unknown(changes: dict[str, Any], plugins: list[Plugin], of_methods: set[str]) -> None:
    """Raise UserError for a setting that neither the page nor any of the methods has."""
    for key in changes:
        if key not in SETTINGS | of_methods:
            names = ", ".join(plugin.name for plugin in plugins)
            apart = f"; it is no setting: give it as {key.upper()}=..." if key in APART else ""
            hint = apart or nearest(key, SETTINGS | of_methods)
            raise UserError(f"ARGS: neither the page nor {names} has a setting '{key}'{hint}")


@dataclass(frozen=True)
class Item:
    """A cell of a grid. `donor`: the cell of the same grid whose run it is made from, so has to wait for; None: none.

    `method` is that of the row it stands for: a control goes with the row it is made from. As text it is `granet at
    sparsity 0.9, seed 0 on digits_resnet20`.
    """

    cell: Cell
    method: str
    donor: Cell | None = None

    @property
    def is_control(self) -> bool:
        """Whether the cell is made from another run, of this grid or not, which must have finished before."""
        return self.cell.method.donor() is not None

    def __str__(self) -> str:
        sparsity = f" at sparsity {self.cell.sparsity:g}" if self.cell.sparsity else ""
        return f"{self.cell.label}{sparsity}, seed {self.cell.seed} on {self.cell.page_name}"


def ask_donor(cell: Cell) -> Donor | None:
    """Return the donor that the cell's method declares; a failure of the method's own code becomes a UserError."""
    try:
        return cell.method.donor()
    except Exception as error:  # a plugin may raise anything
        raise UserError(
            f"method '{cell.plugin.name}' fails in donor(): {describe_failure(error, type(cell.method))}"
        ) from error
