"""From the command line to cells."""

from __future__ import annotations

import dataclasses
import re
import shlex

import pytest

import benchmark.config.cells as cells_module
from benchmark.base.errors import UserError
from benchmark.config import pages
from benchmark.config.cells import choose_task, parse_arguments, parse_seed, plan_cells
from benchmark.config.pages import CONFIGS, page_names
from benchmark.config.plugins import METHODS, find_method, method_names
from benchmark.runs.record import describe_page

PAGE = "digits_resnet20"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("90", "sparsity must be in [0, 1), got 90: did you mean 0.9?"),
        ("1.0", "sparsity must be in [0, 1), got 1.0: a network without weights cannot be trained"),
        ("-0.1", "got -0.1"),
        ("abc", "got 'abc'"),
        ("nan", "got nan"),
        ("0,9", "SPARSITY=0,9 has a decimal comma: did you mean 0.9?"),
        ("0,9,0,95", "did you mean 0.9,0.95?"),
        ("90%", "got '90%': did you mean 0.9?"),
    ],
)
def test_an_impossible_sparsity_is_refused_with_the_one_that_was_meant(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        plan_cells("static", text, PAGE, "0", "")


def test_possible_sparsities_are_read_and_none_is_less_than_nothing():
    cells = plan_cells("static", "-0,0.9,.5,1e-1", PAGE, "0", "")
    assert [cell.identity.split(f"{PAGE}.static.")[1].split(".s0")[0] for cell in cells] == ["0", "0.9", "0.5", "0.1"]


@pytest.mark.parametrize("text", ["-1", "1.5", "99999999999", "٣"])
def test_an_impossible_seed_is_refused(text):
    with pytest.raises(UserError, match="SEED must be a whole number"):
        parse_seed(text)


def test_dotted_arguments_are_nested_and_a_later_one_counts():
    assert parse_arguments("epochs=2 model_args.width=0.5 model_args.a.b=x epochs=3") == {
        "epochs": "3",
        "model_args": {"width": "0.5", "a": {"b": "x"}},
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
    for arguments, every, label in (("", 31, "rigl"), ("update_every=9", 9, "rigl (update_every=9)")):
        (cell,) = plan_cells("rigl", "0.9", PAGE, "0", arguments)
        assert (cell.method.update_every, cell.label) == (every, label)


def test_identity_changes_with_everything_that_changes_numbers_and_with_nothing_else():
    def name(method="granet", sparsity="0.9", seed="0", arguments=""):
        return plan_cells(method, sparsity, PAGE, seed, arguments)[0].identity

    others = [name(seed="1"), name(sparsity="0.8"), name(arguments="start_sparsity=0"), name(arguments="epochs=3")]
    assert len({name(), name("gmp"), *others}) == 6
    (usual,) = plan_cells("granet", "0.9", PAGE, "0", "start_sparsity=0.5 epochs=30 workers=3 data_dir=x title=y")
    assert (usual.identity, usual.label) == (name(), "granet")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("grannet", "0.9", PAGE, "0", ""), "unknown method 'grannet': did you mean 'granet'\\? available: ac_dc, "),
        (("SNIP", "0.9", PAGE, "0", ""), "unknown method 'SNIP': did you mean 'snip'"),
        (("granet", "0.9", PAGE.upper(), "0", ""), f"unknown page '{PAGE.upper()}': did you mean '{PAGE}'"),
        (("granet", "0.9", PAGE, "0", "epoch=2"), "setting 'epoch': did you mean 'epochs'"),
        (("granet", "0.9", PAGE, "0", "start_sparsty=0"), "did you mean 'start_sparsity'"),
        (("granet", "0.3", PAGE, "0", ""), r"start_sparsity must be in \[0, sparsity = 0.3\], got 0.5"),
        (("", "0.9", PAGE, "0", ""), "METHOD is empty"),
        (("granet", ",", PAGE, "0", ""), "SPARSITY is empty"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_way_out(call, message):
    with pytest.raises(UserError, match=message):
        plan_cells(*call)


def test_a_part_of_a_setting_leaves_its_other_parts_alone():
    (usual,) = plan_cells("rigl", "0.9", PAGE, "0", "")
    (cell,) = plan_cells("rigl", "0.9", PAGE, "0", "methods.rigl.update_end=0.8")
    changed = {"methods": {**usual.page.methods, "rigl": {"update_every": 31, "update_end": 0.8}}}
    assert cell.page == dataclasses.replace(usual.page, **changed)
    assert cell.method_settings() == {**usual.method_settings(), "update_end": 0.8}


def test_streamed_images_share_a_table_whatever_crops_they_would_get_in_memory():
    crops = [{"crop_pad": 2}, {"crop_pad": 0}, {"crop_mode": "zero"}]
    for in_memory, tables in ((True, 3), (False, 1)):
        made = [pages.load_page("folder_resnet20", {**crop, "in_memory": in_memory}) for crop in crops]
        assert len(set(map(cells_module.hash_protocol, made))) == tables
    shipped = [pages.load_page(f"imagenet_{name}") for name in ("resnet50", "deit_small", "vit_small")]
    assert [cells_module.hash_protocol(page) for page in shipped] == ["28757e5a", "ca53ace2", "78f2dedd"]  # as ever


def test_a_method_setting_leaves_the_other_methods_of_the_grid_and_the_page_alone():
    cells = plan_cells("granet,snip,dense", "0.9", PAGE, "0", "update_every=7")
    assert [cell.label for cell in cells] == ["granet (update_every=7)", "snip", "dense"]
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
def test_runs_whose_rate_once_dropped_elsewhere_share_no_table(monkeypatch, page, arguments, same):
    """Drops were at the nearest epoch, 10 x 0.75 at 8, and are at 7; a variant says so only where the two differ."""
    (cell,) = plan_cells("dense", "0", page, "0", arguments)
    now = cell.variant
    monkeypatch.setattr(cells_module, "drop_epochs", lambda drops, epochs: [round(drop * epochs) for drop in drops])
    assert (cell.variant == now) == same


@pytest.mark.parametrize(("page", "variant"), [(PAGE, "f57deb04"), ("cifar10jpeg_resnet20_short", "78d6be4a")])
def test_a_table_keeps_its_name_whatever_settings_are_new(page, variant):
    assert plan_cells("dense", "0", page, "0", "")[0].variant == variant  # that of the committed records


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


@pytest.mark.parametrize("text", ["2024_01", "010", "1e3", "on", "null", "0x10", "2:4", "[a", "a: b", "#1"])
def test_text_stays_text(text, tmp_path, monkeypatch):
    """On the command line, of a page or a method, and in a page's file."""
    cell = plan_cells("static", "0.9", PAGE, "0", shlex.join([f"data_dir={text}", f"densities={text}"]))[0]
    assert (cell.page.data_dir, cell.method_settings()["densities"]) == (text, text)
    cell = plan_cells("static", "0.9", PAGE, "0", shlex.join([f"methods.static.masks={text}"]))[0]
    assert cell.method_settings()["masks"] == text
    if text not in ("[a", "a: b", "#1"):  # which are no plain text in YAML
        page = (CONFIGS / f"{PAGE}.yaml").read_text()
        monkeypatch.setattr(pages, "CONFIGS", tmp_path)
        (tmp_path / "p.yaml").write_text(f"{page}\ndata_dir: {text}\n")
        assert pages.load_page("p").data_dir == text


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("epochs=1e3", "epochs", 1000), ("epochs=7.0", "epochs", 7), ("lr=1", "lr", 1.0), ("lr=.5", "lr", 0.5),
        ("flip=off", "flip", False), ("flip=TRUE", "flip", True), ("lr_drops=0.4,0.9", "lr_drops", [0.4, 0.9]),
        ("lr_drops=[0.4, 0.9]", "lr_drops", [0.4, 0.9]), ("lr_drops=0.4", "lr_drops", [0.4]),
        ("lr_drops=", "lr_drops", []),
        ("keep_dense=010,on", "keep_dense", ["010", "on"]), ("model_args.x=1.5", "model_args", {"x": 1.5}),
        ("model_args.x='1.5'", "model_args", {"x": "1.5"}), ("model_args.x=010", "model_args", {"x": "010"}),
        ("model_args.x=no", "model_args", {"x": False}), ("model_args.x=~", "model_args", {"x": None}),
        ("model_args={a: [1, b], c: 2e3}", "model_args", {"a": [1, "b"], "c": 2000.0}),
        ("epochs='5'", "epochs", 5), ("weight_decay=-0", "weight_decay", 0.0),
    ],
)  # fmt: skip
def test_a_setting_is_read_by_its_type(text, name, value):
    (cell,) = plan_cells("static", "0.9", PAGE, "0", shlex.quote(text))
    found = getattr(cell.page, name)
    assert found == value and type(found) is type(value) and "-" not in str(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods=[]", r"'methods' must be a map, such as \{name: value\}, got \[\]"),
        ("epochs=010", "'epochs' must be a whole number, got '010': did you mean 10?"),
        ("epochs=1.5", "must be a whole number, got '1.5'"),
        ("epochs=٣", "must be a whole number"),
        ("lr=0,05", "'lr' must be a number, got '0,05': did you mean 0.05?"),
        ("flip=maybe", "'flip' must be true or false, got 'maybe'"),
        ("lr_drops=0.5,x", "'lr_drops' must be a number, got 'x'"),
        ("prune_rate=0,3", "method 'granet'.*'prune_rate' must be a number, got '0,3': did you mean 0.3?"),
        ("methods.granet.prune_rate=03", "method 'granet'.*did you mean 3?"),
        ("epochs.x=3", "'epochs' is a single value and has no parts"),
        ("epochs=3 epochs.x=3", "epochs.x reaches into epochs, which is set to '3'"),
        ("LR=1", "did you mean 'lr'?"),
        ("optimizer=SGD", "did you mean 'sgd'?"),
    ],
)  # fmt: skip
def test_what_is_no_value_of_a_setting_s_type_is_refused_with_what_was_meant(text, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        plan_cells("granet", "0.9", PAGE, "0", text)


@pytest.mark.parametrize(
    ("page", "text", "title"),
    [
        (PAGE, "", "ResNet-20 on digits (8x8)"),
        (PAGE, "epochs=1 lr=0.05 data_dir=x", "ResNet-20 on digits (8x8)"),
        (PAGE, "model=resnet18", "resnet18 on digits (8x8)"),
        (PAGE, "model=resnet18 title=mine", "mine"),
        ("cifar10_resnet20", "data=cifar100", "cifar_resnet20 on CIFAR-100"),
        ("folder_resnet20", "data_dir=/a/flowers", "cifar_resnet20 on flowers at 32x32"),
        ("cifar10jpeg_resnet20_short", "image_size=32", "cifar_resnet20 on cifar10-jpeg at 32x32, 8 epochs"),
        ("cifar10jpeg_resnet20_short", "epochs=1", "cifar_resnet20 on cifar10-jpeg at 16x16, 1 epoch"),
        ("imagenet_resnet50", "model=resnet18", "resnet18 on ImageNet at 224x224"),
    ],
)
def test_a_title_tells_what_is_trained_on_what_and_the_setting_stays_the_page_s(page, text, title):
    (cell,) = plan_cells("dense", "0", page, "0", text)
    described = describe_page(cell)
    assert cell.title == described["title"] == title
    assert described["settings"]["title"] == ("mine" if "mine" in text else pages.load_page(page).title)


def test_a_method_s_file_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text((METHODS / "set.py").read_text())
    (cell,) = plan_cells("~/mine.py", "0.9", PAGE, "0", "")
    assert (cell.plugin.name, cell.plugin.source) == ("mine", "~/mine.py")
    with pytest.raises(UserError, match=r"~nosuchuser/mine\.py: there is no home of user 'nosuchuser' here"):
        plan_cells("~nosuchuser/mine.py", "0.9", PAGE, "0", "")


def test_all_is_every_method_that_takes_the_sparsity():
    names = {cell.plugin.name for cell in plan_cells("all", "0.9", PAGE, "0", "")}
    assert names == set(method_names()) - {"sr_ste"}
    assert "sr_ste" in {cell.plugin.name for cell in plan_cells("all", "0.5", PAGE, "0", "")}
    assert {cell.plugin.name for cell in plan_cells("dense, all", "0.9", PAGE, "0", "")} == names
    with pytest.raises(UserError, match=r"sr_ste.*ask SPARSITY=0.5"):
        plan_cells("sr_ste", "0.9", PAGE, "0", "")
