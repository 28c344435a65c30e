"""Training: settle the settings, set up, then for every epoch take the steps, evaluate and save."""

import signal
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import nn

from deformable_detr.core.distributed import Ranks
from deformable_detr.core.errors import ConfigError, DeformableDetrError
from deformable_detr.core.files import write_json
from deformable_detr.core.format_names import FormatName
from deformable_detr.core.progress import Reporter
from deformable_detr.core.reading import read_json
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.loader import BadImageError, open_workers
from deformable_detr.data.splits import TrainingSplits
from deformable_detr.models.interface import given_config, interface_of
from deformable_detr.models.losses import NotFinitePredictionsError
from deformable_detr.report import try_to_report
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.config_file import from_json, to_json
from deformable_detr.runs.folder import RunFolder, open_run_folder
from deformable_detr.runs.places import DataPlaces, read_places
from deformable_detr.runs.progress import saved_run_progress
from deformable_detr.training.autobatch import check_step_fits
from deformable_detr.training.autoconfig import fit_to_data
from deformable_detr.training.finetune import Origin, Source, plan, read_source, start_from
from deformable_detr.training.freezing import check_parts
from deformable_detr.training.loop import NotFiniteError, complete_epoch, evaluate_if_due, take_steps
from deformable_detr.training.messages import introduce
from deformable_detr.training.metrics_log import MetricsLog
from deformable_detr.training.opening import (
    Surroundings,
    alone_in,
    check_metric,
    data_name,
    data_record,
    new_folder,
    newest_whole,
    open_data,
    surroundings,
    write_settings,
)
from deformable_detr.training.products import products_of_run, with_products
from deformable_detr.training.setup import check_same_classes, check_same_model, check_share, set_up, with_epochs
from deformable_detr.training.signals import Terminated, held, terminable, uninterrupted
from deformable_detr.training.state import RunState
from deformable_detr.weights import checkpoint as checkpoints


@dataclass(frozen=True, kw_only=True)
class Run:
    """Result of a training run."""

    folder: Path
    """Run folder."""
    config: TrainConfig
    """Settings of the run, fitted to the data."""
    epochs_completed: int
    """Number of completed epochs."""
    best_epoch: int | None
    """Epoch of best.safetensors, from 1; None if no epoch has been evaluated yet."""
    best: dict[str, float]
    """COCO's twelve numbers of best.safetensors on the validation images, by name."""
    skipped: dict[str, str]
    """Reason for each training image that could not be read, by the path of the image."""
    interrupted: bool
    """Whether Ctrl-C, SIGTERM or SIGHUP ended the run; `resume` continues it."""
    terminated: bool = False
    """Whether SIGTERM ended the run."""
    hung_up: bool = False
    """Whether SIGHUP ended the run, as when its terminal was closed."""
    stopped_early: bool = False
    """Whether `patience` ended the run, which then counts as complete."""
    num_not_finite: int = 0
    """Number of steps left out because loss or gradient was not finite."""
    report: Path | None = None
    """Path of report.html; None if there is no report."""


def train(
    config: TrainConfig,
    *,
    data: str | Path | DetectionDataset | TrainingSplits,
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

    Ctrl-C, SIGTERM or SIGHUP ends the run after the current step, and `resume` can continue it. This seeds torch's
    global random generator.

    Args:
        config: settings of the run: a recipe, perhaps changed by its `with_settings`.
        data: path of a data set in any known format, an open data set, or splits that have been read already.
        val_data: validation images, as a path or an open data set. If left out, they are the validation split of
            `data`, or, if it has none, a share of its training images.
        output: the run folder, which must be empty or not exist; `runs/RECIPE-DATA-NUMBER` if left out.
        format: format of the data set; recognised automatically if left out.
        weights: weights of a whole detector to start from, anything that `deformable_detr.weights.read` takes. Their
            structure replaces `config.model`, and classes of the same name keep what they have learnt.
        model: a network of your own, a `deformable_detr.models.DetectionModel`, for the classes of the data;
            `config.model` is not used then. It is trained itself, and `resume` and `Detector.load` need one, too.
        device: device to train on; "auto" is a CUDA device if there is one, else the CPU.
        log: services to log to, besides metrics.jsonl and metrics.csv: "tensorboard", "wandb", "mlflow". If left out,
            TensorBoard if it is installed; if empty, none.
        report: write report.html at the end, which evaluates the best weights once more.
        on_interrupt: reaction to Ctrl-C, SIGTERM or SIGHUP after the run is saved: "raise" raises the
            KeyboardInterrupt, "return" returns a `Run` with `interrupted` set.
        reporter: receives messages and the progress.

    Returns:
        Folder and figures of the run.

    Raises:
        DataError: the data set or an image in it cannot be used.
        ConfigError: the settings contradict the data or each other, or a service to log to is not installed.
        CheckpointError: the weights are not available or do not fit.
        BackendError: the device is not available.
        OutputError: the run folder is not empty or cannot be written.
        TrainingError: the loss is not finite, or there is not enough memory.
        KeyboardInterrupt: see `on_interrupt`.
    """
    with surroundings(device, log, reporter) as around:
        # Settings and data. Mistakes in them are found here, before a folder is made or anything is computed.
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
            check_step_fits(config, opened.train, around.device)
            config, found = with_products(config, around.device)
            if found is not None:
                around.reporter.say(found)
            check_share(config, around.ranks.size)
            check_metric(config, opened)
            name = data_name(data)
            folder = new_folder(output, config, name, around.ranks)
            if transfer is None and config.model.downloads:
                around.reporter.say(f"{config.model.downloads}: from the hub, or from its cache if they are there")
        folder = RunFolder(around.ranks.from_first(folder.path))
        # A trial of speed may end otherwise in each process; all of them compute as the first one does.
        config = replace(config, compute=around.ranks.from_first(config.compute))
        # Setup. It may still fail: pretrained weights may be missing, or another run may have begun in the folder.
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
            with alone_in(folder, around):
                if around.ranks.is_first:
                    write_settings(folder, config, data_record(data, val_data, format, opened), transfer)
                run.save_last()  # from now on the run can be resumed, whatever ends it
                return _run(run, around, report=report, on_interrupt=on_interrupt)
        except DeformableDetrError:
            # A run that has not taken a step leaves no files. The files of another run in the folder stay.
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
    skip_bad_images: bool = False,
    device: str = "auto",
    log: Sequence[str] | None = None,
    report: bool = True,
    on_interrupt: Literal["raise", "return"] = "raise",
    reporter: Reporter | None = None,
) -> Run:
    """Resume a run at the step at which it was interrupted, or train a finished run for more epochs.

    If last.safetensors is damaged, the newest checkpoint that is not takes its place, and `reporter` receives a
    message. The learning rate follows its schedule for the new number of epochs.

    Args:
        run: the run folder.
        epochs: number of epochs of the whole run; that of the run if left out.
        data: new path of the data set, or an open data set; the path that the run was given if left out.
        val_data: validation images, as for `train`.
        model: a network of the same class, if the run was started with a network of your own.
        skip_bad_images: from now on, leave out and count images that cannot be read, whatever the run began with.
        device: as for `train`.
        log: as for `train`.
        report: as for `train`.
        on_interrupt: as for `train`.
        reporter: receives messages and the progress.

    Returns:
        Folder and figures of the run.

    Raises:
        OutputError: there is no such run, another process trains in its folder, or that cannot be written.
        BackendError: the device is not available.
        CheckpointError: all checkpoints are damaged, or the data set has other classes than the run.
        ConfigError: no epoch is left to train, or a service to log to is not installed.
        DataError: see `train`.
        TrainingError: see `train`.
        KeyboardInterrupt: see `train`.
    """
    with surroundings(device, log, reporter) as around, ExitStack() as held_folder:
        # Settings of the run, perhaps with more epochs, and data. Nothing in the folder changes yet.
        with around.ranks.first_alone():
            folder = open_run_folder(Path(run))
            held_folder.enter_context(alone_in(folder, around))
            path, saved = newest_whole(folder, around.reporter)
            assert saved.training is not None
            config = from_json(read_json(folder.config), str(folder.config))
            check_share(config, around.ranks.size)
            if skip_bad_images:
                config = config.with_settings({"data.skip_bad_images": True})
            config = with_epochs(config, epochs, saved_run_progress(saved.training.progress, path, config))
            places = read_places(folder.data) if data is None or folder.data.exists() else DataPlaces()
            where = places.path if data is None else data
            if where is None:
                raise ConfigError(f"{run} was trained on data given in Python; say where they are now")
            judged_by = places.val_path if val_data is None else val_data
            opened = open_data(config, where, judged_by, places.format, places.held_out)
            check_same_model(saved, config, path)
            check_same_classes(saved, opened.train, path)
            checkpoints.check_given(saved, path, model)
        # Setup, and back to the step at which the checkpoint was saved.
        name = saved.provenance.get("data", "")
        state = set_up(
            config, folder, opened, name, device=around.device, weights=False, model=model, ranks=around.ranks
        )
        state = state._replace(origin=Origin(saved.provenance.get("weights", ""), saved.licence))
        notes = state.restore(saved)
        # Files. All processes have to be here, because the files that they have read change now.
        around.ranks.gathered(None)
        progress = state.progress
        if progress.stopped_early:  # the user wants to go on, so patience starts again
            progress.stopped_early, progress.evaluations_without_gain = False, 0
        if around.ranks.is_first:
            folder.make_last(path)
            write_json(folder.config, to_json(config))
            if data is not None or val_data is not None:  # the next `resume` and the report find the data there
                now = data_record(where, judged_by, places.format, opened)
                changed = {name: value for name, value in now.items() if value is not None}
                write_json(folder.data, places.record() | changed)
            strange = folder.forget_after(progress.step if progress.step_in_epoch else 0, progress.epoch)
            notes += [strange] if strange else []
        for note in notes:
            around.reporter.say(note)
        around.reporter.say(f"resuming {run} at epoch {progress.epoch + 1}, step {progress.step_in_epoch + 1}")
        return _run(state, around, report=report, on_interrupt=on_interrupt)


def _run(run: RunState, around: Surroundings, *, report: bool, on_interrupt: Literal["raise", "return"]) -> Run:
    """Train the remaining epochs. Ctrl-C, SIGTERM and SIGHUP end them between two steps; the run can be resumed."""
    reporter, progress = around.reporter, run.progress
    introduce(run, reporter)
    interrupt: KeyboardInterrupt | None = None
    settled = products_of_run(run.config.compute.products, around.device, reporter)
    with (
        settled,
        _metrics_log(run, around) as log,
        terminable(),
        open_workers(run.loader),
        _signals(run.ranks) as held_back,
    ):
        try:
            while not run.is_over:
                pace = take_steps(run, log, reporter, held_back)
                evaluation = evaluate_if_due(run, reporter)
                complete_epoch(run, log, reporter, pace, evaluation)
        except KeyboardInterrupt as arrived:
            interrupt = arrived
            with uninterrupted():
                run.save_last()
        except DeformableDetrError as error:
            if progress.step > 0:
                reporter.say(_way_on(run.folder, error))
            raise
    skipped = {path: why for part in run.ranks.gathered(run.skipped) for path, why in part.items()}
    for why in skipped.values():  # each names its file
        reporter.say(f"skipped: {why}")
    if interrupt is not None and on_interrupt == "raise":
        reporter.say(f"stopped and saved; to continue: ddetr train --resume {run.folder.path}")
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
        terminated=isinstance(interrupt, Terminated) and interrupt.number == signal.SIGTERM,
        hung_up=isinstance(interrupt, Terminated) and interrupt.number != signal.SIGTERM,
        stopped_early=progress.stopped_early,
        num_not_finite=progress.num_not_finite,
        report=page,
    )


def _way_on(folder: RunFolder, error: DeformableDetrError) -> str:
    """Line for people on how to continue a run that an error has ended, if the same must not happen again."""
    command = f"ddetr train --resume {folder.path}"
    if isinstance(error, BadImageError):
        return f"the last checkpoint is complete; to continue without such images: {command} --skip-bad-images"
    if isinstance(error, NotFiniteError | NotFinitePredictionsError):
        # A resumed run takes the same steps with the same settings.
        return f"the last checkpoint is complete: {folder.last}; other settings can start from it with --weights"
    return f"the last checkpoint is complete; to continue: {command}"


def _metrics_log(run: RunState, around: Surroundings) -> MetricsLog:
    """Log of the metrics, which only the first process writes."""
    folder = run.folder if run.ranks.is_first else None
    return MetricsLog(folder, services=around.services, settings=to_json(run.config), say=around.reporter.say)


def _signals(ranks: Ranks) -> AbstractContextManager[list[int]]:
    """Context that holds back the signals in several processes, until all ask for them at the same step.

    A process that stopped on its own would leave the others waiting for ever. A single process stops at once.
    """
    return held() if ranks.together else nullcontext([])
