"""From the command line to cells."""

from __future__ import annotations

import dataclasses

import pytest

import benchmark.cells as cells_module
from benchmark.cells import choose_task, parse_arguments, parse_seed, parse_sparsity, plan_cells
from benchmark.errors import UserError
from benchmark.pages import Page, page_names
from benchmark.plugins import find_method

PAGE = "digits_resnet20"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("90", r"sparsity must be in \[0, 1\), got 90: did you mean 0.9\?"),
        ("1.0", r"sparsity must be in \[0, 1\), got 1.0: a network without weights cannot be trained"),
        ("-0.1", r"got -0.1"),
        ("abc", "got 'abc'"),
        ("nan", "got nan"),
        ("inf", "got inf"),
    ],
)
def test_an_impossible_sparsity_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_sparsity(text)


def test_possible_sparsities_are_read():
    assert [parse_sparsity(t) for t in ("0", "0.9", ".5", "9e-1")] == [0.0, 0.9, 0.5, 0.9]


@pytest.mark.parametrize("text", ["-1", "1.5", "x", "99999999999", "٣"])
def test_an_impossible_seed_is_refused(text):
    with pytest.raises(UserError, match="SEED must be a whole number"):
        parse_seed(text)


def test_arguments_are_typed_and_nested():
    assert parse_arguments("epochs=2 lr=5e-2 flip=false lr_drops=[0.5,0.9] model_args.width=0.5 model=vgg") == {
        "epochs": 2,
        "lr": 0.05,
        "flip": False,
        "lr_drops": [0.5, 0.9],
        "model_args": {"width": 0.5},
        "model": "vgg",
    }


@pytest.mark.parametrize("text", ["epochs", "=3", "epochs=2 'unclosed"])
def test_arguments_that_are_no_pairs_are_refused(text):
    with pytest.raises(UserError, match="ARGS"):
        parse_arguments(text)


def test_the_grid_is_every_combination_and_dense_appears_once_per_seed():
    cells = plan_cells("dense,granet,set", "0.9,0.98", PAGE, "0,1", "")
    assert len(cells) == 2 + 2 * 2 * 2
    assert [c.sparsity for c in cells if c.plugin.name == "dense"] == [0.0, 0.0]


def test_a_setting_the_method_has_is_the_methods_and_every_other_the_pages():
    (cell,) = plan_cells("granet", "0.9", PAGE, "0", "start_sparsity=0 epochs=3 update_every=7")
    assert cell.method.start_sparsity == 0.0
    assert cell.page.epochs == 3
    assert (cell.method.update_every, cell.page.update_every) == (7, 20)
    assert cell.label == "granet (start_sparsity=0.0, update_every=7)"
    assert cell.page_changes == {"epochs": 3}


def test_a_page_sets_the_methods_it_names_and_arguments_outrank_it():
    assert plan_cells("rigl", "0.9", PAGE, "0", "")[0].method.update_every == 31
    assert plan_cells("rigl", "0.9", PAGE, "0", "")[0].label == "rigl"
    assert plan_cells("rigl", "0.9", PAGE, "0", "update_every=9")[0].method.update_every == 9


def test_a_value_equal_to_the_usual_one_changes_no_label():
    (cell,) = plan_cells("granet", "0.9", PAGE, "0", "start_sparsity=0.5 epochs=30")
    assert (cell.label, cell.page_changes) == ("granet", {})
    assert cell.identity == plan_cells("granet", "0.9", PAGE, "0", "")[0].identity


def test_identity_changes_with_everything_that_changes_numbers_and_with_nothing_else():
    base = plan_cells("granet", "0.9", PAGE, "0", "")[0]
    others = [
        plan_cells("granet", "0.9", PAGE, "1", "")[0],
        plan_cells("granet", "0.8", PAGE, "0", "")[0],
        plan_cells("granet", "0.9", PAGE, "0", "start_sparsity=0")[0],
        plan_cells("granet", "0.9", PAGE, "0", "epochs=3")[0],
        plan_cells("gmp", "0.9", PAGE, "0", "")[0],
    ]
    assert len({c.identity for c in [base, *others]}) == 6
    assert plan_cells("granet", "0.9", PAGE, "0", "workers=3 data_dir=x title=y")[0].variant == base.variant


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("grannet", "0.9", PAGE, "0", ""), "unknown method 'grannet': did you mean 'granet'\\? available: dense, "),
        (("granet,nope", "0.9", PAGE, "0", ""), "unknown method 'nope'"),
        (("granet", "0.9", "cifar", "0", ""), "unknown page 'cifar'"),
        (("granet", "0.9", PAGE, "0", "epoch=2"), "setting 'epoch': did you mean 'epochs'"),
        (("granet", "0.9", PAGE, "0", "start_sparsty=0"), "did you mean 'start_sparsity'"),
        (("granet", "0.3", PAGE, "0", ""), r"start_sparsity must be in \[0, sparsity = 0.3\], got 0.5"),
        (("granet", "0.9", PAGE, "0", "update_every=0"), "update_every must be at least 1"),
        (("granet", "0.9", PAGE, "0", "prune_rate=2"), r"prune_rate must be in \[0, 1\], got 2.0"),
        (("granet", "0.9", PAGE, "0", "update_every=often"), "'update_every'.*'often'"),
        (("static", "0.9", PAGE, "0", "distribution=erq"), "distribution must be one of erk, er, uniform, got 'erq'"),
        (("", "0.9", PAGE, "0", ""), "METHOD is empty"),
        (("granet", ",", PAGE, "0", ""), "SPARSITY is empty"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_way_out(call, message):
    with pytest.raises(UserError, match=message):
        plan_cells(*call)


def test_an_argument_of_one_method_of_the_grid_leaves_the_others_alone():
    cells = plan_cells("granet,snip", "0.9", PAGE, "0", "start_sparsity=0")
    assert [c.label for c in cells] == ["granet (start_sparsity=0.0)", "snip"]


def test_a_method_setting_moves_no_method_of_the_grid_to_another_page():
    cells = plan_cells("granet,snip,dense", "0.9", PAGE, "0", "update_every=7")
    assert len({cell.variant for cell in cells}) == 1
    assert [cell.page_changes for cell in cells] == [{}, {}, {}]


@pytest.mark.parametrize(
    ("page", "arguments", "same"),
    [
        *((page, "", page != "folder_resnet20") for page in page_names()),  # of 10 epochs: the only one that moves
        ("folder_resnet20", "epochs=8", True),
        ("folder_resnet20", "lr_schedule=cosine", True),
        ("cifar10_resnet20", "epochs=18", False),
        ("cifar10_resnet20", "epochs=100 lr_drops=[0.29]", True),
    ],
)
def test_runs_whose_rate_once_dropped_elsewhere_share_no_table(page, arguments, same):
    """Drops were at the nearest epoch, 10 x 0.75 at 8, and are at 7; a variant says so only where the two differ."""
    (cell,) = plan_cells("dense", "0", page, "0", arguments)
    defaults = {f.name: f.default for f in dataclasses.fields(Page)}
    settings = dataclasses.asdict(cell.page).items()
    kept = {k: v for k, v in settings if k not in cells_module.NOT_PROTOCOL and v != defaults[k]}
    assert (cell.variant == cells_module.short_hash(kept)) == same


def test_settings_of_a_method_changed_through_the_page_are_in_the_label():
    (cell,) = plan_cells("rigl", "0.9", PAGE, "0", "methods.rigl.update_every=3")
    assert cell.label == "rigl (update_every=3)"


def test_the_automatic_task_says_which_page_and_why():
    assert choose_task("auto", has_gpu=True)[0] == "cifar10_vgg19"
    page, reason = choose_task("auto", has_gpu=False)
    assert page == "digits_resnet20"
    assert "no GPU" in reason
    assert choose_task("x", has_gpu=True) == ("x", "")


def test_a_name_that_no_record_may_have_is_refused_before_anything_runs(monkeypatch):
    found = find_method("static")
    monkeypatch.setattr(cells_module, "find_method", lambda name: dataclasses.replace(found, name="<b>static"))
    with pytest.raises(UserError, match="must not contain < or >, got '<b>static': rename it"):
        plan_cells("static", "0.9", "digits_resnet20", "0", "")
