"""Folder of a run: settings, metrics, checkpoints and a report, none of them ever half-written."""

import itertools
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from deformable_detr.core.errors import OutputError
from deformable_detr.core.files import check_folder, sync, write_atomically, write_text
from deformable_detr.runs.records import RecordReader
from deformable_detr.weights.checkpoint import BEST_NAME, LAST_NAME

_PREVIOUS = re.compile(r"last-(\d+)\.safetensors")


class RunFolder:
    """Folder of one training run, with the paths of its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        """Path of config.json: every setting of the run; `ddetr train config.json --data D` repeats the run."""
        self.data = path / "data.json"
        """Path of data.json: where the images are, for resuming."""
        self.transfer = path / "transfer.json"
        """Path of transfer.json: tensors and classes taken from the weights that the run started from, if it did."""
        self.metrics = path / "metrics.jsonl"
        """Path of metrics.jsonl: a record, one line of JSON, for each logged step and each epoch."""
        self.metrics_csv = path / "metrics.csv"
        """Path of metrics.csv: the records of the epochs as a table."""
        self.services = path / "services.json"
        """Path of services.json: ids of this run at services such as Weights & Biases."""
        self.report = path / "report.html"
        """Path of report.html: the run on one page."""
        self.last = path / LAST_NAME
        """Path of the newest checkpoint, with all that is needed to resume."""
        self.best = path / BEST_NAME
        """Path of the best weights so far, the latest of equals; without the state of training, so a smaller file."""

    def previous(self, number: int) -> Path:
        """Path of an older checkpoint; 1 is the one before `last`."""
        return self.path / f"last-{number}.safetensors"

    def resumable(self) -> list[Path]:
        """Existing checkpoints to resume from, newest first."""
        older = [(int(found[1]), path) for path in self.path.iterdir() if (found := _PREVIOUS.fullmatch(path.name))]
        return [path for path in (self.last, *(path for _, path in sorted(older))) if path.is_file()]

    def replace_last(self, write: Callable[[Path], object], *, keep: int) -> None:
        """Write a new `last`, and rename the one before to `previous(1)` and so on.

        At every moment one checkpoint is complete: no file is renamed before the new one is on the disk.

        Args:
            write: writes the new checkpoint to the path that it is given.
            keep: number of checkpoints to keep, the new one included.

        Raises:
            OutputError: the disk is full, or the folder is gone or cannot be written; the older checkpoints stay.
        """
        # Metrics first: a crash of the machine must not leave a checkpoint that is newer than its records.
        sync(self.metrics)
        write_atomically(self.path / f"new-{self.last.name}", write)
        # The new file is complete. Now make room for it, the oldest checkpoint first.
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
        """Rename a checkpoint to `last`, and delete incomplete files that a crash has left."""
        if path != self.last:
            os.replace(path, self.last)
        for rest in (*self.path.glob(".*.tmp"), *self.path.glob(f"new-{self.last.name}")):
            rest.unlink(missing_ok=True)

    def log(self, record: dict[str, Any]) -> None:
        """Append one record to the metrics.

        Raises:
            OutputError: the disk is full, or the folder is gone.
        """
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.metrics}: {error.strerror}") from error

    def records(self) -> RecordReader:
        """Records of the metrics, oldest first, if there are any; lines that are none are left out and counted."""
        return RecordReader(self.metrics)

    def claim(self) -> None:
        """Claim the folder for this run; if several runs found it empty, the first one gets it.

        Raises:
            OutputError: another run was first, or the folder cannot be written.
        """
        try:
            self.config.touch(exist_ok=False)
        except FileExistsError as error:
            raise OutputError(f"another run has begun in {self.path} in the meantime; name another folder") from error
        except OSError as error:
            raise OutputError(f"cannot write to the output folder {self.path}: {error.strerror}") from error

    def leave(self) -> None:
        """Remove the folder if it is empty, as one that no run has claimed."""
        with suppress(OSError):  # it is not empty, or we may not remove it
            self.path.rmdir()

    def take_back(self) -> None:
        """Remove the files of a run that failed before its first record, and the folder."""
        if self.metrics.exists():
            return
        for path in (self.config, self.data, self.transfer, self.last):
            path.unlink(missing_ok=True)
        self.leave()

    def forget_after(self, step: int, epoch: int) -> str:
        """Drop the records that a resumed run will write again, and lines that are no records.

        Args:
            step: number of the last step of the current epoch that is kept, since the start of the run; 0 if the epoch
                starts again.
            epoch: number of the last complete epoch.

        Returns:
            Sentence on lines that are no records; empty if there are none.

        Raises:
            DataError: the records cannot be read.
        """
        if not self.metrics.exists():
            return ""
        # Completed epochs are kept by their epoch: with other data their steps may have other numbers than now.
        records = self.records()
        kept = [
            json.dumps(record) + "\n"
            for record in records
            if record.get("epoch", 0) <= epoch
            or (record.get("kind") != "epoch" and record.get("epoch") == epoch + 1 and record.get("step", 0) <= step)
        ]
        write_text(self.metrics, "".join(kept))
        return records.describe()


def new_run_folder(parent: Path, recipe: str, data_name: str) -> RunFolder:
    """New run folder RECIPE-DATA-N, with the first number that is free; runs that start at once get different ones.

    Args:
        parent: folder of all runs; made if it does not exist.
        recipe: name of the recipe.
        data_name: short name of the data set; may be empty.

    Raises:
        OutputError: the folder cannot be made or written.
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
    """Run folder at this path, which is made if it does not exist.

    Raises:
        OutputError: the folder is not empty, or cannot be made or written.
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
    """Run folder of an earlier run, to resume it.

    Raises:
        OutputError: there is no run that can be resumed, or the folder cannot be written.
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
