"""Training: a run from the first step, or from where an earlier one stopped."""

import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deformable_detr.core.config import from_dict, to_dict
from deformable_detr.core.devices import choose_device
from deformable_detr.core.distributed import joined
from deformable_detr.core.errors import CheckpointError, ConfigError, DeformableDetrError
from deformable_detr.core.files import read_json, write_json
from deformable_detr.core.progress import Reporter, Silence
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.loader import explained_worker_deaths
from deformable_detr.data.open import FormatName
from deformable_detr.data.splits import TrainingData, open_training_data, pair
from deformable_detr.report import try_to_report
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.folder import RunFolder, create_run_folder, new_run_folder, open_run_folder
from deformable_detr.training.autobatch import bound_primitive_cache
from deformable_detr.training.autoconfig import fit_to_data
from deformable_detr.training.finetune import Origin, Source, Transfer, plan, read_source, settle
from deformable_detr.training.loggers import ServiceName, chosen_services
from deformable_detr.training.loop import run_epoch
from deformable_detr.training.messages import introduce
from deformable_detr.training.metrics_log import Journal
from deformable_detr.training.setup import check_same_classes, check_share, start_session, with_epochs
from deformable_detr.training.signals import Terminated, held, terminable, uninterrupted
from deformable_detr.training.state import Session
from deformable_detr.weights import checkpoint as checkpoints
from deformable_detr.weights.checkpoint import Checkpoint

_RUNS = Path("runs")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a training run left behind."""

    folder: Path
    config: TrainConfig
    """With everything settled that depended on the data."""
    epochs_completed: int
    best_epoch: int | None
    """Counted from 1; None if nothing has been evaluated yet."""
    best: dict[str, float]
    """The twelve numbers of best.safetensors on the validation images."""
    skipped: dict[str, str]
    """Path of each training image that could not be read, and why."""
    interrupted: bool
    """Whether Ctrl-C or SIGTERM ended it; `resume` goes on."""
    terminated: bool = False
    """Whether it was SIGTERM."""
    stopped_early: bool = False
    """Whether `patience` ended it; it counts as complete."""
    num_not_finite: int = 0
    """Steps left out because loss or gradient was not finite."""
    report: Path | None = None
    """The page that shows it; None if there is none."""


def train(
    config: TrainConfig,
    *,
    data: str | Path | DetectionDataset,
    val_data: DetectionDataset | None = None,
    output: str | Path | None = None,
    format: FormatName | None = None,
    weights: str | Path | Source | None = None,
    device: str = "auto",
    log: Sequence[str] | None = None,
    report: bool = True,
    reporter: Reporter | None = None,
) -> Run:
    """Train a detector and leave it in a run folder, as best.safetensors.

    Ctrl-C or SIGTERM ends it after the step under way and leaves a run to `resume`. Seeds torch's global generator.

    Args:
        config: a recipe, perhaps changed with `dataclasses.replace`.
        data: a data set in any known format, or one that is already open.
        val_data: what to judge by, if `data` is already open; a share of `data` is held out if left out.
        output: the run folder, which must be empty or not exist; `runs/RECIPE-DATA-NUMBER` if left out.
        format: of the data set; recognised by itself if left out.
        weights: of a whole detector, to start from: anything `deformable_detr.weights.read` takes. The network's
            structure is theirs, whatever `config.model` says; classes of the same name go on where they were.
        device: "auto" is a CUDA device if there is one, else the CPU.
        log: where the figures go besides metrics.jsonl and metrics.csv: "tensorboard", "wandb", "mlflow"; TensorBoard
            where it is installed if left out, nowhere if empty.
        report: write report.html at the end, which takes another look at the validation images.
        reporter: is told how it goes.

    Raises:
        DataError: the data set or an image in it cannot be used.
        ConfigError: the settings contradict the data or each other, or a service to log to is not installed.
        CheckpointError: the weights cannot be had.
        BackendError: the device is not here.
        OutputError: the run folder is not empty or cannot be written.
        TrainingError: the loss is not finite, or memory does not suffice.
    """
    bound_primitive_cache()
    with joined(device) as ranks:
        reporter = (reporter if ranks.is_first else None) or Silence()
        device = ranks.device(device)
        services = _services(log, reporter)
        with ranks.first_alone():
            choose_device(device)  # an error here is better than one after a folder and a download
            if ranks.size > 1 and config.batch_size_by == "memory":
                raise ConfigError(f"--batch-size auto is for one process, and there are {ranks.size}; give a number")
            source = None if weights is None else read_source(weights, reporter=reporter)
            config = settle(config, source)
            opened = _open(config, data, val_data, format)
            transfer = None if source is None else plan(source, opened.train.classes, config.freeze)
            config, reasons = fit_to_data(config, opened.train, device=choose_device(device))
            for reason in reasons:
                reporter.say(f"chosen for these data: {reason}")
            check_share(config, ranks.size)
            _check_metric(config, opened)
            name = _short(opened.train.source) if isinstance(data, DetectionDataset) else _name(Path(data))
            folder = RunFolder(Path())
            if ranks.is_first:
                folder = create_run_folder(Path(output)) if output else new_run_folder(_RUNS, config.name, name)
            if transfer is None and config.model.backbone_weights == "hub":
                reporter.say(
                    f"weights of {config.model.backbone}: from timm's hub, or from its cache if they are there"
                )
        folder = RunFolder(ranks.from_first(folder.path))
        claimed = False
        try:
            session = start_session(config, folder, opened, name, device=device, weights=transfer or True, ranks=ranks)
            if transfer is not None:
                reporter.say(transfer.describe())
            if ranks.is_first:
                folder.claim()
                claimed = True
                _write_settings(folder, config, _origin(data, format, opened), transfer)
            session.save_last()  # from now on, whatever ends the run, it can be resumed
        except DeformableDetrError:
            if claimed:
                folder.take_back()
            elif ranks.is_first:
                folder.leave()
            raise
        try:
            return _run(session, services, report, reporter)
        except DeformableDetrError:
            if session.position.step == 0 and ranks.is_first:
                folder.take_back()
            raise


def _write_settings(folder: RunFolder, config: TrainConfig, origin: dict[str, Any], transfer: Transfer | None) -> None:
    if transfer is not None:
        write_json(folder.transfer, transfer.record())
    write_json(folder.config, to_dict(config))
    write_json(folder.data, origin)


def _origin(data: str | Path | DetectionDataset, format: FormatName | None, opened: TrainingData) -> dict[str, Any]:
    """Where the images are and which of them were held out, for those who come back to the run."""
    path = None if isinstance(data, DetectionDataset) else os.path.abspath(os.path.expanduser(data))
    return {"path": path, "format": format, "held_out": list(opened.held_out)}


def resume(
    run: str | Path,
    *,
    epochs: int | None = None,
    data: str | Path | DetectionDataset | None = None,
    val_data: DetectionDataset | None = None,
    device: str = "auto",
    log: Sequence[str] | None = None,
    report: bool = True,
    reporter: Reporter | None = None,
) -> Run:
    """Go on with a run that was interrupted, at the very step, or train a finished one for longer.

    If last.safetensors is damaged, the newest whole checkpoint before it takes its place, and `reporter` is told. The
    learning rate follows its schedule for the new number of epochs.

    Args:
        run: the run folder.
        epochs: in all; as many as the run was started with if left out.
        data: where the data set is now; where it was if left out.
        val_data: as for `train`.
        device: as for `train`.
        log: as for `train`.
        report: as for `train`.
        reporter: is told how it goes.

    Raises:
        OutputError: there is no such run, or its folder cannot be written.
        BackendError: the device is not here.
        CheckpointError: last.safetensors is damaged or is of other classes than the data set.
        ConfigError: nothing is left to do.
        DataError: see `train`.
        TrainingError: see `train`.
    """
    bound_primitive_cache()
    with joined(device) as ranks:
        reporter = (reporter if ranks.is_first else None) or Silence()
        device = ranks.device(device)
        services = _services(log, reporter)
        with ranks.first_alone():
            folder = open_run_folder(Path(run))
            path, saved = _newest_whole(folder, reporter)
            assert saved.training is not None
            config = from_dict(TrainConfig, read_json(folder.config))
            check_share(config, ranks.size)
            before = saved.training.progress["position"]
            config = with_epochs(config, epochs, before["epoch"])
            if before.get("stopped_early") and epochs is None:
                raise ConfigError(
                    f"the run stopped early after epoch {before['epoch']}; "
                    "to go on, ask for more than that with --epochs"
                )
            origin = read_json(folder.data) if data is None or folder.data.exists() else {}
            if data is None and origin.get("path") is None:
                raise ConfigError(f"{run} was trained on data given in Python; say where they are now")
            held_out = origin.get("held_out")
            opened = _open(config, data or origin["path"], val_data, origin.get("format"), held_out)
            check_same_classes(saved, opened.train, path)
        name = saved.provenance.get("data", "")
        session = start_session(config, folder, opened, name, device=device, weights=False, ranks=ranks)
        session = session._replace(origin=Origin(saved.provenance.get("weights", ""), saved.licence))
        notes = session.restore(saved)
        ranks.gathered(None)  # from here on files change, and all have read them
        position = session.position
        if position.stopped_early:  # and asked to go on: with all its patience
            position.stopped_early, position.improved_epoch = False, position.epoch
        if ranks.is_first:
            folder.make_last(path)
            write_json(folder.config, to_dict(config))
            if data is not None and not isinstance(data, DetectionDataset):  # who comes next finds it there
                write_json(folder.data, _origin(data, origin.get("format"), opened))
            folder.forget_after(position.step if position.step_in_epoch else 0, position.epoch)
        for note in notes:
            reporter.say(note)
        reporter.say(f"resuming {run} at epoch {position.epoch + 1}, step {position.step_in_epoch + 1}")
        return _run(session, services, report, reporter)


def _services(log: Sequence[str] | None, reporter: Reporter) -> tuple[ServiceName, ...]:
    services = chosen_services(log)
    if log is None and not services:
        reporter.say("TensorBoard is not installed: figures go to metrics.jsonl and metrics.csv only")
    return services


def _newest_whole(folder: RunFolder, reporter: Reporter) -> tuple[Path, Checkpoint]:
    """Where the newest checkpoint lies that can be read, and its content."""
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
            reporter.say(f"going on from {path.name}, the checkpoint before")
        return path, saved
    raise failures[0]


def _check_metric(config: TrainConfig, data: TrainingData) -> None:
    """Refuse to wait for a metric of a class that there is not.

    Raises:
        ConfigError: names the classes.
    """
    class_name, slash, _ = config.best_by.rpartition("/")
    if slash and class_name not in data.train.classes:
        raise ConfigError(f"best_by is {config.best_by!r}, but the classes are {', '.join(data.train.classes)}")


def _open(
    config: TrainConfig,
    data: str | Path | DetectionDataset,
    val_data: DetectionDataset | None,
    format: FormatName | None,
    held_out: Sequence[str] | None = None,
) -> TrainingData:
    if isinstance(data, DetectionDataset):
        return pair(data, val_data, val_share=config.val_share, seed=config.seed, held_out=held_out)
    if val_data is not None:
        raise ConfigError("val_data is for a data set that is already open; a path brings its own validation split")
    return open_training_data(
        Path(data),
        format=format,
        val_share=config.val_share,
        seed=config.seed,
        skip_bad_images=config.skip_bad_images,
        held_out=held_out,
    )


def _name(path: Path) -> str:
    return path.resolve().stem


def _short(source: str) -> str:
    """How a data set describes itself, up to the first mark, without the paths of this machine."""
    return " ".join(Path(word).name for word in re.split(r"[,:;] ", source)[0].split())


def _run(session: Session, services: Sequence[ServiceName], report: bool, reporter: Reporter) -> Run:
    """All epochs that are left. Ctrl-C and SIGTERM are answered between steps and leave a run that can go on."""
    position, config = session.position, session.config
    assert config.epochs is not None
    introduce(session, reporter)
    interrupted = terminated = False
    written = session.folder if session.ranks.is_first else None
    journal = Journal(written, services=services, settings=to_dict(config), say=reporter.say)
    # Alone one answers a signal wherever one is; together only where all ask, or the others would wait for ever.
    holding: AbstractContextManager[list[int]] = held() if session.ranks.together else nullcontext([])
    with journal, terminable(), explained_worker_deaths(), holding as held_back:
        try:
            while position.epoch < config.epochs and not position.stopped_early:
                run_epoch(session, journal, reporter, held_back)
        except KeyboardInterrupt as interrupt:
            interrupted, terminated = True, isinstance(interrupt, Terminated)
            with uninterrupted():
                session.save_last()
        except DeformableDetrError:
            if position.step > 0:
                reporter.say(f"what was saved last is whole; go on with: ddetr train --resume {session.folder.path}")
            raise
        finally:
            session.loader.close()
    skipped = {path: why for part in session.ranks.gathered(session.skipped) for path, why in part.items()}
    for why in skipped.values():  # each names its file
        reporter.say(f"skipped: {why}")
    page = None
    if report and not interrupted and session.ranks.is_first:
        page = try_to_report(session.folder, session.data, device=str(session.detector.device), reporter=reporter)
    return Run(
        folder=session.folder.path,
        config=config,
        epochs_completed=position.epoch,
        best_epoch=position.best_epoch,
        best=position.best,
        skipped=skipped,
        interrupted=interrupted,
        terminated=terminated,
        stopped_early=position.stopped_early,
        num_not_finite=position.num_not_finite,
        report=page,
    )
