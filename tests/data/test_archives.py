import os
import random
import shutil
import stat
import struct
import threading
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from deformable_detr.core.errors import DataError, OutputError
from deformable_detr.data import archives, list_splits, open_dataset
from deformable_detr.data.archives import unpack
from deformable_detr.data.convert import convert_dataset
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats import coco, yolo
from deformable_detr.data.splits import open_training_data
from tests.data.written_others import WRITERS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEFORMABLE_DETR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def packed(folder: Path, file: Path, below: str = "") -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, f"{below}{path.relative_to(folder).as_posix()}")
    return file


def zipped(file: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return file


def left_in(cache: Path) -> list[str]:
    """What lies in the cache besides locks."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


def patched(file: Path, old: bytes, new: bytes, count: int) -> None:
    content = file.read_bytes()
    assert content.count(old) == count
    file.write_bytes(content.replace(old, new))


@pytest.mark.parametrize("below", ["", "export/"])
def test_a_data_set_is_opened_where_it_lies(
    below: str, drawn: DetectionDataset, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yolo.save(drawn, tmp_path / "there")
    (tmp_path / "there/train.py").write_text("print()")
    file = packed(tmp_path / "there", tmp_path / "photos.zip", below)
    assert list_splits(file) == ("train",)
    dataset = open_dataset(file)
    assert dataset.source.endswith(f"; unpacked from {file}, where 1 other file stayed")
    for found, expected in zip(dataset.samples, drawn.samples, strict=True):
        assert found.path.read_bytes() == expected.path.read_bytes()
        assert found.path.is_relative_to(cache)
        assert len(found.boxes_xyxy) == len(expected.boxes_xyxy)
    # The second time nothing is unpacked.
    monkeypatch.setattr(archives, "_unpack_into", None)
    again = open_dataset(file)
    assert [sample.path for sample in again.samples] == [sample.path for sample in dataset.samples]
    data = open_training_data(file, val_share=0.4, seed=0, skip_bad_images=False)
    assert (len(data.train), len(data.val)) == (2, 1)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_in_an_archive(name: str, drawn: DetectionDataset, tmp_path: Path) -> None:
    file = packed(WRITERS[name](drawn, tmp_path / "there"), tmp_path / "export.zip")
    assert open_dataset(file).num_objects == open_dataset(tmp_path / "there").num_objects


def test_an_archive_without_a_split_to_train_on(drawn: DetectionDataset, tmp_path: Path) -> None:
    coco.save(drawn, tmp_path / "there", split="test")
    file = packed(tmp_path / "there", tmp_path / "x.zip")
    with pytest.raises(DataError, match="no split to train on; there is test"):
        open_training_data(file, val_share=0.4, seed=0, skip_bad_images=False)


def test_a_changed_archive_is_unpacked_anew(drawn: DetectionDataset, tmp_path: Path) -> None:
    coco.save(drawn, tmp_path / "there")
    file = packed(tmp_path / "there", tmp_path / "x.zip")
    assert len(open_dataset(file)) == 3
    coco.save(drawn.subset([0]), tmp_path / "there")
    packed(tmp_path / "there", file)
    assert len(open_dataset(file)) == 1


def test_no_links_lead_into_the_cache(drawn: DetectionDataset, tmp_path: Path, cache: Path) -> None:
    coco.save(drawn, tmp_path / "there")
    file = packed(tmp_path / "there", tmp_path / "x.zip")
    with pytest.raises(DataError, match=r"x\.zip: links would lead into the cache, .* copy the images, or unpack it"):
        convert_dataset(file, tmp_path / "out", to="voc", images="link")
    assert not (tmp_path / "out").exists()
    assert not cache.exists()  # nothing was unpacked for it
    assert convert_dataset(file, tmp_path / "out", to="voc").splits[0].images == 3


def test_a_folder_that_was_deleted_comes_back(tmp_path: Path, cache: Path) -> None:
    file = zipped(tmp_path / "x.zip", ("a.txt", b"1"))
    shutil.rmtree(unpack(file).folder.parent)  # type: ignore[union-attr]
    assert (unpack(file).folder / "a.txt").read_text() == "1"  # type: ignore[union-attr]


def test_names_of_other_systems(tmp_path: Path, cache: Path) -> None:
    """Back-slashes; UTF-8 that is not marked; letters of the old code page; shadows that macOS adds."""
    unmarked = zipfile.ZipInfo("x")
    file = zipped(
        tmp_path / "x.zip",
        ("images\\train\\a.jpg", b"1"),
        ("./été.jpg", b"2"),
        ("XXXX.jpg", b"3"),
        ("YYYY.jpg", b"4"),
        ("__MACOSX/._a.jpg", b"5"),
        (".DS_Store.txt", b"6"),
        ("labels/", b""),
        (unmarked, b"7"),
    )
    patched(file, b"XXXX", "é\u00e9".encode(), 2)
    patched(file, b"YYYY", b"\x82bcd", 2)
    unpacked = unpack(file)
    assert unpacked is not None
    found = {path.relative_to(unpacked.folder).as_posix(): path.read_text() for path in unpacked.folder.rglob("*.*")}
    assert found == {"images/train/a.jpg": "1", "été.jpg": "2", "éé.jpg": "3", "ébcd.jpg": "4"}
    assert unpacked.remark == f"unpacked from {file}, where 3 other files stayed"


def linked(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("../a.txt", b"1")], r"names a file outside of itself, '\.\./a\.txt'; it is not unpacked"),
        ([("x/../../a.txt", b"1")], "outside of itself"),
        ([("/etc/a.txt", b"1")], "outside of itself, '/etc/a.txt'"),
        ([("..\\a.txt", b"1")], "outside of itself"),
        ([("C:\\a.txt", b"1")], "outside of itself"),
        ([("\\\\server\\a.txt", b"1")], "outside of itself"),
        ([("ok.txt", b"1"), ("../a.py", b"1")], "outside of itself"),
        ([(linked("a.jpg", stat.S_IFLNK), b"/etc/passwd")], "'a.jpg' in this zip archive is a link"),
        ([(linked("a.jpg", stat.S_IFIFO), b"")], "'a.jpg' in this zip archive is no file"),
        ([(linked("a", stat.S_IFLNK), b"/etc"), ("a/b.txt", b"1")], "'a' in this zip archive is a link"),
        ([("a.txt", b"1"), ("./a.txt", b"2")], "has './a.txt' twice"),
        ([("a.txt", b"1"), ("a.txt/b.txt", b"2")], "'a.txt/b.txt' in this zip archive cannot be written"),
        ([("x" * 300 + ".txt", b"1")], "cannot be written under this name: File name too long"),
        ([("a.py", b"1")], "holds no images or annotations$"),
        ([("a.py", b"1"), ("b.zip", b"1"), ("c.tar.gz", b"1")], "no images or annotations, but 2 archives: unpack it"),
        ([], "holds no images or annotations$"),
    ],
)
def test_hostile_archives(entries: Any, message: str, tmp_path: Path, cache: Path) -> None:
    file = zipped(tmp_path / "x.zip", *entries)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert left_in(cache) == []
    assert not (tmp_path / "a.txt").exists()


def test_limits(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = zipped(tmp_path / "x.zip", *((f"{number}.txt", bytes(5000)) for number in range(4)))
    for name, value, message in (
        ("_MOST_FILES", 3, "has 4 entries, and no more than 3 are read"),
        ("_MOST_BYTES", 19_999, r"bytes would be unpacked to 20,000, which no data set does; limits are 200 times"),
        ("_SMALL", 10_000, "would be unpacked to 20,000"),
        ("_MOST_DIRECTORY", 100, "lists its files in 204 bytes, and no more than 100 are read"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(archives, name, value)
            patch.setattr(archives, "_MOST_RATIO", 10 if name == "_SMALL" else 200)
            with pytest.raises(DataError, match=message):
                unpack(file)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 19_999))  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match=r"unpacked it has 20,000 bytes, and .* has room for 19,999; DEFORM"):
        unpack(file)
    assert left_in(cache) == []


def test_a_bomb_is_not_unpacked(tmp_path: Path, cache: Path) -> None:
    """Sizes that the list of files only claims are refused, too; files are never longer than it says."""
    file = zipped(tmp_path / "x.zip", ("a.txt", bytes(10_000)))
    patched(file, struct.pack("<L", 10_000), struct.pack("<L", 3 << 30), 2)
    with pytest.raises(DataError, match="would be unpacked to 3,221,225,472, which no data set does"):
        unpack(file)
    zipped(file, ("a.txt", bytes(10_000)))
    patched(file, struct.pack("<L", 10_000), struct.pack("<L", 9_000), 2)
    with pytest.raises(DataError, match=r"is damaged or cut off: Bad CRC-32 for file 'a\.txt'"):
        unpack(file)
    assert left_in(cache) == []


def test_other_ways_of_packing(tmp_path: Path, cache: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
            archive.writestr("a.txt", "1")
        assert (unpack(tmp_path / "x.zip").folder / "a.txt").read_text() == "1"  # type: ignore[union-attr]
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.txt", "1")
    with pytest.raises(DataError, match=r"packs 'a\.txt' in a way that is not read here \(method 14\); unpack it"):
        unpack(tmp_path / "x.zip")


def test_encrypted_archives(tmp_path: Path, cache: Path) -> None:
    file = zipped(tmp_path / "x.zip", ("a.txt", b"1"))
    content = bytearray(file.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    content[6] |= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="is encrypted; unpack it with its password and give the folder"):
        unpack(file)


def test_damaged_archives(tmp_path: Path, cache: Path) -> None:
    file = zipped(tmp_path / "x.zip", *((f"{number}.txt", os.urandom(100)) for number in range(3)))
    content = file.read_bytes()
    for damaged in (content[:-30], content[:40], content[:50] + b"\xff" + content[51:], content[:4]):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.zip: this zip archive (is damaged or cut off|cannot be read)"):
            unpack(file)
    assert left_in(cache) == []


@pytest.mark.parametrize("seed", range(2))
def test_damage_never_raises_anything_else(seed: int, tmp_path: Path, cache: Path) -> None:
    rng = random.Random(seed)
    file = zipped(tmp_path / "x.zip", *((f"é{number}.txt", rng.randbytes(20)) for number in range(3)))
    content = file.read_bytes()
    for _ in range(60):
        changed = bytearray(content)
        for _ in range(rng.randint(1, 6)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        file.write_bytes(changed)
        with suppress(DataError, OutputError):
            unpack(file)
    assert not list(cache.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"Rar!\x1a\x07\x01", "a rar archive"),
        (b"\xfd7zXZ\x00", "an xz archive"),
        (b"BZh91AY&SY", "a bzip2 archive"),
        (b"\x28\xb5\x2f\xfd", "a zstd archive"),
        (b"x" * 257 + b"ustar\x0000", "a tar archive"),
    ],
)
def test_other_archives_say_so(start: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(start + bytes(300))
    with pytest.raises(DataError, match=f"data.bin: this is {kind}; unpack it and give the folder. Only zip is opened"):
        open_dataset(tmp_path / "data.bin")


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "x.json", tmp_path / "none", tmp_path / "pipe", "a\0b"):
        assert unpack(path) is None


def test_nothing_recognised_in_an_archive(tmp_path: Path, cache: Path) -> None:
    file = zipped(tmp_path / "x.zip", ("a.txt", b"1"), ("b.pdf", b"1"))
    text = (
        rf"x\.zip: no data set recognised here: found a\.txt\. .* \(unpacked from {file}, where 1 other file stayed\)"
    )
    with pytest.raises(DataError, match=text):
        open_dataset(file)


def test_the_cache_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("DEFORMABLE_DETR_CACHE", str(tmp_path / "taken"))
    with pytest.raises(OutputError, match=r"cannot write .*/taken/archives: .*; DEFORMABLE_DETR_CACHE names another"):
        unpack(zipped(tmp_path / "x.zip", ("a.txt", b"1")))


def test_what_was_interrupted_leaves_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = zipped(tmp_path / "x.zip", *((f"{number}.txt", b"1") for number in range(3)))
    monkeypatch.setattr(archives, "SILENT_S", -1.0)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(file, on_progress=interrupt)
    assert left_in(cache) == []
    # What a killed process left is removed, too.
    unpacked = unpack(file)
    assert unpacked is not None
    (unpacked.folder.parent / "unpacked.json").unlink()
    stale = unpacked.folder.parent.with_name(f"{unpacked.folder.parent.name}.999999.tmp")
    (stale / "x").mkdir(parents=True)
    (unpacked.folder / "1.txt").unlink()
    assert unpack(file) == unpacked
    assert not stale.exists()
    assert (unpacked.folder / "1.txt").read_text() == "1"


def test_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    file = zipped(tmp_path / "x.zip", *((f"{number}.txt", bytes(1 << 20)) for number in range(3)))
    unpack(file, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == []  # it did not last two seconds
    monkeypatch.setattr(archives, "SILENT_S", -1.0)
    os.utime(file, (1, 1))
    unpack(file, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_two_at_once(tmp_path: Path, cache: Path) -> None:
    """One unpacks; the other waits and takes what is there."""
    file = zipped(tmp_path / "x.zip", ("a.txt", b"1"))
    unpacked = unpack(file)
    assert unpacked is not None
    home = unpacked.folder.parent
    lock = FileLock(home.with_name(f"{home.name}.lock"))
    lock.acquire()
    result: list[object] = []
    other = threading.Thread(target=lambda: result.append(unpack(file)))
    other.start()
    other.join(0.2)
    assert result == []
    lock.release()
    other.join()
    assert result == [unpacked]
