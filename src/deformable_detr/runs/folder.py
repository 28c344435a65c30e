"""A run's folder: settings, figures, checkpoints and a report, none of them ever half-written."""

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from deformable_detr.core.errors import DataError, OutputError
from deformable_detr.core.files import check_folder, sync, write_atomically, write_text
from deformable_detr.weights.checkpoint import BEST_NAME, LAST_NAME

_PREVIOUS = re.compile(r"last-(\d+)\.safetensors")


class RunFolder:
    """Folder of a run: where it keeps what it makes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        """Every setting of the run; `ddetr train config.json --data D` replays it."""
        self.data = path / "data.json"
        """Where the images came from, for resuming."""
        self.transfer = path / "transfer.json"
        """What came from the weights that the run started from, if it did."""
        self.metrics = path / "metrics.jsonl"
        """One line of JSON per logged step and per epoch."""
        self.metrics_csv = path / "metrics.csv"
        """The epochs once more, as a table."""
        self.services = path / "services.json"
        """Names that services such as Weights & Biases have for this run."""
        self.report = path / "report.html"
        """The run as a page to look at."""
        self.last = path / LAST_NAME
        """The newest weights, with all that is needed to go on."""
        self.best = path / BEST_NAME
        """The best weights so far, of equals the latest; smaller, for use."""

    def previous(self, number: int) -> Path:
        """What `last` was so many saves ago, from 1."""
        return self.path / f"last-{number}.safetensors"

    def resumable(self) -> list[Path]:
        """The checkpoints there are to go on from, newest first."""
        older = [(int(found[1]), path) for path in self.path.iterdir() if (found := _PREVIOUS.fullmatch(path.name))]
        return [path for path in (self.last, *(path for _, path in sorted(older))) if path.is_file()]

    def replace_last(self, write: Callable[[Path], object], *, keep: int) -> None:
        """Let `write` make a new `last`, and keep the one before as `previous(1)` and so on, `keep` files in all.

        At every moment one of them is whole: nothing moves before the new file is on the disk.

        Raises:
            OutputError: the disk is full, or the folder is gone or cannot be written; nothing has moved then.
        """
        sync(self.metrics)  # a crash of the machine must not leave a checkpoint newer than its lines
        write_atomically(self.path / f"new-{self.last.name}", write)
        try:
            for path in self.resumable()[keep:]:
                path.unlink()
            for number in range(keep - 1, 0, -1):
                newer = self.previous(number - 1) if number > 1 else self.last
                if newer.exists():
                    os.replace(newer, self.previous(number))
            os.replace(self.path / f"new-{self.last.name}", self.last)
            sync(self.path)
        except OSError as error:
            raise OutputError(f"cannot write {self.last}: {error.strerror}") from error

    def make_last(self, path: Path) -> None:
        """Go on from an older checkpoint: it takes the place of the newest, and files that a crash left half go."""
        if path != self.last:
            os.replace(path, self.last)
        for rest in (*self.path.glob(".*.tmp"), *self.path.glob(f"new-{self.last.name}")):
            rest.unlink(missing_ok=True)

    def log(self, record: dict[str, Any]) -> None:
        """Add one line to the metrics.

        Raises:
            OutputError: the disk is full, or the folder is gone.
        """
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.metrics}: {error.strerror}") from error

    def records(self) -> Iterator[dict[str, Any]]:
        """The lines of the metrics, if there are any; those that are no JSON, as a crash may leave one, are left out.

        Raises:
            DataError: the file is there and cannot be read.
        """
        if self.metrics.exists():
            yield from read_records(self.metrics)

    def claim(self) -> None:
        """Make the folder this run's: of several that found it empty the first one has it.

        Raises:
            OutputError: another was first, or it cannot be written.
        """
        try:
            self.config.touch(exist_ok=False)
        except FileExistsError as error:
            raise OutputError(f"another run has begun in {self.path} in the meantime; name another folder") from error
        except OSError as error:
            raise OutputError(f"cannot write to the output folder {self.path}: {error.strerror}") from error

    def leave(self) -> None:
        """Remove the folder if nothing is in it: nobody had claimed it yet."""
        with suppress(OSError):  # it holds something, or is not ours to remove
            self.path.rmdir()

    def take_back(self) -> None:
        """Remove what a run wrote before its first step, and the folder, if it failed before it had learnt anything."""
        if self.metrics.exists():
            return
        for path in (self.config, self.data, self.transfer, self.last):
            path.unlink(missing_ok=True)
        self.leave()

    def forget_after(self, step: int, epoch: int) -> None:
        """Drop the lines that a resumed run will write again, and a line cut off by a crash.

        Args:
            step: the last that has been taken in the epoch under way; 0 if it begins anew.
            epoch: the last that is complete. With other data its steps may have other numbers than before.
        """
        if not self.metrics.exists():
            return
        kept = [
            json.dumps(record) + "\n"
            for record in self.records()
            if record.get("epoch", 0) <= epoch
            or (record.get("kind") != "epoch" and record.get("epoch") == epoch + 1 and record.get("step", 0) <= step)
        ]
        write_text(self.metrics, "".join(kept))


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl; those that are no JSON objects are left out.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the run's figures: {error}") from error
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def new_run_folder(parent: Path, recipe: str, data_name: str) -> RunFolder:
    """The first of RECIPE-DATA-1, -2, ... that is not there yet; runs that start at once get one each.

    Raises:
        OutputError: it cannot be made or written.
    """
    stem = re.sub(r"[^\w.-]+", "_", f"{recipe}-{data_name}") if data_name else recipe
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            with suppress(FileExistsError):
                (parent / f"{stem}-{number}").mkdir()
                break
    except OSError as error:
        raise OutputError(f"cannot write to the output folder {parent}: {error.strerror}") from error
    return create_run_folder(parent / f"{stem}-{number}")


def create_run_folder(path: Path) -> RunFolder:
    """A folder that exists, is empty and can be written to.

    Raises:
        OutputError: it holds something already, or cannot be made or written.
    """
    folder = RunFolder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            resumable = folder.last.is_file()
            way_out = f", or continue the run in it with --resume {path}" if resumable else ""
            raise OutputError(f"output folder {path} is not empty; name another{way_out}")
        check_folder(path)
    except OSError as error:
        raise OutputError(f"cannot write to the output folder {path}: {error.strerror}") from error
    return folder


def open_run_folder(path: Path) -> RunFolder:
    """The folder of an earlier run.

    Raises:
        OutputError: there is no run to go on with, or the folder cannot be written.
    """
    folder = RunFolder(path)
    if not path.is_dir():
        raise OutputError(f"no such run folder: {path}")
    if not folder.resumable():
        way_out = "; it was stopped before its first step: remove it and start again" if folder.config.is_file() else ""
        raise OutputError(f"{path} is not a run that can be resumed: it has no {folder.last.name}{way_out}")
    try:
        check_folder(path)
    except OSError as error:
        raise OutputError(f"cannot write to the run folder {path}: {error.strerror}") from error
    return folder
