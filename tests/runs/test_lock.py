import errno
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from deformable_detr.core.errors import OutputError
from deformable_detr.runs import lock
from deformable_detr.runs.lock import locked
from tests import processes


def say_nothing(line: str) -> None:
    raise AssertionError(line)


def hold(folder: Path, child: Path | None = None) -> None:
    """Hold the lock until killed, perhaps with a process beside it that lives on, as one that reads images may."""
    with locked(folder, say_nothing):
        if child is not None:
            reader = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            reader.start()
            child.write_text(str(reader.pid))
        (folder / "ready").touch()
        time.sleep(60)


def wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_file_is_there_as_long_as_the_lock(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path, say_nothing):
            text = (tmp_path / lock.NAME).read_text()
            assert text.startswith(f"process {os.getpid()} on ")
        assert list(tmp_path.iterdir()) == []


def test_the_same_process_cannot_have_it_twice(tmp_path: Path) -> None:
    refused = []

    def again() -> None:
        with pytest.raises(OutputError, match="in use: this process trains in it"), locked(tmp_path, say_nothing):
            pass
        refused.append(True)

    with locked(tmp_path, say_nothing):
        other = threading.Thread(target=again)
        other.start()
        other.join()
        again()
        assert (tmp_path / lock.NAME).exists()
    assert refused == [True, True]
    with locked(tmp_path, say_nothing):
        pass


def test_of_threads_that_ask_at_once_one_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses a process nothing that it has, and frees the lock with the first of several open files."""
    lock_it, at_once, all_asked = lock._lock, threading.Barrier(4), threading.Barrier(4)
    within, refused = [], []

    def slowly(handle: int) -> None:
        lock_it(handle)
        time.sleep(0.2)

    monkeypatch.setattr(lock, "_lock", slowly)

    def work() -> None:
        at_once.wait()
        try:
            with locked(tmp_path, say_nothing):
                within.append((tmp_path / lock.NAME).exists())
                all_asked.wait()
        except OutputError as error:
            refused.append(str(error))
            all_asked.wait()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert within == [True]
    assert refused == [f"{tmp_path} is in use: this process trains in it; wait for its end, or stop it first"] * 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="processes are forked, and killed by a signal")
def test_a_living_process_keeps_it_and_a_killed_one_frees_it_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with processes.start(hold, folder, tmp_path / "reader", said=tmp_path / "said.txt") as holder:
        wait_for(folder / "ready")
        for _ in range(2):  # a refusal frees nothing
            with pytest.raises(OutputError) as error, locked(folder, say_nothing):
                pass
            assert str(error.value).startswith(f"{folder} is in use: process {holder.process.pid} on ")
            assert "wait for its end" in str(error.value)
        os.kill(holder.process.pid, signal.SIGKILL)
        holder.process.join()
        reader = int((tmp_path / "reader").read_text())
        try:
            os.kill(reader, 0)  # it lives, and inherited all open files
            assert (folder / lock.NAME).exists()
            with locked(folder, say_nothing):
                pass
            assert not (folder / lock.NAME).exists()
        finally:
            os.kill(reader, signal.SIGKILL)


def test_a_file_that_was_left_behind_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / lock.NAME).write_text("process 1 on elsewhere\n" * 1000)
    with locked(tmp_path, say_nothing):
        assert (tmp_path / lock.NAME).read_text().count("\n") == 1


def test_without_locks_it_is_said_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_lock", refuse)
    said: list[str] = []
    with locked(tmp_path, said.append):
        (line,) = said
    assert line.startswith(f"{tmp_path}: this file system has no locks (No locks available)")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_strange_things_in_its_place_are_refused(tmp_path: Path) -> None:
    place = tmp_path / lock.NAME
    place.mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*\.lock: Is a directory"), locked(tmp_path, say_nothing):
        pass
    place.rmdir()
    os.mkfifo(place)
    with pytest.raises(OutputError, match="it is a pipe or a device"), locked(tmp_path, say_nothing):
        pass
    place.unlink()
    (tmp_path / "precious").write_text("precious")
    place.symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match=r"cannot write .*\.lock"), locked(tmp_path, say_nothing):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_file_that_is_replaced_before_it_is_locked_is_not_taken_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock_it, replaced = tmp_path / lock.NAME, lock._lock, []

    def replace_first(handle: int) -> None:
        if not replaced:
            path.unlink()
            path.write_text("of another process")
            replaced.append(True)
        lock_it(handle)

    monkeypatch.setattr(lock, "_lock", replace_first)
    with locked(tmp_path, say_nothing):
        assert path.read_text().startswith(f"process {os.getpid()}")
    assert replaced == [True]
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="the superuser may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"), locked(tmp_path, say_nothing):
        pass
