import os
import time
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

from deformable_detr.data import archive_cache
from deformable_detr.data.archive_cache import DAYS_KEPT, locked_key, mark_in_use, read_note, remove_old, write_note
from deformable_detr.data.archives import unpack
from tests import processes


def home_of(folder: Path, number: int, archive: str, *, days: float = 0) -> Path:
    """An unpacked archive that was last used so many days ago."""
    home = folder / f"{number:024x}"
    (home / "photos").mkdir(parents=True)
    (home / "photos/a.txt").write_text("1")
    write_note(home, Path(archive), files=1, left=number)
    then = time.time() - 86_400 * days
    os.utime(home / "unpacked.json", (then, then))
    return home


def folders_in(folder: Path) -> list[str]:
    return sorted(path.name[-2:] for path in folder.iterdir() if path.is_dir())


def test_a_note_says_what_is_there(tmp_path: Path) -> None:
    home = home_of(tmp_path, 3, "/data/x.zip")
    assert read_note(home) == {"archive": "/data/x.zip", "files": 1, "left": 3}
    for content in ("", "[1]", "[" * 9000, "\0"):
        (home / "unpacked.json").write_text(content)
        assert read_note(home) == {}
    (home / "unpacked.json").unlink()
    assert read_note(home) is None


def test_what_nobody_needs_is_removed(tmp_path: Path) -> None:
    newest = home_of(tmp_path, 0, "x.zip", days=DAYS_KEPT + 1)  # whatever its clock says
    home_of(tmp_path, 1, "x.zip")  # an earlier version
    home_of(tmp_path, 2, "y.zip", days=DAYS_KEPT - 1)
    home_of(tmp_path, 3, "y.zip", days=DAYS_KEPT + 1)
    (home_of(tmp_path, 4, "z.zip", days=DAYS_KEPT + 1) / "unpacked.json").unlink()  # not complete
    (tmp_path / "of somebody else").mkdir()
    remove_old(newest, Path("x.zip"))
    assert folders_in(tmp_path) == ["00", "02", "04", "se"]
    remove_old(tmp_path / "none" / "none", Path("x.zip"))


def use(home: Path) -> None:
    with locked_key(home):
        mark_in_use(home)
    (home.parent / "ready").touch()
    time.sleep(60)


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    """By this process, by another that lives, or while somebody unpacks it; not after a process was killed."""
    newest = home_of(tmp_path, 0, "x.zip")
    ours, theirs, busy = (home_of(tmp_path, number, "x.zip", days=99) for number in (1, 2, 3))
    mark_in_use(ours)
    assert time.time() - (ours / "unpacked.json").stat().st_mtime < 60
    with processes.start(use, theirs, said=tmp_path / "said.txt") as other:
        until = time.monotonic() + 30
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < until, other.said
            time.sleep(0.01)
        with locked_key(busy):
            remove_old(newest, Path("x.zip"))
        assert folders_in(tmp_path) == ["00", "01", "02", "03"]
        other.process.kill()
        other.process.join()
    remove_old(newest, Path("x.zip"))
    assert folders_in(tmp_path) == ["00", "01"]
    assert len(list(tmp_path.glob("*.use.lock"))) == 1


def test_marks_of_processes_that_have_ended_are_removed(tmp_path: Path) -> None:
    home, other = (home_of(tmp_path, number, "x.zip") for number in (1, 2))
    for name in "0abf":
        (tmp_path / f"{home.name}.{name}.use.lock").touch()
        (tmp_path / f"{other.name}.{name}.use.lock").touch()
    held = FileLock(tmp_path / f"{home.name}.7.use.lock")
    with held, locked_key(home):
        mark_in_use(home)
        left = set(tmp_path.glob(f"{home.name}.*.use.lock"))
        assert Path(held.lock_file) in left
        assert len(left) == 2
    assert len(list(tmp_path.glob(f"{other.name}.*.use.lock"))) == 4


def test_a_new_archive_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFORMABLE_DETR_CACHE", str(tmp_path / "cache"))
    archives = [tmp_path / f"{name}.zip" for name in "ab"]
    for archive in archives:
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("a.txt", "1")
    first = unpack(archives[0])
    assert first is not None
    long_ago = time.time() - 86_400 * (DAYS_KEPT + 1)
    note = first.folder.parent / "unpacked.json"
    os.utime(note, (long_ago, long_ago))
    assert unpack(archives[0]) == first
    assert time.time() - note.stat().st_mtime < 60  # it was used
    os.utime(note, (long_ago, long_ago))
    monkeypatch.setattr(archive_cache, "_held", {})
    for mark in (tmp_path / "cache/archives").glob("*.use.lock"):
        mark.unlink()
    second = unpack(archives[1])
    assert second is not None
    assert second.folder.is_dir()
    assert not first.folder.exists()
    assert unpack(archives[0]) == first
    assert (first.folder / "a.txt").read_text() == "1"
