"""What data promises: the same images for every method and device, honest splits, errors before the first batch."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
import urllib.error
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from benchmark.base.errors import UserError
from benchmark.data.arrays import Arrays, split_indices, stratify
from benchmark.data.checks import hash_images
from benchmark.data.files import DECODED_AT_ONCE, Files, fit_image, read_image, scan_folder
from benchmark.data.images import StreamedImages
from benchmark.data.sets import MemoryImages, load_data
from benchmark.data.shard import shrink
from benchmark.data.standin import stand_in
from tests.harness.images import CPU, PARTS, collect, page, stored_pixels, write_folder

DIGITS_SUM = 8953801  # of all pixels of scikit-learn's digits, scaled to 0..255
DIGITS_FINGERPRINT = "2271f2211f2faac8ab5a61b487e1f0006ce0e129fcd6f7c387917b5ca989ab7a"
ARCHIVE = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10-jpeg.tar.gz"


def digits_page(**changes: Any) -> Any:
    return page(**{"data": "digits", "mean": [0.0], "std": [1.0], **changes})


def random_part(count: int = 20, channels: int = 3, size: int = 6) -> Arrays:
    """Random pixels; labels are the image's own index, so that a test sees which image it got."""
    pixels = torch.randint(0, 256, (count, channels, size, size), generator=torch.Generator().manual_seed(1))
    return Arrays(pixels.to(torch.uint8), torch.arange(count))


def memory_images(pad: int = 2, mode: str = "reflect", flip: bool = True, **sizes: int) -> MemoryImages:
    return MemoryImages(random_part(**sizes), page(), CPU, pad, mode, flip)


# --- batches ----------------------------------------------------------------------------------------------------------


def test_an_epoch_is_a_function_of_seed_and_epoch():
    first, again = (collect(memory_images().epoch(1, 0, 4, False, CPU)) for _ in range(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    for seed, epoch in ((1, 1), (2, 0)):
        assert not torch.equal(first[1], collect(memory_images().epoch(seed, epoch, 4, False, CPU))[1])


def test_the_order_is_torch_s_permutation_under_a_hash_of_seed_and_epoch():
    seed = int.from_bytes(hashlib.sha256(b"epoch/7/2").digest()[:8], "big") >> 1
    wanted = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(collect(memory_images().epoch(7, 2, 4, False, CPU))[1], wanted)


def test_the_order_does_not_depend_on_batch_size_or_augmentation():
    wanted = collect(memory_images().epoch(3, 0, 4, False, CPU))
    other = collect(memory_images().epoch(3, 0, 7, False, CPU))
    assert torch.equal(wanted[0], other[0]) and torch.equal(wanted[1], other[1])
    assert torch.equal(wanted[1], collect(memory_images(pad=0, flip=False).epoch(3, 0, 4, False, CPU))[1])


def test_batches_depend_on_no_global_random_state_and_leave_it_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = collect(memory_images().epoch(1, 0, 4, False, CPU))[0]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert torch.equal(first, collect(memory_images().epoch(1, 0, 4, False, CPU))[0])


@pytest.mark.parametrize("drop_last", [False, True])
def test_start_skips_exactly_that_many_batches(drop_last):
    images = memory_images(count=22)
    whole = list(images.epoch(1, 2, 4, drop_last, CPU))
    assert [len(labels) for _, labels in whole] == [4, 4, 4, 4, 4] + ([] if drop_last else [2])
    for start in range(len(whole) + 1):
        rest = list(images.epoch(1, 2, 4, drop_last, CPU, start=start))
        assert len(rest) == len(whole) - start
        for (a, b), (c, d) in zip(rest, whole[start:], strict=True):
            assert torch.equal(a, c) and torch.equal(b, d)


@pytest.mark.parametrize("mode", ["reflect", "zero"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_crops_equal_pad_slice_and_flip_image_by_image(mode, flip, channels):
    part, pad, size = random_part(200, channels), 2, 6
    served = MemoryImages(part, page(mean=[0.0] * channels, std=[1.0] * channels), CPU, pad, mode, flip)
    images, labels = collect(served.epoch(1, 0, 16, False, CPU))
    seen = set()
    for image, label in zip(stored_pixels(images).numpy(), labels.tolist(), strict=True):
        frame = [(0, 0), (pad, pad), (pad, pad)]
        padded = np.pad(part.pixels[label].numpy(), frame, mode="reflect" if mode == "reflect" else "constant")
        cuts = {
            (top, left, turned): padded[:, top : top + size, left : left + size][:, :, :: -1 if turned else 1]
            for top in range(5)
            for left in range(5)
            for turned in (False, True)
        }
        matches = [place for place, cut in cuts.items() if np.array_equal(cut, image)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))
    assert {turned for _, _, turned in seen} == ({False, True} if flip else {False})


def test_offsets_and_flips_are_uniform():
    drawn = memory_images(pad=1, count=20)._draw(torch.arange(9000), torch.Generator().manual_seed(0))
    places = torch.bincount(drawn[1] * 6 + drawn[2] * 2 + drawn[3], minlength=18)
    assert places.min() > 400 and places.max() < 600  # 500 expected of each, standard deviation 22


def test_batches_serve_every_image_in_order_without_augmentation():
    images, labels = collect(memory_images().batches(3, CPU))
    assert torch.equal(labels, torch.arange(20))
    assert torch.equal(stored_pixels(images), random_part().pixels)
    assert images.dtype == torch.float32 and images.shape == (20, 3, 6, 6)


def test_pixels_are_normalised_per_channel():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    settings = page(mean=[0.5, 0.1, 0.2], std=[0.25, 0.1, 0.4])
    (images, _), *_ = MemoryImages(Arrays(pixels, torch.tensor([0])), settings, CPU).batches(1, CPU)
    torch.testing.assert_close(images.flatten(), torch.tensor([-2.0, 1.0, 2.0]))


def test_sample_serves_the_asked_images_augmented_by_the_seed_alone():
    images, wanted = memory_images(), torch.tensor([3, 3, 19, 0, 7, 8])
    first, labels = images.sample(wanted, 1, CPU)
    assert torch.equal(labels, wanted)
    assert torch.equal(first, images.sample(wanted, 1, CPU)[0])
    assert not torch.equal(first, images.sample(wanted, 2, CPU)[0])
    evaluated = torch.cat([batch for batch, _ in images.batches(4, CPU)])
    assert torch.equal(images.sample(wanted, 1, CPU, augmented=False)[0], evaluated[wanted])
    plain, _ = memory_images(pad=0, flip=False).sample(wanted, 1, CPU)
    assert torch.equal(stored_pixels(plain), random_part().pixels[wanted])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_sees_the_pixels_of_the_cpu():
    here, there = (
        collect(MemoryImages(random_part(200), page(), device, 2, "reflect", True).epoch(1, 0, 16, False, device))
        for device in (CPU, torch.device("cuda"))
    )
    assert torch.equal(here[0], there[0].cpu()) and torch.equal(here[1], there[1].cpu())


@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_cut_together_equal_batches_cut_one_by_one(drop_last):
    images = memory_images(count=22)
    assert images.pixels_at_once == 0
    alone = list(images.epoch(1, 0, 4, drop_last, CPU, start=1))
    images.pixels_at_once = 3 * 4 * 6 * 6
    together = list(images.epoch(1, 0, 4, drop_last, CPU, start=1))
    assert [len(labels) for _, labels in together] == [4, 4, 4, 4] + ([] if drop_last else [2])
    for (a, b), (c, d) in zip(alone, together, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)


# --- splits -----------------------------------------------------------------------------------------------------------


def test_paper_split_trains_on_the_first_45000_of_50000():
    train, held_out = split_indices(torch.zeros(50_000, dtype=torch.int64), "paper", shuffled=False)
    assert torch.equal(train, torch.arange(45_000)) and torch.equal(held_out, torch.arange(45_000, 50_000))


def test_stratify_apportions_by_class_size_and_keeps_single_images():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 9 + [3])
    chosen = stratify(labels, 10, "holdout")
    assert torch.bincount(labels[chosen], minlength=4).tolist() == [6, 3, 1, 0]
    assert not torch.equal(chosen, stratify(labels, 10, "another draw"))


@pytest.mark.parametrize(("split", "sizes"), [("full", (1437, None)), ("paper", (1293, 144)), ("holdout", (1293, 144))])
def test_digits_are_split_as_described(split, sizes):
    data = load_data(digits_page(split=split), Path("nowhere"), CPU)
    held_out = data.validation and len(data.validation)
    assert (len(data.train), held_out, len(data.test)) == (*sizes, 360)
    assert (data.channels, data.image_size, data.classes) == (1, 8, tuple("0123456789"))
    assert set(torch.bincount(data.test.labels).tolist()) <= {35, 36, 37}
    parts = [part for part in (data.train, data.validation, data.test) if part is not None]
    everything = torch.cat([collect(part.batches(500, CPU))[0] for part in parts])
    assert len(everything) == 1797
    assert everything.double().sum().item() * 255 == pytest.approx(DIGITS_SUM, rel=1e-6)  # parts are disjoint


def test_images_are_resized_once_to_the_page_size():
    data = load_data(digits_page(image_size=32), Path("nowhere"), CPU)
    small = load_data(digits_page(), Path("nowhere"), CPU)
    (large, _), (original, _) = (next(iter(d.test.batches(1, CPU))) for d in (data, small))
    assert data.image_size == 32 and large.shape == (1, 1, 32, 32)
    smooth = torch.nn.functional.interpolate(original, size=(32, 32), mode="bilinear", antialias=True)
    assert (large - smooth).abs().max() < 1.01 / 255


def test_the_fingerprint_is_that_of_the_data():
    plain = load_data(digits_page(), Path("nowhere"), CPU)
    assert plain.fingerprint == load_data(digits_page(split="holdout", crop_pad=1), Path("elsewhere"), CPU).fingerprint
    assert plain.fingerprint == DIGITS_FINGERPRINT


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_as_it_was_written(tmp_path):
    write_folder(tmp_path / "folder", {"train": ["cat", "ant"], "val": ["ant", "cat"]})
    data = load_data(page(), tmp_path, CPU)
    assert data.classes == ("ant", "cat") and data.validation is None
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    images, _ = collect(data.train.batches(4, CPU))
    wanted = np.asarray(Image.open(tmp_path / "folder/train/cat/1.png")).transpose(2, 0, 1)
    assert np.array_equal(stored_pixels(images)[4].numpy(), wanted)


@pytest.mark.parametrize(("split", "in_memory"), [("full", True), ("paper", False), ("holdout", True)])
def test_a_folder_with_val_and_test_is_not_cut(tmp_path, split, in_memory):
    folder = write_folder(tmp_path / "folder", {"train": ["a", "b"], "val": ["a", "b"]}, count=10)
    write_folder(folder, {"test": ["a", "b"]}, count=2, seed=1)
    data = load_data(page(split=split, in_memory=in_memory), tmp_path, CPU)
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 20, 4)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_folder_is_cut_when_it_brings_no_validation_part(tmp_path, in_memory):
    write_folder(tmp_path / "folder", {"train": ["a", "b"], "val": ["a", "b"]}, count=10)
    data = load_data(page(split="holdout", in_memory=in_memory), tmp_path, CPU)
    assert data.validation is not None
    assert data.train.labels.bincount().tolist() == [9, 9] and data.validation.labels.tolist() == [0, 1]


def test_images_of_another_shape_keep_their_proportions(tmp_path):
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 200  # the middle square
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert np.unique(np.asarray(fit_image(read_image(str(tmp_path / "wide.png")), 8))).tolist() == [200]


def test_the_fingerprint_of_a_folder_sees_pixels_and_labels(tmp_path):
    for name in ("one", "two", "three"):
        write_folder(tmp_path / name, PARTS)
    (tmp_path / "two/train/a/0.png").rename(tmp_path / "two/train/b/9.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "three/test/a/0.png")
    for in_memory in (True, False):
        pages = [page(data_dir=name, in_memory=in_memory) for name in ("one", "two", "three")]
        prints = [load_data(settings, tmp_path, CPU).fingerprint for settings in pages]
        assert len(set(prints)) == 3 and {len(text) for text in prints} == {64}
        moved = write_folder(tmp_path / f"moved{in_memory}", PARTS)
        assert load_data(page(data_dir=str(moved), in_memory=in_memory), tmp_path, CPU).fingerprint == prints[0]


def test_uncompressed_sets_of_the_same_names_and_sizes_have_fingerprints_of_their_own(tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        write_folder(tmp_path / name, PARTS, kind="bmp", seed=seed)
    prints = [load_data(page(data_dir=name, in_memory=False), tmp_path, CPU).fingerprint for name in ("one", "two")]
    assert prints[0] != prints[1]


def test_streamed_images_are_the_same_whatever_the_number_of_workers(tmp_path):
    folder = write_folder(tmp_path, PARTS, count=5, size=40)
    files = scan_folder(folder).train
    parts = [StreamedImages(files, 16, [0.5] * 3, [0.5] * 3, flip=True, workers=workers) for workers in (0, 2)]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    epochs = [collect(part.epoch(1, 0, 4, False, CPU)) for part in parts]
    assert torch.equal(before, torch.get_rng_state())
    for images, labels in epochs[1:]:
        assert torch.equal(images, epochs[0][0]) and torch.equal(labels, epochs[0][1])
    assert epochs[0][0].shape == (10, 3, 16, 16) and sorted(epochs[0][1].tolist()) == [0] * 5 + [1] * 5
    rest = collect(parts[1].epoch(1, 0, 4, False, CPU, start=1))
    assert torch.equal(rest[0], epochs[0][0][4:]) and torch.equal(rest[1], epochs[0][1][4:])
    assert len(list(parts[0].epoch(1, 0, 4, True, CPU))) == 2
    chosen = torch.tensor([7, 2])
    assert torch.equal(parts[0].sample(chosen, 1, CPU)[0], parts[1].sample(chosen, 1, CPU)[0])
    assert parts[0].sample(chosen, 1, CPU)[1].tolist() == [1, 0]


def test_streamed_augmentation_differs_by_image_epoch_and_seed(tmp_path):
    folder = write_folder(tmp_path, {"train": ["a"], "test": ["a"]}, count=1, size=64)
    path = str(folder / "train/a/0.png")
    part = StreamedImages(Files([path] * 3, torch.arange(3)), 8, [0.5] * 3, [0.5] * 3, flip=False, workers=0)
    served = [collect(part.epoch(seed, epoch, 3, False, CPU)) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    crops = torch.cat([images[labels.argsort()] for images, labels in served])
    assert len(crops.unique(dim=0)) == 9


def test_streamed_evaluation_cuts_the_centre_after_resizing(tmp_path):
    folder = write_folder(tmp_path / "imagenet", {"train": ["a", "b"], "val": ["a", "b"]}, count=1, size=256)
    settings = page(data="imagenet", in_memory=False, image_size=224, mean=[0.5] * 3, std=[0.25] * 3, workers=1)
    images, labels = collect(load_data(settings, tmp_path, CPU).test.batches(2, CPU))
    stored = np.asarray(Image.open(folder / "val/a/0.png")).transpose(2, 0, 1)[:, 16:240, 16:240]
    torch.testing.assert_close(images[0], (torch.from_numpy(stored / 255.0).float() - 0.5) / 0.25, atol=1e-5, rtol=0)
    assert labels.tolist() == [0, 1]


# --- what a person's folder holds -------------------------------------------------------------------------------------

STEPS = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def modes() -> dict[str, tuple[str, Image.Image, np.ndarray | int]]:
    """Return by name: a kind of file, an image of it, and the grey levels (or the one colour) that it must give."""
    clear = Image.merge("RGBA", [Image.fromarray(STEPS)] * 3 + [Image.new("L", (8, 8), 9)])
    palette = Image.fromarray(STEPS).convert("P")
    palette.info["transparency"] = 8
    return {
        "16 bits": ("png", Image.fromarray(STEPS.astype(np.uint16) * 257), STEPS),
        "16 bits, pgm": ("PGM", Image.fromarray(STEPS.astype(np.uint16) * 257), STEPS),
        "16 bits, tif": ("tif", Image.fromarray(STEPS.astype(np.uint16) * 257), STEPS),
        "bitmap": ("png", Image.fromarray(STEPS > 99), np.where(STEPS > 99, 255, 0)),
        "grey with alpha": ("png", clear.convert("LA"), STEPS),
        "alpha": ("webp", clear, STEPS),
        "palette": ("gif", Image.fromarray(STEPS), STEPS),
        "clear palette": ("png", palette, STEPS),
        "four inks": ("tif", Image.new("CMYK", (8, 8), (0, 0, 0, 55)), 200),
    }


@pytest.mark.parametrize("name", modes())
def test_every_mode_is_read_with_its_own_grey_levels(tmp_path, name):
    kind, image, wanted = modes()[name]
    image.save(tmp_path / f"x.{kind}", **({"lossless": True, "exact": True} if kind == "webp" else {}))
    notes: list[str] = []
    found = np.asarray(read_image(str(tmp_path / f"x.{kind}"), notes))
    assert (found == np.broadcast_to(np.asarray(wanted)[..., None] if np.ndim(wanted) else wanted, (8, 8, 3))).all()
    changed = {"16 bits": "scaled", "grey with alpha": "opaque", "alpha": "opaque", "clear palette": "opaque"}
    said = changed.get(name.partition(",")[0], "CMYK" if name == "four inks" else "")
    assert [said in note for note in notes] == ([True] if said else [])


@pytest.mark.parametrize("values", [STEPS.astype(np.float32) / 255, STEPS.astype(np.int32)])
def test_pixels_whose_white_nobody_knows_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"x\.tif: can't be decoded .* nothing says which is white: save 8"):
        read_image(str(tmp_path / "x.tif"))


@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_a_photograph_is_read_upright_by_every_reader(tmp_path, kind):
    lying = np.zeros((16, 32, 3), dtype=np.uint8)
    lying[:, :16] = 255  # its left half is the top of the photograph
    image, path = Image.fromarray(lying), str(tmp_path / f"x.{kind}")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif, **({} if kind == "tif" else {"quality": 100}))
    notes: list[str] = []
    upright = np.asarray(read_image(path, notes)).astype(int)
    assert upright.shape == (32, 16, 3) and upright[:15].min() > 250 and upright[17:].max() < 5
    assert notes == ["rotated as EXIF data say"]
    small = np.asarray(Image.open(io.BytesIO(shrink(path, 8)))).astype(int)
    assert small.shape == (16, 8, 3) and small[:6].min() > 240 and small[10:].max() < 15


def test_a_file_of_several_pictures_gives_its_first_and_says_so(tmp_path):
    first, second = Image.new("L", (8, 8), 10), Image.new("L", (8, 8), 200)
    first.save(tmp_path / "x.gif", save_all=True, append_images=[second])
    notes: list[str] = []
    assert np.unique(np.asarray(read_image(str(tmp_path / "x.gif"), notes))).tolist() == [10]
    assert notes == ["of several frames, the first of which was read"]


def write_foreign(folder: Path) -> None:
    """Put into a folder what lies in people's folders beside their images."""
    (folder / "train/a/._0.png").write_bytes(b"\0")
    (folder / "train/.git").mkdir()
    for system in ("train/__MACOSX/a", "train/a/@eaDir/0.png"):
        (folder / system).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "train/a/@eaDir/0.png/preview.png")
    (folder / "train/empty").mkdir()
    (folder / "test/a/notes.txt").write_text("not an image")
    (folder / "test/b/Thumbs.db").write_bytes(b"\0")
    (folder / "train/0.png").write_bytes(b"\0")
    (folder / "extra").mkdir()
    (folder / "train/b/loop").symlink_to(folder / "train")
    (folder / "train/b/again.png").symlink_to("0.png")
    (folder / "train/b/gone.png").symlink_to("nowhere.png")
    (folder / "train/b/self.png").symlink_to("self.png")
    (folder / "train/a/of_b").symlink_to("../b")


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_line_says_what_was_read_and_what_was_left_out(tmp_path, in_memory, capsys):
    folder = write_folder(tmp_path / "folder", PARTS)
    plain = load_data(page(in_memory=in_memory), tmp_path, CPU)
    assert capsys.readouterr().out == "folder folder: read 6 train and 6 test images in 2 classes\n"
    write_foreign(folder)
    data = load_data(page(in_memory=in_memory), tmp_path, CPU)
    assert (data.fingerprint, data.classes, len(data.train)) == (plain.fingerprint, ("a", "b"), 6)
    assert capsys.readouterr().out == (
        "folder folder: read 6 train and 6 test images in 2 classes; skipped 1 empty folder, 1 file of type .db, "
        "1 file of type .txt, 1 folder beside train and test, 2 folders met before through a link, "
        "1 folder named @eaDir, 1 folder named __MACOSX, 1 hidden file, "
        "1 hidden folder, 1 image met before through a link, 1 image outside of the class folders, 2 links to nowhere\n"
    )


def test_what_was_done_to_pixels_is_said_with_the_cache_and_without(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SPARSE_BENCH_CACHE", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "folder", PARTS)
    Image.fromarray(STEPS.astype(np.uint16) * 257).save(folder / "train/a/0.png")
    Image.new("RGB", (8, 9)).save(folder / "train/a/9.PNG")
    Image.new("RGB", (16, 16)).save(folder / "train/b/9.PNG")
    first, again = load_data(page(), tmp_path, CPU), load_data(page(), tmp_path, CPU)
    assert first.fingerprint == again.fingerprint and len(first.train) == 8
    said = capsys.readouterr().out.splitlines()
    read = "folder folder: read 8 train and 6 test images in 2 classes"
    done = "; 1 image cut to the square in the middle; 1 image resized to the page's image_size"
    assert said == [f"{read}{done}; 1 image scaled from 16 bits to 8"] * 2
    load_data(page(in_memory=False), tmp_path, CPU)
    looked = "1 image scaled from 16 bits to 8 (of 4 looked at, one of each class and part)"
    assert capsys.readouterr().out == f"{read}; {looked}\n"


def test_a_name_that_is_not_text_is_refused(tmp_path):
    folder = write_folder(tmp_path / "folder", PARTS)
    try:
        shutil.copyfile(folder / "train/a/0.png", folder / "train/a" / "caf\udce9.png")
    except OSError:
        pytest.skip("this file system takes no such name")
    message = refusal(page(), tmp_path)
    assert "caf\\xe9" in message and "must be UTF-8: rename it" in message
    assert "must be UTF-8" in refusal(page(data_dir="caf\udce9"), tmp_path)


def test_the_home_of_a_user_who_is_not_known_is_refused():
    asked = [(page(data_dir="~nosuchuser/x"), Path("nowhere")), (page(), Path("~nosuchuser/data"))]
    for settings, root in asked:
        for load in (lambda *places: load_data(*places, CPU), stand_in):
            with pytest.raises(UserError, match="there is no home of user 'nosuchuser' here: write the path out"):
                load(settings, root)


# --- data that say nothing, and errors --------------------------------------------------------------------------------


def refusal(settings: Any, root: Path) -> str:
    with pytest.raises(UserError) as refused:
        load_data(settings, root, CPU)
    return str(refused.value)


FAULTS = [  # what lies in the folder, by part and class; what is done to it; whether it is read to memory; what is told
    ({}, None, True, r"no image folder at \S+/folder.*train/CLASS/.*test/CLASS/.*DATA="),
    ({"extra": ["a"]}, None, True, "no folder 'train'"),
    ({"train": ["a"]}, None, True, "neither a folder 'test' nor 'val'"),
    ({"test": ["a"]}, lambda at: (at / "train").mkdir(), True, "train: no class folder; expected"),
    (PARTS, lambda at: write(at / "train/wasp/notes.txt", b"no image"), True, "train: no image in class wasp"),
    ({"train": ["ant", "bee"], "val": ["ant", "fly"]}, None, True, "only in train: bee; only in val: fly"),
    (PARTS, lambda at: write(at / "test/b/0.png", b"no picture"), True, r"test/b/0\.png: can't be decoded"),
    (PARTS, lambda at: write(at / "test/b/0.png", b""), False, r"test/b/0\.png: can't be decoded"),
    *(
        ({"train": ["a"], "test": ["a"]}, None, memory, "has one class, 'a', so any network is right")
        for memory in (True, False)
    ),
]


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(("parts", "harm", "in_memory", "told"), FAULTS)
def test_a_folder_that_cannot_serve_is_refused_by_what_is_wrong(tmp_path, parts, harm, in_memory, told):
    folder = write_folder(tmp_path / "folder", parts)
    if harm:
        harm(folder)
    assert re.search(told, refusal(page(in_memory=in_memory), tmp_path))
    if "one class" in told:
        with pytest.raises(UserError, match=told):
            stand_in(page(in_memory=in_memory), tmp_path)


@pytest.mark.parametrize(
    ("kind", "in_memory"), [("link", True), ("links", False), ("hard links", False), ("copies", True)]
)
def test_testing_on_the_training_images_is_refused(tmp_path, in_memory, kind):
    folder = write_folder(tmp_path / "folder", {"train": ["a", "b"]})
    ways = {"links": lambda a, b: Path(b).symlink_to(a), "hard links": os.link, "copies": shutil.copyfile}
    if kind == "link":
        (folder / "test").symlink_to("train")
    else:
        shutil.copytree(folder / "train", folder / "test", copy_function=ways[kind])
    assert re.search("all 6 .*so a test would mean nothing", refusal(page(in_memory=in_memory), tmp_path))


@pytest.mark.parametrize("in_memory", [True, False])
def test_test_images_that_are_trained_on_are_counted_and_told(tmp_path, in_memory, capsys):
    folder = write_folder(tmp_path / "folder", PARTS)
    assert load_data(page(in_memory=in_memory), tmp_path, CPU).overlap == 0 and capsys.readouterr().err == ""
    shutil.copyfile(folder / "train/a/0.png", folder / "test/b/copy.png")
    (folder / "test/a/link.png").symlink_to("../../train/b/1.png")
    assert load_data(page(in_memory=in_memory), tmp_path, CPU).overlap == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("cache: ")]
    assert told == "warning: folder: 2 of 8 test images are training images too; the record says so"


def test_copies_that_a_split_holds_out_are_told(tmp_path, capsys):
    folder = write_folder(tmp_path / "folder", PARTS)
    shutil.rmtree(folder / "val", ignore_errors=True)
    for number in range(20):
        shutil.copyfile(folder / "train/a/0.png", folder / f"train/a/copy{number}.png")
    data = load_data(page(in_memory=True, split="holdout"), tmp_path, CPU)
    assert data.validation is not None and len(data.validation) == 3
    assert "validation images are copies of training images" in capsys.readouterr().err


def test_images_that_differ_in_one_pixel_are_told_apart():
    images = torch.zeros(4, 3, 20, 20, dtype=torch.uint8)
    images[1, 2, 11, 7], images[3, 2, 11, 7] = 1, 1
    (found,) = hash_images([images])
    assert found[1] == found[3] != found[0] == found[2]


def test_data_without_a_difference_or_a_class_are_refused_or_told(tmp_path, capsys):
    folder = write_folder(tmp_path / "folder", PARTS, count=2)
    load_data(page(split="holdout"), tmp_path, CPU)
    assert "split=holdout leaves no validation image of class b" in capsys.readouterr().err
    (folder / "train/a/1.png").unlink()
    (folder / "train/b/1.png").unlink()
    message = refusal(page(split="holdout"), tmp_path)
    assert "split=holdout leaves no training image of class a: add images to it, or set split=full" in message
    for path in (folder / "train").rglob("*.png"):
        Image.new("RGB", (8, 8)).save(path)
    assert "all 2 training images have the same pixels" in refusal(page(), tmp_path)


def test_a_truncated_image_is_named_wherever_it_stands(tmp_path):
    folder = write_folder(tmp_path / "folder", {"train": ["a"], "test": ["a"]}, count=DECODED_AT_ONCE + 5, kind="jpg")
    broken = sorted((folder / "train/a").iterdir())[-2]
    broken.write_bytes(broken.read_bytes()[:-60])
    assert f"{broken}: can't be decoded" in refusal(page(), tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_met_while_streaming_is_named_in_one_line(tmp_path, workers):
    folder = write_folder(tmp_path, {"train": ["a"], "test": ["a"]})
    (folder / "train/a/2.png").write_bytes(b"broken")
    part = StreamedImages(scan_folder(folder).train, 8, [0.5] * 3, [0.5] * 3, flip=False, workers=workers)
    with pytest.raises(UserError, match=r"2\.png: can't be decoded") as refused:
        list(part.epoch(1, 0, 2, False, CPU))
    assert "Traceback" not in str(refused.value)


def test_settings_that_do_not_fit_the_data_are_refused(tmp_path):
    assert "mean and std must have 1 value(s)" in refusal(page(data="digits"), tmp_path)
    assert "in_memory=false" in refusal(digits_page(in_memory=False), tmp_path)
    assert "batch_size must be at most 1437" in refusal(digits_page(batch_size=1438, drop_last=True), tmp_path)
    write_folder(tmp_path / "folder", {"train": ["a"], "test": ["a"]}, count=1)
    assert "needs at least 2 training images, got 1" in refusal(page(split="holdout"), tmp_path)


def test_a_folder_that_memory_cannot_hold_is_refused_counting_all_its_parts_and_the_padded_copy(tmp_path, monkeypatch):
    write_folder(tmp_path / "folder", {"train": ["a", "b"], "test": ["a", "b"]}, count=4)  # 8 images and 8 for testing
    need = 3 * (16 * 8**2 + 8 * 12**2 + 8 * 8**2)
    for memory, fits in ((need, True), (need - 1, False)):
        monkeypatch.setattr("benchmark.data.files.os.sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": memory}.get)
        asked = page(split="full", image_size=8, crop_pad=2)
        if fits:
            load_data(asked, tmp_path, CPU)
        else:
            assert "16 images need" in refusal(asked, tmp_path)


@pytest.mark.parametrize("error", [urllib.error.URLError("no route"), RuntimeError("File missing"), OSError("disk")])
def test_cifar_that_can_not_be_had_says_what_to_put_where_and_a_damaged_archive_is_not_called_absent(
    tmp_path, monkeypatch, error
):
    def refuse(root, train, download=False):
        raise error if download else RuntimeError("Dataset not found or corrupted")

    for name in ("CIFAR10", "CIFAR100"):
        monkeypatch.setattr(torchvision.datasets, name, refuse)
    message = refusal(page(data="cifar100", image_size=32), tmp_path)
    for part in (str(error), "cifar-100-python.tar.gz", str(tmp_path / "cifar100"), "DATA=", "TASK=digits_resnet20"):
        assert part in message
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10/cifar-10-python.tar.gz").write_bytes(b"cut short")
    message = refusal(page(data="cifar10", image_size=32), tmp_path)
    assert f"cifar-10-python.tar.gz in {tmp_path}/cifar10 is damaged" in message and "delete" in message
    assert "not found" not in message


def test_cifar_is_read_through_torchvision(tmp_path, monkeypatch):
    pixels = np.random.RandomState(0).randint(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    asked = []

    def fake(root: str, train: bool, download: bool = False) -> SimpleNamespace:
        asked.append((root, train, download))
        chosen = pixels if train else pixels[:5]
        return SimpleNamespace(data=chosen, targets=[i % 2 for i in range(len(chosen))], classes=["cat", "dog"])

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    data = load_data(page(data="cifar10", image_size=32, split="paper"), tmp_path, CPU)
    assert asked == [(str(tmp_path / "cifar10"), True, False), (str(tmp_path / "cifar10"), False, False)]
    assert data.validation is not None and data.classes == ("cat", "dog")
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 5)
    images, labels = collect(data.validation.batches(2, CPU))
    assert np.array_equal(stored_pixels(images).numpy(), pixels[18:].transpose(0, 3, 1, 2))
    assert labels.tolist() == [0, 1]


@pytest.mark.slow
@pytest.mark.skipif(not ARCHIVE.exists(), reason="the archive of real JPEGs is not beside this checkout")
def test_real_jpegs_load_and_look_like_photographs(tmp_path):
    taken: dict[str, int] = {}
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            part = str(Path(member.name).parent)
            if member.isfile() and taken.get(part, 0) < 50:
                taken[part] = taken.get(part, 0) + 1
                target = tmp_path / "folder" / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.extractfile(member).read())  # type: ignore[union-attr]
    data = load_data(page(image_size=32, split="holdout"), tmp_path, CPU)
    assert data.validation is not None and len(data.classes) == 10
    assert (len(data.train), len(data.validation), len(data.test)) == (450, 50, 500)
    assert data.validation.labels.bincount().tolist() == [5] * 10
    means = collect(data.train.batches(500, CPU))[0].mean((0, 2, 3))
    assert (means - torch.tensor([0.4914, 0.4822, 0.4465])).abs().max() < 0.03
