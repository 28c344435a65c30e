"""Opening of a run, a new or a resumed one: its processes, device and services, its data, and its folder."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deformable_detr.core.devices import choose_device
from deformable_detr.core.distributed import Ranks, joined
from deformable_detr.core.errors import CheckpointError, ConfigError
from deformable_detr.core.files import write_json
from deformable_detr.core.format_names import FormatName
from deformable_detr.core.progress import Reporter, Silence
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.splits import TrainingData, TrainingSplits, open_training_data
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.config_file import to_json
from deformable_detr.runs.folder import RunFolder, create_run_folder, new_run_folder
from deformable_detr.runs.lock import locked
from deformable_detr.training.acceleration import bound_primitive_cache
from deformable_detr.training.finetune import Transfer
from deformable_detr.training.loggers import ServiceName, chosen_services
from deformable_detr.weights import checkpoint as checkpoints
from deformable_detr.weights.checkpoint import Checkpoint

_RUNS = Path("runs")


class Surroundings(NamedTuple):
    """Surroundings of a run, a new or a resumed one."""

    ranks: Ranks
    """Processes that train together."""
    device: torch.device
    """Device of this process."""
    services: tuple[ServiceName, ...]
    """Services to log to."""
    reporter: Reporter
    """Receiver of messages; silent in all but the first process."""


@contextmanager
def surroundings(device: str, log: Sequence[str] | None, reporter: Reporter | None) -> Iterator[Surroundings]:
    """Join the processes, and check the device and the services before any work.

    Args:
        device: device as the user names it.
        log: names of services to log to; None means TensorBoard if it is installed.
        reporter: receives messages, in the first process only.

    Raises:
        BackendError: the device is not available.
        ConfigError: a service is unknown or not installed.
    """
    bound_primitive_cache()
    with joined(device) as ranks:
        reporter = (reporter if ranks.is_first else None) or Silence()
        with ranks.first_alone():
            services = chosen_services(log)
            chosen = choose_device(ranks.device(device))
        if log is None and not services:
            reporter.say("TensorBoard is not installed: metrics are written to metrics.jsonl and metrics.csv only")
        yield Surroundings(ranks, chosen, services, reporter)


def new_folder(output: str | Path | None, config: TrainConfig, data_name: str, ranks: Ranks) -> RunFolder:
    """Make a new run folder, in the first process; the others learn its path later.

    Args:
        output: path of the folder; a new folder in runs/ if left out.
        config: settings of the run.
        data_name: short name of the data set.
        ranks: the processes that train together.

    Raises:
        OutputError: the folder is not empty or cannot be written.
    """
    if not ranks.is_first:
        return RunFolder(Path())
    return create_run_folder(Path(output)) if output else new_run_folder(_RUNS, config.name, data_name)


def alone_in(folder: RunFolder, around: Surroundings) -> AbstractContextManager[None]:
    """Context in which no other run can train in the folder; the first process holds the lock.

    Raises:
        OutputError: another process trains in it.
    """
    return locked(folder.path, around.reporter.say) if around.ranks.is_first else nullcontext()


def write_settings(folder: RunFolder, config: TrainConfig, origin: dict[str, Any], transfer: Transfer | None) -> None:
    """Write the files that a run starts with: its settings, the paths of its data, and the transfer of weights."""
    if transfer is not None:
        write_json(folder.transfer, transfer.record())
    write_json(folder.config, to_json(config))
    write_json(folder.data, origin)


def data_record(
    data: str | Path | DetectionDataset | TrainingSplits,
    val_data: str | Path | DetectionDataset | None,
    format: FormatName | None,
    opened: TrainingData,
) -> dict[str, Any]:
    """Content of data.json: paths of the images, and names of those held out, for resuming and for the report."""

    def place(given: str | Path | DetectionDataset | TrainingSplits | None) -> str | None:
        if isinstance(given, TrainingSplits):
            given = given.path
        return os.path.abspath(os.path.expanduser(given)) if isinstance(given, str | Path) else None

    return {
        "path": place(data),
        "val_path": place(val_data),
        "format": format,
        "held_out": list(opened.held_out),
    }


def newest_whole(folder: RunFolder, reporter: Reporter) -> tuple[Path, Checkpoint]:
    """Path and content of the newest checkpoint that is not damaged.

    Args:
        folder: the run folder.
        reporter: receives the errors of newer checkpoints that are damaged.

    Raises:
        CheckpointError: all checkpoints are damaged.
    """
    failures: list[CheckpointError] = []
    for path in folder.resumable():
        try:
            saved = checkpoints.load(path, training=True)
        except CheckpointError as error:
            failures.append(error)
            continue
        for failure in failures:
            reporter.say(f"{failure}")
        if path != folder.last:
            reporter.say(f"continuing from {path.name}, an older checkpoint")
        return path, saved
    raise failures[0]


def check_metric(config: TrainConfig, data: TrainingData) -> None:
    """Refuse a `best_by` that names a class which is not in the data.

    Raises:
        ConfigError: there is no such class; the message lists the classes.
    """
    class_name, slash, _ = config.checkpoints.best_by.rpartition("/")
    if slash and class_name not in data.train.classes:
        raise ConfigError(
            f"best_by is {config.checkpoints.best_by!r}, but the classes are {', '.join(data.train.classes)}"
        )


def open_data(
    config: TrainConfig,
    data: str | Path | DetectionDataset | TrainingSplits,
    val_data: str | Path | DetectionDataset | None,
    format: FormatName | None,
    held_out: Sequence[str] | None = None,
) -> TrainingData:
    """Open the training and validation images of a run with its settings; see `open_training_data`."""
    return open_training_data(
        data,
        val_data,
        format=format,
        val_share=config.data.val_share,
        seed=config.run.seed,
        skip_bad_images=config.data.skip_bad_images,
        held_out=held_out,
    )


def data_name(data: str | Path | DetectionDataset | TrainingSplits) -> str:
    """Short name of a data set without its path, for the name of a run folder and for the provenance."""
    if isinstance(data, TrainingSplits):
        data = data.path
    if not isinstance(data, DetectionDataset):
        return Path(data).resolve().stem
    return " ".join(Path(word).name for word in re.split(r"[,:;] ", data.source)[0].split())
