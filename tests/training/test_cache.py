"""What the cache of decoded images promises: the same bits with it and without, and never a stale or damaged one."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmark.data.arrays
import benchmark.data.cache
import benchmark.data.files
from benchmark.base.errors import UserError
from benchmark.data.cache import Slot
from benchmark.data.files import CACHE, scan_folder
from benchmark.data.sets import Data, load_data
from tests.harness.images import (
    CPU,
    FORK,
    PARTS,
    collect,
    fail_to_save,
    made,
    no_cache_of_the_user,  # noqa: F401 (a fixture)
    page,
    write_folder,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data" / "folder", PARTS, size=10)


def load(folder: Path, **changes: Any) -> Data:
    return load_data(page(data_dir=str(folder), **changes), Path("nowhere"), CPU)


def pixels(data: Data) -> torch.Tensor:
    return torch.cat([collect(part.batches(100, CPU))[0] for part in (data.train, data.test)])


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by one with each part that is decoded from its files."""
    decodes, decode = [], benchmark.data.files.decode_files

    def counted(files: Any, size: int) -> torch.Tensor:
        decodes.append(size)
        return decode(files, size)

    monkeypatch.setattr(benchmark.data.arrays, "decode_files", counted)
    return decodes


def test_pixels_and_fingerprint_are_the_same_without_a_cache_at_first_and_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decodes = count_decodes(monkeypatch)
    monkeypatch.setenv("SPARSE_BENCH_CACHE", "off")
    without = load(folder)
    assert made(folder) == [] and len(decodes) == 2
    monkeypatch.delenv("SPARSE_BENCH_CACHE")
    first, again = load(folder), load(folder)
    assert len(decodes) == 4  # train and test, without and at first; not again
    for data in (first, again):
        assert torch.equal(pixels(data), pixels(without)) and data.fingerprint == without.fingerprint
        assert torch.equal(data.train.labels, without.train.labels) and data.classes == without.classes
    assert len(made(folder)) == 1 and capsys.readouterr().err == ""


def touch(folder: Path) -> None:
    os.utime(folder / "train/a/0.png", ns=(1, 1))


def rewrite(folder: Path) -> None:
    target, found = folder / "train/a/0.png", (folder / "train/a/0.png").stat()
    shutil.copyfile(folder / "train/b/1.png", target)
    with target.open("ab") as file:
        file.write(b" ")
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def rename(folder: Path) -> None:
    (folder / "train/a/0.png").rename(folder / "train/a/9.png")


def move(folder: Path) -> None:
    (folder / "train/a/0.png").rename(folder / "train/b/00.png")


def add(folder: Path) -> None:
    shutil.copy2(folder / "train/a/0.png", folder / "train/a/9.png")


def remove(folder: Path) -> None:
    (folder / "test/b/2.png").unlink()


def rename_class(folder: Path) -> None:
    for part in PARTS:
        (folder / part / "b").rename(folder / part / "c")


@pytest.mark.parametrize("change", [touch, rewrite, rename, move, add, remove, rename_class])
def test_a_source_that_changed_is_decoded_again_and_the_file_of_the_one_before_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    load(folder, image_size=6)
    load(folder)
    before = made(folder)
    assert len(before) == 2
    change(folder)
    decodes = count_decodes(monkeypatch)
    changed = load(folder)
    assert len(decodes) == 2
    (after,) = made(folder)  # of both sizes: no start would find the other one again
    assert after not in before and capsys.readouterr().err.count("was removed") == 2
    monkeypatch.setenv("SPARSE_BENCH_CACHE", "off")
    assert torch.equal(pixels(changed), pixels(load(folder)))


def test_another_size_is_another_file_and_another_decoder_another_source(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder)
    assert load(folder, image_size=4).train.epoch(0, 0, 1, False, CPU).__next__()[0].shape == (1, 3, 4, 4)
    assert len(made(folder)) == 2
    decodes = count_decodes(monkeypatch)
    monkeypatch.setattr(benchmark.data.cache.PIL, "__version__", "another")
    load(folder)
    assert len(decodes) == 2 and len(made(folder)) == 1


def test_a_change_under_the_same_size_and_time_is_not_noticed_as_the_documents_say(folder: Path) -> None:
    before, target = load(folder), folder / "train/a/0.png"
    found, content = target.stat(), bytearray(target.read_bytes())
    content[-20] ^= 1
    target.write_bytes(content)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert load(folder).fingerprint == before.fingerprint
    assert "goes unnoticed" in (benchmark.data.cache.__doc__ or "")


@pytest.mark.parametrize("place", [0.0, 0.1, 0.5, 0.999])
def test_a_flipped_byte_anywhere_is_noticed_and_mended(
    folder: Path, place: float, capsys: pytest.CaptureFixture[str]
) -> None:
    good = load(folder)
    (path,) = made(folder)
    whole = path.read_bytes()
    content = bytearray(whole)
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    mended = load(folder)
    assert mended.fingerprint == good.fingerprint and torch.equal(pixels(mended), pixels(good))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"{path} is not used: damaged" in lines[0]
    assert path.read_bytes() == whole
    load(folder)
    assert capsys.readouterr().err == ""


def test_no_flipped_bit_of_the_header_gives_other_pixels(folder: Path) -> None:
    good, layout = pixels(load(folder)), scan_folder(folder)
    (path,) = made(folder)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    noticed = 0
    for place in range(header):
        content = bytearray(whole)
        content[place] ^= 1 << place % 7
        path.write_bytes(content)
        try:
            parts = benchmark.data.arrays.read_decoded(path, layout).parts
            assert torch.equal(torch.cat([parts["train"].pixels, parts["test"].pixels]).float() / 255, good)
        except benchmark.data.cache.DamagedError:
            noticed += 1
    assert noticed > header / 2


@pytest.mark.parametrize("length", [0, 5, 200, -1])
def test_a_truncated_file_is_made_again(folder: Path, length: int, capsys: pytest.CaptureFixture[str]) -> None:
    good = load(folder)
    (path,) = made(folder)
    path.write_bytes(path.read_bytes()[:length])
    assert load(folder).fingerprint == good.fingerprint
    assert capsys.readouterr().err.count("is not used") == 1
    assert load(folder).fingerprint == good.fingerprint and capsys.readouterr().err == ""


def decode_slowly(folder: Path, log: Path) -> None:
    decode = benchmark.data.files.decode_files

    def slow(files: Any, size: int) -> torch.Tensor:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        return decode(files, size)

    benchmark.data.arrays.decode_files = slow  # in this process alone, which ends with it
    load(folder)


def test_of_two_processes_at_once_one_decodes_and_the_other_waits(folder: Path, tmp_path: Path) -> None:
    workers = [FORK.Process(target=decode_slowly, args=(folder, tmp_path / "log")) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    pids = (tmp_path / "log").read_text().split()
    assert len(pids) == 2 and len(set(pids)) == 1  # train and test, in one of them
    assert len(made(folder)) == 1


def die_while_writing(folder: Path) -> None:
    def die(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half a file")
        os.kill(os.getpid(), signal.SIGKILL)

    benchmark.data.arrays.save_file = die
    load(folder)


def test_a_builder_killed_while_it_writes_leaves_nothing_that_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = FORK.Process(target=die_while_writing, args=(folder,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    assert [path.name for path in made(folder)] == ["folder.tmp"]
    decodes = count_decodes(monkeypatch)
    assert load(folder).fingerprint == load(folder).fingerprint
    assert len(decodes) == 2 and [path.suffix for path in made(folder)] != [".tmp"] and len(made(folder)) == 1
    assert capsys.readouterr().err == ""


def test_where_the_folder_s_place_can_not_be_written_the_user_s_cache_is_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / CACHE).write_text("in the way")
    load(folder)
    assert [path.suffix for path in (tmp_path / "home/sparse-bench").iterdir() if path.suffix != ".lock"]
    decodes = count_decodes(monkeypatch)
    load(folder)
    assert decodes == []


def test_without_any_place_a_run_goes_on_with_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = load(folder)
    shutil.rmtree(folder.parent / CACHE)
    (folder.parent / CACHE).write_text("in the way")
    (tmp_path / "home").write_text("in the way")
    assert load(folder).fingerprint == good.fingerprint
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "none is kept" in line]
    assert str(folder.parent / CACHE) in line and str(tmp_path / "home") in line


def test_a_file_that_others_made_is_read_where_nothing_can_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder)
    (path,) = made(folder)
    assert path.stat().st_mode & 0o444 == 0o444
    monkeypatch.setattr(Slot, "building", lambda self: pytest.fail("no lock is needed to read"))
    load(folder)


def test_a_chosen_folder_holds_files_of_two_folders_of_one_name(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_folder(tmp_path / "other" / "folder", PARTS, count=2)
    monkeypatch.setenv("SPARSE_BENCH_CACHE", str(tmp_path / "chosen"))
    for each in (folder, other):
        load(each)
    assert len([path for path in (tmp_path / "chosen").iterdir() if path.suffix != ".lock"]) == 2
    assert made(folder) == made(other) == []
    decodes = count_decodes(monkeypatch)
    assert len(load(folder).train) == 6 and len(load(other).train) == 4 and decodes == []


def test_a_large_file_is_told_when_it_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark.data.cache, "LARGE", 1000)
    load(folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{made(folder)[0]} was written (0 MiB); SPARSE_BENCH_CACHE=off keeps none" in line
    load(folder)
    assert capsys.readouterr().err == ""


def test_a_user_without_a_home_has_the_place_beside_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it is where no home is known
    assert benchmark.data.cache.list_places(folder) == [(folder.parent / CACHE, "folder")]


@pytest.mark.parametrize("when", ["before", "while writing"])
def test_a_full_disk_costs_the_file_and_not_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    if when == "before":
        monkeypatch.setattr(benchmark.data.arrays.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    else:
        monkeypatch.setattr(benchmark.data.arrays, "save_file", fail_to_save)
    data = load(folder)
    assert made(folder) == [] and "was not written" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("SPARSE_BENCH_CACHE", "off")
    assert data.fingerprint == load(folder).fingerprint


def test_an_image_that_can_not_be_decoded_leaves_no_file_and_no_lock(folder: Path) -> None:
    image = (folder / "train/b/1.png").read_bytes()
    (folder / "train/b/1.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"b/1\.png: can't be decoded"):
        load(folder)
    assert made(folder) == []
    (folder / "train/b/1.png").write_bytes(image)
    load(folder)
    assert len(made(folder)) == 1


def test_the_cache_is_no_class_and_no_part(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", PARTS)
    inner = write_folder(folder / "train" / "inner", PARTS)  # a folder whose cache would lie among the classes
    shutil.rmtree(folder / "test")
    write_folder(folder, {"test": ["a", "b", "inner"]}, seed=1)
    load(inner)
    assert (folder / "train" / CACHE).is_dir()
    assert scan_folder(folder).classes == ("a", "b", "inner")
    assert len(load(folder).train) == 6 + 12
