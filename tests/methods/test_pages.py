"""Pages: typed, validated, and equal to the paper's recipes."""

from __future__ import annotations

import pytest

from benchmark.base.errors import UserError
from benchmark.config.pages import load_page, page_names
from benchmark.training.optim import learning_rate

PAPER = ["cifar10_resnet20", "cifar10_resnet50", "cifar10_vgg19", "cifar100_resnet50", "cifar100_vgg19"]


def test_every_page_loads_and_the_promised_ones_are_there():
    promised = {*PAPER, "digits_resnet20", "imagenet_resnet50", "folder_resnet20", "cifar10jpeg_resnet20_short"}
    assert promised <= set(page_names())
    for name in page_names():
        assert load_page(name).title


@pytest.mark.parametrize("name", PAPER)
def test_cifar_pages_follow_table_1_of_the_paper(name):
    page = load_page(name)
    assert (page.epochs, page.batch_size, page.lr, page.momentum, page.weight_decay) == (160, 128, 0.1, 0.9, 5e-4)
    assert (page.nesterov, page.optimizer, page.update_every, page.prune_end) == (True, "sgd", 1000, 0.5)
    rates = [learning_rate(page, epoch) for epoch in (0, 79, 80, 119, 120, 159)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert page.split == ("paper" if "cifar10_" in name else "full")
    assert page.crop_mode == ("reflect" if "cifar10_" in name else "zero")


def test_the_imagenet_page_follows_the_authors_code():
    page = load_page("imagenet_resnet50")
    assert (page.epochs, page.batch_size, page.update_every, page.nesterov) == (100, 128, 4000, False)
    assert (page.label_smoothing, page.warmup_epochs, page.drop_last, page.prune_end) == (0.1, 5, True, 0.3)
    rates = [learning_rate(page, epoch) for epoch in (0, 4, 5, 29, 30, 60, 90)]
    assert rates == pytest.approx([0.1 / 6, 0.5 / 6, 0.1, 0.1, 0.01, 0.001, 0.0001])
    assert page.model_args == {"zero_init_last": False}
    assert (page.conv_init, page.no_decay, page.decay_norm_and_bias) == ("fan_in", ["bn"], True)


def test_rigls_page_follows_its_authors_code():
    page = load_page("cifar10_wrn22_2")
    rates = [learning_rate(page, epoch) for epoch in (0, 76, 77, 153, 154, 229, 230, 249)]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008])
    assert [round(step * 128 / 50_000) for step in (30_000, 60_000, 90_000, 97_656)] == [77, 154, 230, page.epochs]
    assert (page.batch_size, page.weight_decay, page.decay_norm_and_bias, page.keep_dense) == (
        128,
        5e-4,
        False,
        ["first"],
    )
    assert page.prune_end == pytest.approx(75_000 / 97_656, abs=1e-3)


def test_the_vision_transformers_follow_their_papers():
    deit, plain = load_page("imagenet_deit_small"), load_page("imagenet_vit_small")
    for page in (deit, plain):
        assert (page.batch_size, page.accumulate, page.optimizer, page.lr) == (1024, 4, "adamw", 1e-3)
        assert "without RandAugment" in page.title and page.lr_schedule == "cosine"
    assert (deit.epochs, deit.weight_decay, deit.warmup_epochs, deit.label_smoothing) == (300, 0.05, 5, 0.1)
    assert (deit.mixup, deit.cutmix, deit.model_args) == (0.8, 1.0, {"drop_path_rate": 0.1})
    assert (plain.epochs, plain.weight_decay, plain.warmup_epochs, plain.mixup, plain.clip_norm) == (90, 0.1, 8, 0.2, 1)
    small = load_page("cifar10_vit_tiny")
    assert (small.lr * 1024, small.mixup, small.cutmix) == (deit.lr * small.batch_size, deit.mixup, deit.cutmix)


@pytest.mark.parametrize(
    ("epochs", "shares", "drops"),
    [
        (10, [0.5, 0.75], [5, 7]),  # the nearest to 7.5 would be 8
        (18, [0.5, 0.75], [9, 13]),
        (100, [0.3, 0.6, 0.9], [30, 60, 90]),
        (25, [0.56], [14]),  # 14.000000000000002
        (100, [0.29, 0.57, 0.58], [29, 57, 58]),  # 28.999999999999996, 56.99999999999999, 57.99999999999999
        (1, [0.5, 0.75], [1, 1]),  # no drop before the first epoch
    ],
)
def test_the_learning_rate_drops_at_whole_epochs_rounded_down(epochs, shares, drops):
    page = load_page("cifar10_resnet20", {"epochs": epochs, "lr_drops": shares})
    for epoch in range(epochs):
        assert learning_rate(page, epoch) == pytest.approx(0.1 ** (1 + sum(epoch >= drop for drop in drops)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "no setting 'epoch'; did you mean 'epochs'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"lr": -1}, "lr must be a number of at least 0, got -1"),
        ({"lr": 0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be a number"),
        ({"momentum": 2}, r"momentum must be in \[0, 1\], got 2"),
        ({"optimizer": "sdg"}, "optimizer must be one of sgd, adam, adamw, got 'sdg': did you mean 'sgd'"),
        ({"lr_drops": [0.8, 0.5]}, "lr_drops must be rising shares"),
        ({"lr_drops": [80, 120]}, "lr_drops must be rising shares"),
        ({"std": [0.0]}, "std must be above 0"),
        ({"mean": [0.1, 0.2, 0.3]}, "std must be a list as long as mean"),
        ({"warmup_epochs": 99}, "warmup_epochs must be less than epochs"),
        ({"crop_mode": "reflect", "crop_pad": 8}, "crop_pad must be smaller than image_size"),
        ({"momentum": 0}, "nesterov must be false where momentum is 0"),
        ({"keep_dense": 3}, "keep_dense"),
        ({"keep_dense": "[first"}, r"'keep_dense' is '\[first': not readable as YAML: .* \(line 1, column 7\)$"),
    ],
)
def test_an_impossible_setting_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        load_page("digits_resnet20", changes)


@pytest.mark.parametrize("name", ["../pyproject", "", "configs/digits_resnet20.yaml", "grids/digits"])
def test_a_page_is_a_name_never_a_path(name):
    with pytest.raises(UserError, match="unknown page"):
        load_page(name)


def test_a_map_setting_is_merged_not_replaced():
    page = load_page("imagenet_resnet50", {"model_args": {"drop_rate": 0.1}})
    assert page.model_args == {"zero_init_last": False, "drop_rate": 0.1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: x\nepoch: 3\n", "no setting 'epoch'; did you mean 'epochs'"),
        ("title: [unclosed\n", "not readable as YAML"),
        ("- a\n- b\n", "must be a flat list"),
        ("title: x\ndata: digits\n", "'model': is missing"),
    ],
)
def test_a_broken_page_file_is_refused_by_name(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr("benchmark.config.pages.CONFIGS", tmp_path)
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(UserError, match=f"configs/broken.yaml.*{message}"):
        load_page("broken")
