"""P6 and P7: images from memory, the cache and a shard, compared with torchvision's usual pipelines."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets.folder import pil_loader

from benchmark.base.timing import median_ratio, milliseconds, time_in_turn
from benchmark.config.pages import load_page
from benchmark.data.files import scan_folder
from benchmark.data.images import BatchReader
from benchmark.data.sets import load_data
from benchmark.data.shard import Resized, load_shard
from benchmark.perf.goals import Goal
from benchmark.perf.modes import MEAN, STD, our_batches
from benchmark.perf.peers import R20, pass_seconds

CPU = torch.device("cpu")
SERVED = 50 * 128  # images in a round of ours; the recipe takes as long for a fortieth of them
SMALL, PHOTOS = 2000, 32  # images in the generated folders


def measure(quick: bool) -> list[Goal]:
    """Return the goals of reading and serving images on one thread."""
    rounds = 5 if quick else 9
    with tempfile.TemporaryDirectory() as made:
        asked = os.environ.get("SPARSE_BENCH_CACHE")
        os.environ["SPARSE_BENCH_CACHE"] = str(Path(made, "cache"))
        try:
            return [*measure_memory(rounds), *measure_cache(Path(made), rounds), *measure_shard(Path(made), rounds)]
        finally:
            os.environ.pop("SPARSE_BENCH_CACHE")
            os.environ.update({} if asked is None else {"SPARSE_BENCH_CACHE": asked})


def measure_memory(rounds: int) -> list[Goal]:
    """Time batches of CIFAR's size from memory against torchvision's transforms, image by image."""
    pixels = np.random.default_rng(0).integers(0, 256, (SERVED, 32, 32, 3), dtype=np.uint8)
    recipe = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    batches, some = our_batches(pixels, 128), SERVED // 40

    def ours() -> None:
        for _ in range(SERVED // 128):
            next(batches)

    def theirs() -> None:
        torch.stack([recipe(Image.fromarray(image)) for image in pixels[:some]])

    times = time_in_turn({"ours": ours, "recipe": theirs}, rounds)
    batch_s = statistics.median(times["ours"]) * 128 / SERVED
    ratio = median_ratio(times["recipe"], times["ours"]) * SERVED / some
    return [
        Goal("P6", "32x32 from memory, thousand images/s", 0.128 / batch_s, ">=", 80, "k/s", milliseconds(times)),
        Goal("P6", "32x32: torchvision's transforms / ours", ratio, ">=", 20),
        Goal("P6", "ResNet-20: a batch's images / its pass", batch_s / pass_seconds(R20, 3), "<=", 0.01),
    ]


def make_photo(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return a picture with structure at several scales and some noise."""
    picture = 120 + random.normal(0, 8, (height, width, 1))
    for scale in (4, 16, 64):
        coarse = random.normal(0, 1, (-(-height // scale) + 1, -(-width // scale) + 1, 3)).astype(np.float32)
        planes = [Image.fromarray(coarse[..., k]).resize((width, height), Image.Resampling.BICUBIC) for k in range(3)]
        picture = picture + 55 * (scale / 64) ** 0.6 * np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def make_folder(folder: Path, count: int, width: int, height: int) -> Path:
    """Write `count` pictures of two classes as JPEGs into `folder`/train, and one of each into `folder`/test."""
    random = np.random.default_rng(0)
    for number in range(count + 2):
        place = folder / ("test" if number < 2 else "train") / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        make_photo(random, width, height).save(place / f"{number:05}.jpg", quality=95)
    return folder


def measure_cache(made: Path, rounds: int) -> list[Goal]:
    """Time the first read of a folder of small images, cache written, against the next."""
    page = load_page("folder_resnet20", {"data_dir": str(make_folder(made / "small", SMALL, 32, 32)), "split": "full"})

    def first() -> None:
        shutil.rmtree(made / "cache", ignore_errors=True)
        load_data(page, made, CPU)

    times = time_in_turn({"first": first, "next": lambda: load_data(page, made, CPU)}, min(rounds, 3))
    ratio = median_ratio(times["first"], times["next"])
    return [
        Goal("P6", f"a folder of {SMALL} small JPEGs: first read / the next", ratio, "", details=milliseconds(times))
    ]


def measure_shard(made: Path, rounds: int) -> list[Goal]:
    """Time batches of 224x224 pixels: the usual recipe on the files, Pillow and ours on the shard."""
    folder = make_folder(made / "large", PHOTOS, 500, 375)
    layout = scan_folder(folder)
    paths, numbers = layout.train.paths, np.arange(PHOTOS)
    cut = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    recipe = transforms.Compose([*cut, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    shard = load_shard(folder, layout, 256)
    assert shard is not None
    small = made / "shrunk"
    small.mkdir()
    for number in range(PHOTOS):
        (small / f"{number}.jpg").write_bytes(shard.read(number) or b"")
    pillow = transforms.Compose([*cut, transforms.PILToTensor()])
    ours = BatchReader(Resized(shard, numbers, paths, 256, 224, True), ("perf",))

    def read(transform: Callable[[Image.Image], torch.Tensor], names: list[str]) -> Callable[[], torch.Tensor]:
        return lambda: torch.stack([transform(pil_loader(name)) for name in names])

    times = time_in_turn(
        {
            "recipe": read(recipe, paths),
            "Pillow, shard's JPEGs": read(pillow, [str(small / f"{number}.jpg") for number in range(PHOTOS)]),
            "shard": lambda: ours.__getitems__(range(PHOTOS)),
        },
        rounds,
    )
    sizes = {"KB": sum(Path(path).stat().st_size for path in paths) / PHOTOS / 1000}
    sizes["KB resized"] = int(shard.ends[PHOTOS - 1]) / PHOTOS / 1000
    ratio, details = median_ratio(times["recipe"], times["shard"]), {**milliseconds(times), **sizes}
    decoders = median_ratio(times["Pillow, shard's JPEGs"], times["shard"])
    rate = PHOTOS / statistics.median(times["shard"])
    return [
        Goal("P7", "500x375: the recipe on files / uint8 batches from the shard", ratio, ">=", 4, details=details),
        Goal("P7", "the shard's JPEGs: Pillow / torchvision's decoder", decoders, ""),
        Goal("P7", "images/s from the shard", rate, "", unit="/s"),
    ]
