"""Training: settle the settings, set up, then for every epoch take the steps, evaluate and save."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import nn

from deformable_detr.core.distributed import Ranks
from deformable_detr.core.errors import ConfigError, DeformableDetrError
from deformable_detr.core.files import read_json, write_json
from deformable_detr.core.progress import Reporter
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.loader import open_workers
from deformable_detr.data.open import FormatName
from deformable_detr.models.interface import given_config, interface_of
from deformable_detr.report import try_to_report
from deformable_detr.runs.config import TrainConfig, from_json, to_json
from deformable_detr.runs.folder import RunFolder, open_run_folder
from deformable_detr.runs.progress import saved_run_progress
from deformable_detr.training.autoconfig import fit_to_data
from deformable_detr.training.finetune import Origin, Source, plan, read_source, start_from
from deformable_detr.training.freezing import check_parts
from deformable_detr.training.loop import complete_epoch, evaluate_if_due, take_steps
from deformable_detr.training.messages import introduce
from deformable_detr.training.metrics_log import MetricsLog
from deformable_detr.training.opening import (
    Surroundings,
    check_metric,
    data_name,
    data_record,
    new_folder,
    newest_whole,
    open_data,
    surroundings,
    write_settings,
)
from deformable_detr.training.setup import check_same_classes, check_share, set_up, with_epochs
from deformable_detr.training.signals import Terminated, held, terminable, uninterrupted
from deformable_detr.training.state import RunState
from deformable_detr.weights import checkpoint as checkpoints


@dataclass(frozen=True, kw_only=True)
class Run:
    """Result of a training run: where it is, and how well it went."""

    folder: Path
    config: TrainConfig
    """Settings, with everything settled that depended on the data."""
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
    val_data: str | Path | DetectionDataset | None = None,
    output: str | Path | None = None,
    format: FormatName | None = None,
    weights: str | Path | Source | None = None,
    model: nn.Module | None = None,
    device: str = "auto",
    log: Sequence[str] | None = None,
    report: bool = True,
    on_interrupt: Literal["raise", "return"] = "raise",
    reporter: Reporter | None = None,
) -> Run:
    """Train a detector and leave it in a run folder, as best.safetensors.

    Ctrl-C or SIGTERM ends it after the step under way and leaves a run to `resume`. Seeds torch's global generator.

    Args:
        config: a recipe, perhaps changed with its `with_settings`.
        data: a data set in any known format, or one that is already open.
        val_data: what to judge by, of either kind; the validation split of `data` if left out, or a share that is
            held out of it.
        output: the run folder, which must be empty or not exist; `runs/RECIPE-DATA-NUMBER` if left out.
        format: of the data set; recognised by itself if left out.
        weights: of a whole detector, to start from: anything `deformable_detr.weights.read` takes. The network's
            structure is theirs, whatever `config.model` says; classes of the same name go on where they were.
        model: a network of your own, a `deformable_detr.models.DetectionModel`, for the classes of the data;
            `config.model` is not used then. It is trained itself, and `resume` and `Detector.load` need one, too.
        device: "auto" is a CUDA device if there is one, else the CPU.
        log: where the figures go besides metrics.jsonl and metrics.csv: "tensorboard", "wandb", "mlflow"; TensorBoard
            where it is installed if left out, nowhere if empty.
        report: write report.html at the end, which takes another look at the validation images.
        on_interrupt: what follows when Ctrl-C or SIGTERM has ended the run and it is saved: "raise" passes the
            KeyboardInterrupt on, "return" returns a `Run` that says so.
        reporter: is told how it goes.

    Raises:
        DataError: the data set or an image in it cannot be used.
        ConfigError: the settings contradict the data or each other, or a service to log to is not installed.
        CheckpointError: the weights cannot be had.
        BackendError: the device is not here.
        OutputError: the run folder is not empty or cannot be written.
        TrainingError: the loss is not finite, or memory does not suffice.
        KeyboardInterrupt: see `on_interrupt`.
    """
    with surroundings(device, log, reporter) as around:
        # Settle the settings. What is wrong is found here, before there is a folder or anything has been computed.
        with around.ranks.first_alone():
            if model is not None:
                config = replace(config, model=given_config(model))
                check_parts(config.run.freeze, interface_of(model).parts)
            source = None if weights is None else read_source(weights, reporter=around.reporter)
            config = start_from(config, source)
            check_share(config, around.ranks.size)
            opened = open_data(config, data, val_data, format)
            transfer = None if source is None else plan(source, opened.train.classes, config.run.freeze, model)
            config, reasons = fit_to_data(
                config,
                opened.train,
                device=around.device,
                model=model,
                normalisation=None if source is None else source.checkpoint.preprocessing,
            )
            for reason in reasons:
                around.reporter.say(f"chosen for these data: {reason}")
            check_share(config, around.ranks.size)
            check_metric(config, opened)
            name = data_name(data)
            folder = new_folder(output, config, name, around.ranks)
            if transfer is None and config.model.downloads:
                around.reporter.say(f"{config.model.downloads}: from the hub, or from its cache if they are there")
        folder = RunFolder(around.ranks.from_first(folder.path))
        # Set up. Weights may still be missing, or another run may have begun in the folder.
        claimed = False
        try:
            run = set_up(
                config,
                folder,
                opened,
                name,
                device=around.device,
                weights=transfer or True,
                model=model,
                ranks=around.ranks,
            )
            if transfer is not None:
                around.reporter.say(transfer.describe())
            if around.ranks.is_first:
                folder.claim()
                claimed = True
                write_settings(folder, config, data_record(data, val_data, format, opened), transfer)
            run.save_last()  # from now on, whatever ends the run, it can be resumed
            return _run(run, around, report=report, on_interrupt=on_interrupt)
        except DeformableDetrError:
            # A run that has learnt nothing leaves nothing, and what somebody else has begun stays.
            if claimed and run.progress.step == 0:
                folder.take_back()
            elif not claimed and around.ranks.is_first:
                folder.leave()
            raise


def resume(
    run: str | Path,
    *,
    epochs: int | None = None,
    data: str | Path | DetectionDataset | None = None,
    val_data: str | Path | DetectionDataset | None = None,
    model: nn.Module | None = None,
    device: str = "auto",
    log: Sequence[str] | None = None,
    report: bool = True,
    on_interrupt: Literal["raise", "return"] = "raise",
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
        model: a network of the class that the run was started with, if that was one of your own.
        device: as for `train`.
        log: as for `train`.
        report: as for `train`.
        on_interrupt: as for `train`.
        reporter: is told how it goes.

    Raises:
        OutputError: there is no such run, or its folder cannot be written.
        BackendError: the device is not here.
        CheckpointError: last.safetensors is damaged or is of other classes than the data set.
        ConfigError: nothing is left to do.
        DataError: see `train`.
        TrainingError: see `train`.
        KeyboardInterrupt: see `train`.
    """
    with surroundings(device, log, reporter) as around:
        # Settle the settings: those of the run, and perhaps more epochs.
        with around.ranks.first_alone():
            folder = open_run_folder(Path(run))
            path, saved = newest_whole(folder, around.reporter)
            assert saved.training is not None
            config = from_json(read_json(folder.config), str(folder.config))
            check_share(config, around.ranks.size)
            config = with_epochs(config, epochs, saved_run_progress(saved.training.progress, path, config))
            origin = read_json(folder.data) if data is None or folder.data.exists() else {}
            if data is None and origin.get("path") is None:
                raise ConfigError(f"{run} was trained on data given in Python; say where they are now")
            where = origin["path"] if data is None else data
            judged_by = origin.get("val_path") if val_data is None else val_data
            opened = open_data(config, where, judged_by, origin.get("format"), origin.get("held_out"))
            check_same_classes(saved, opened.train, path)
            checkpoints.check_given(saved, path, model)
        # Set up, and go back to where it was.
        name = saved.provenance.get("data", "")
        state = set_up(
            config, folder, opened, name, device=around.device, weights=False, model=model, ranks=around.ranks
        )
        state = state._replace(origin=Origin(saved.provenance.get("weights", ""), saved.licence))
        notes = state.restore(saved)
        around.ranks.gathered(None)  # from here on files change, and all have read them
        progress = state.progress
        if progress.stopped_early:  # and asked to go on: with all its patience
            progress.stopped_early, progress.evaluations_without_gain = False, 0
        if around.ranks.is_first:
            folder.make_last(path)
            write_json(folder.config, to_json(config))
            if data is not None or val_data is not None:  # who comes next finds it there
                now = data_record(where, judged_by, origin.get("format"), opened)
                write_json(folder.data, origin | {key: value for key, value in now.items() if value is not None})
            folder.forget_after(progress.step if progress.step_in_epoch else 0, progress.epoch)
        for note in notes:
            around.reporter.say(note)
        around.reporter.say(f"resuming {run} at epoch {progress.epoch + 1}, step {progress.step_in_epoch + 1}")
        return _run(state, around, report=report, on_interrupt=on_interrupt)


def _run(run: RunState, around: Surroundings, *, report: bool, on_interrupt: Literal["raise", "return"]) -> Run:
    """All epochs that are left. Ctrl-C and SIGTERM are answered between steps and leave a run that can go on."""
    reporter, progress = around.reporter, run.progress
    introduce(run, reporter)
    interrupt: KeyboardInterrupt | None = None
    with _metrics_log(run, around) as log, terminable(), open_workers(run.loader), _signals(run.ranks) as held_back:
        try:
            while not run.is_over:
                pace = take_steps(run, log, reporter, held_back)
                evaluation = evaluate_if_due(run, reporter)
                complete_epoch(run, log, reporter, pace, evaluation)
        except KeyboardInterrupt as signal:
            interrupt = signal
            with uninterrupted():
                run.save_last()
        except DeformableDetrError:
            if progress.step > 0:
                reporter.say(f"what was saved last is whole; go on with: ddetr train --resume {run.folder.path}")
            raise
    skipped = {path: why for part in run.ranks.gathered(run.skipped) for path, why in part.items()}
    for why in skipped.values():  # each names its file
        reporter.say(f"skipped: {why}")
    if interrupt is not None and on_interrupt == "raise":
        reporter.say(f"stopped and saved; go on with: ddetr train --resume {run.folder.path}")
        raise interrupt
    page = None
    if report and interrupt is None and run.ranks.is_first:
        page = try_to_report(
            run.folder, run.data, model=run.own_model, device=str(run.learner.device), reporter=reporter
        )
    return Run(
        folder=run.folder.path,
        config=run.config,
        epochs_completed=progress.epoch,
        best_epoch=progress.best_epoch,
        best=progress.best,
        skipped=skipped,
        interrupted=interrupt is not None,
        terminated=isinstance(interrupt, Terminated),
        stopped_early=progress.stopped_early,
        num_not_finite=progress.num_not_finite,
        report=page,
    )


def _metrics_log(run: RunState, around: Surroundings) -> MetricsLog:
    """Log of the figures, which the first process writes."""
    folder = run.folder if run.ranks.is_first else None
    return MetricsLog(folder, services=around.services, settings=to_json(run.config), say=around.reporter.say)


def _signals(ranks: Ranks) -> AbstractContextManager[list[int]]:
    """Alone one answers a signal wherever one is; together only where all ask, or the others would wait for ever."""
    return held() if ranks.together else nullcontext([])
