"""What images resized once promise: their law, the same bits with the file and without, and no damaged one served."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

import benchmark.data.cache
import benchmark.data.shard
from benchmark.base.errors import UserError
from benchmark.base.seeds import derive
from benchmark.config.cells import plan_cells
from benchmark.config.pages import load_page
from benchmark.data.files import CACHE, scan_folder
from benchmark.data.sets import Data, load_data
from benchmark.data.shard import Resized, open_shard, shrink, shrink_all
from tests.harness.images import (
    CPU,
    PARTS,
    collect,
    fail_to_save,
    made,
    no_cache_of_the_user,
    page,
    stored_pixels,
)

__all__ = ["no_cache_of_the_user"]  # a fixture for every test here
SIZE, RESIZED = 28, 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "data" / "folder", PARTS, 4)


def photo(random: np.random.RandomState, width: int = 90, height: int = 60) -> Image.Image:
    """A smooth picture: one that JPEG and resizing change little."""
    corners = random.randint(0, 256, (3, 4, 3)).astype(np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


def write_photos(root: Path, parts: dict[str, list[str]], count: int) -> Path:
    random = np.random.RandomState(0)
    for part, classes in parts.items():
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                photo(random, 90 - k, 60 + 3 * k).save(root / part / name / f"{k}.jpg", quality=95)
    return root


def load(folder: Path, **changes: Any) -> Data:
    settings = {"image_size": SIZE, "resized": RESIZED, "flip": True, "in_memory": False, **changes}
    return load_data(page(data_dir=str(folder), **settings), Path("nowhere"), CPU)


def served(data: Data) -> Tensor:
    """An augmented epoch and the test part."""
    return torch.cat([collect(data.train.epoch(1, 0, 3, False, CPU))[0], collect(data.test.batches(3, CPU))[0]])


# --- what is kept of an image -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "I;16"])
def test_any_image_becomes_an_rgb_jpeg_of_the_asked_size(tmp_path, mode):
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    source = photo(np.random.RandomState(1), 90, 50)
    image = Image.fromarray(np.full((50, 90), 300, np.uint16)) if mode == "I;16" else source.convert(mode)
    image.save(path)
    small = Image.open(io.BytesIO(shrink(str(path), 20)))
    assert (small.format, small.mode, small.size) == ("JPEG", "RGB", (36, 20))
    reference = io.BytesIO()
    source.save(reference, "JPEG", quality=90)
    assert small.quantization == Image.open(reference).quantization  # type: ignore[attr-defined]


def test_a_small_image_keeps_its_size_and_a_large_one_its_look(tmp_path):
    source = photo(np.random.RandomState(1), 900, 600)
    source.save(tmp_path / "a.jpg", quality=95)
    assert Image.open(io.BytesIO(shrink(str(tmp_path / "a.jpg"), 700))).size == (900, 600)
    small = Image.open(io.BytesIO(shrink(str(tmp_path / "a.jpg"), 60)))
    wanted = source.resize((90, 60), Image.Resampling.BILINEAR)
    assert small.size == (90, 60)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(wanted)).mean() < 2


def test_images_come_in_order_whatever_the_threads(folder, monkeypatch):
    monkeypatch.setattr(benchmark.data.shard, "TOGETHER", 2)
    monkeypatch.setattr(benchmark.data.shard, "AHEAD", 1)
    monkeypatch.setattr(benchmark.data.shard, "MAX_WORKERS", 2)
    paths = scan_folder(folder).whole().paths
    assert list(shrink_all(paths, 20)) == [shrink(path, 20) for path in paths]


# --- how it is served -------------------------------------------------------------------------------------------------


def pillow_s(content: bytes, transform: Any, *key: object) -> Tensor:
    """The same JPEG through Pillow and torchvision's own transforms, random numbers from the same seed."""
    torch.manual_seed(derive(*key))
    return transforms.Compose([*transform, transforms.PILToTensor()])(Image.open(io.BytesIO(content)))


def test_crops_and_flips_follow_the_law_of_torchvision_s_transforms(folder):
    images, labels = collect(load(folder, flip=True).train.epoch(3, 2, 4, False, CPU))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(derive("epoch", 3, 2)))
    paths = scan_folder(folder).train.paths
    law = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
    turned = 0
    for image, index in zip(stored_pixels(images), order.tolist(), strict=True):
        wanted = pillow_s(shrink(paths[index], RESIZED), law, "augment", 3, 2, index).int()
        difference = (image.int() - wanted).abs().float()
        assert difference.mean() < 0.7 and difference.max() <= 6, index  # decoders and resizing round apart
        turned += int((image.flip(-1).int() - wanted).abs().float().mean() > 2)
    assert turned > 4  # the pictures are such that another flip would be seen
    assert torch.equal(labels, scan_folder(folder).train.labels[order])


@pytest.mark.parametrize("resized", [28, 40])
def test_evaluation_cuts_the_centre_as_torchvision_does(folder, resized):
    images, _ = collect(load(folder, resized=resized).test.batches(3, CPU))
    law = [transforms.Resize(32), transforms.CenterCrop(SIZE)]  # 28 x 256 / 224
    for image, path in zip(stored_pixels(images), scan_folder(folder).test.paths, strict=True):
        difference = (image.int() - pillow_s(shrink(path, resized), law, "none").int()).abs().float()
        assert difference.mean() < 0.7 and difference.max() <= 6


def test_every_part_and_split_serves_its_own_images(tmp_path):
    folder, grey = tmp_path / "folder", 0
    for part in ("train", "val", "test"):
        for name in "ab":
            (folder / part / name).mkdir(parents=True)
            for k in range(10):
                Image.new("L", (50, 40), grey := grey + 4).save(folder / part / name / f"{k}.png")

    def greys(part: Any) -> list[int]:
        return stored_pixels(collect(part.batches(7, CPU))[0])[:, 0, 0, 0].tolist()

    def close(found: list[int], wanted: list[int]) -> bool:
        return len(found) == len(wanted) and all(abs(a - b) <= 1 for a, b in zip(found, wanted, strict=True))

    data = load(folder)
    assert close(greys(data.train), list(range(4, 84, 4))) and close(greys(data.test), list(range(164, 244, 4)))
    assert close(greys(data.validation), list(range(84, 164, 4)))
    shutil.rmtree(folder / "val")
    data = load(folder, split="holdout")
    assert data.validation is not None
    labels = data.train.labels.tolist()
    assert all((grey > 42) == bool(label) for grey, label in zip(greys(data.train), labels, strict=True))
    both = sorted(greys(data.train) + greys(data.validation))
    assert len(data.validation) == 2 and close(both, list(range(4, 84, 4)))


def test_images_are_the_same_without_the_file_and_none_is_resized_with_it(folder, monkeypatch, capsys):
    monkeypatch.setenv("SPARSE_BENCH_CACHE", "off")
    without = load(folder)
    slow = served(without)
    assert "resized again each time" in capsys.readouterr().err
    monkeypatch.delenv("SPARSE_BENCH_CACHE")
    first = load(folder)
    assert torch.equal(served(first), slow) and first.fingerprint == without.fingerprint
    monkeypatch.setattr(benchmark.data.shard, "shrink", lambda *_: pytest.fail("an image was resized again"))
    monkeypatch.setattr("benchmark.data.sets.check_firsts", lambda *_: pytest.fail("originals were decoded"))
    assert torch.equal(served(load(folder, workers=1)), slow)
    assert len(made(folder)) == 1 and capsys.readouterr().err == ""


def test_the_setting_is_part_of_the_protocol_and_off_on_the_paper_s_page():
    asked = "batch_size=64"
    (usual,) = plan_cells("dense", "0", "imagenet_resnet50", "0", asked)
    (off,) = plan_cells("dense", "0", "imagenet_resnet50", "0", f"{asked} resized=0")
    (on,) = plan_cells("dense", "0", "imagenet_resnet50", "0", f"{asked} resized=256")
    assert usual.page.resized == 0 and usual.variant == off.variant != on.variant


def test_a_size_that_can_not_serve_the_page_is_refused():
    with pytest.raises(UserError, match=r"resized must be 0 .* or at least image_size \(224\), got 128"):
        load_page("imagenet_resnet50", {"resized": 128})
    with pytest.raises(UserError, match="resized must be 0 where in_memory is on"):
        load_page("folder_resnet20", {"resized": 256})
    with pytest.raises(UserError, match="resized must be a number of at least 0"):
        load_page("imagenet_resnet50", {"resized": -1})


# --- faults, beside those of every file of the cache (test_cache) -----------------------------------------------------


def shard_of(folder: Path) -> Path:
    (path,) = made(folder)
    return path


def test_a_touched_source_is_resized_again(folder):
    load(folder)
    before = shard_of(folder)
    photo(np.random.RandomState(9)).save(folder / "train/a/0.jpg")
    load(folder)
    assert shard_of(folder) != before


@pytest.mark.parametrize("cut", [0, -1])
def test_a_truncated_file_is_made_again(folder, cut, capsys):
    good, path = served(load(folder)), shard_of(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    assert torch.equal(served(load(folder)), good) and path.read_bytes() == whole
    assert capsys.readouterr().err.count(f"{path} is not used: damaged") == 1


def test_a_flipped_byte_of_index_or_tail_is_noticed(folder):
    load(folder)
    path, count = shard_of(folder), 16
    whole = path.read_bytes()
    begin = int(open_shard(path, count).ends[-1])
    for place in range(begin, len(whole), 3):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        with pytest.raises(benchmark.data.cache.DamagedError):
            open_shard(path, count)
    path.write_bytes(whole)
    with pytest.raises(benchmark.data.cache.DamagedError):
        open_shard(path, count + 1)


def test_a_flipped_byte_of_an_image_is_mended_from_its_source_and_told(folder, capsys):
    good, path = served(load(folder, workers=1)), shard_of(folder)
    content = bytearray(path.read_bytes())
    content[20] ^= 1  # of the first image, train/a/0.jpg
    path.write_bytes(content)
    layout = scan_folder(folder)
    part = Resized(open_shard(path, 16), np.arange(8), layout.train.paths, RESIZED, SIZE, True)
    assert [part.fetch(k) for k in (0, 1, 0)] == [shrink(layout.train.paths[k], RESIZED) for k in (0, 1, 0)]
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and layout.train.paths[0] in line and "delete it" in line
    assert torch.equal(served(load(folder, workers=1)), good)


def test_a_file_cut_short_or_gone_while_it_is_read_costs_nothing(folder, monkeypatch):
    data = load(folder, workers=1)
    good = served(data)
    os.truncate(shard_of(folder), 100)
    assert torch.equal(served(data), good)
    monkeypatch.setattr(benchmark.data.shard.os, "pread", fail_to_save)
    data.test.workers = 0  # type: ignore[attr-defined]
    assert torch.equal(collect(data.test.batches(3, CPU))[0], good[8:])


def test_a_loader_s_process_that_is_not_a_fork_opens_the_file_anew(folder):
    load(folder)
    shard = open_shard(shard_of(folder), 16)
    copy = pickle.loads(pickle.dumps(shard))
    assert len(copy) == 16 and [copy.read(k) for k in range(16)] == [shard.read(k) for k in range(16)]
    assert copy.file.fileno() != shard.file.fileno()
    shard_of(folder).unlink()  # by another command, for an image that has changed
    assert pickle.loads(pickle.dumps(shard)).read(0) is None and shard.read(0) == copy.read(0) is not None


def test_a_disk_that_will_be_full_costs_the_file_and_not_the_run(folder, monkeypatch, capsys):
    good = served(load(folder))
    shutil.rmtree(folder.parent / CACHE)
    monkeypatch.setattr(benchmark.data.shard, "LOOK", 4)
    monkeypatch.setattr(benchmark.data.shard.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    data = load(folder)
    assert torch.equal(served(data), good) and made(folder) == []
    said = capsys.readouterr().err
    assert "was not written: " in said and "GiB are needed" in said and "resized again" in said


def test_progress_is_told(folder, monkeypatch, capsys):
    monkeypatch.setattr(benchmark.data.shard, "TELL_S", 0.0)
    load(folder)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 16 and "8 of 16 images resized, about 0 min left" in lines[7]
