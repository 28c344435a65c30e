"""Messages of a run: its introduction, its progress lines and records, and errors explained to users."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from deformable_detr.core.errors import TrainingError
from deformable_detr.core.progress import Reporter, duration, memory_in_use, percent
from deformable_detr.core.types import Batch
from deformable_detr.data.crowding import MOST_EVALUATED, crowding, denoising_text, evaluation_text, queries_text
from deformable_detr.data.repeats import training_images_among
from deformable_detr.evaluation.evaluate import EvaluationReport, counted_detections
from deformable_detr.models.interface import num_queries_of
from deformable_detr.runs.config import idle_remarks
from deformable_detr.training.acceleration import checkpointed_parts
from deformable_detr.training.freezing import count_parameters
from deformable_detr.training.optimizer import learning_rate
from deformable_detr.training.state import RunState

_NAMED_IMAGES = 8
# Stages of the loss that do not predict what the network is asked for.
_OTHER_STAGES = ("proposals", "denoising")


class Pace:
    """Pace of an epoch: steps and images since it began or was resumed, and their duration."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_images = 0
        self._started = time.monotonic()

    def add(self, num_images: int) -> None:
        """Count one step, and its images in this process."""
        self.num_steps += 1
        self.num_images += num_images

    @property
    def seconds(self) -> float:
        """Time since the epoch began or was resumed."""
        return time.monotonic() - self._started

    @property
    def seconds_per_step(self) -> float:
        """Mean duration of a step, with the reading of its images."""
        return self.seconds / max(1, self.num_steps)


def introduce(run: RunState, reporter: Reporter) -> None:
    """Introduce a run before its first step: data, model, schedule, and remarks on its settings."""
    config, data, precision, compute = run.config, run.data, run.learner.precision, run.config.compute
    device, classes = run.detector.device, run.data.train.classes
    reporter.say(f"data: {data.train.source}")
    reporter.say(
        f"{len(data.train.samples)} images with {data.train.num_objects} objects of {len(classes)} classes "
        f"({', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}); evaluated on {data.origin}"
    )
    if data.num_problems:
        left_out = f", {data.num_bad_images} images left out" if data.num_bad_images else ""
        reporter.say(f"problems in the annotations: {data.num_problems}{left_out}; `ddetr check-data` lists them")
    if run.ranks.is_first:
        for warning in data_warnings(run):
            reporter.say(f"warning: {warning}")
    parameters = count_parameters(run.model)
    weights = f", all weights from {run.origin.weights}" if run.origin.weights else ""
    frozen = f" ({', '.join(config.run.freeze)})" if config.run.freeze else ""
    reporter.say(
        f"model: {config.model.describe()}{weights}, {parameters.trained / 1e6:.2f} million parameters to train and "
        f"{parameters.frozen / 1e6:.2f} million frozen{frozen}, on {device} in {precision.name}"
    )
    if precision.is_slow:
        reporter.say("this CPU has no instructions for bfloat16: --precision float32 is several times as fast")
    if compute.activation_checkpointing:
        reporter.say(f"computed twice instead of remembered: {', '.join(checkpointed_parts(run.model))}")
    if compute.compile:
        gain = "; on a CPU steps are no quicker for it" if device.type == "cpu" else ""
        reporter.say(f"the network's layers are compiled in the first steps, which takes a minute{gain}")
    reporter.say(_schedule_line(run))
    for remark in idle_remarks(config):
        reporter.say(remark)
    if compute.sharded:
        reporter.say(
            f"sharded: each of {run.ranks.size} processes keeps its part of the weights and of what goes with them"
            if run.learner.sharded
            else "compute.sharded is true and has no effect: there is one process, and it keeps everything"
        )
    # Jobs that a shell starts in the background ignore Ctrl-C, and Python does not change that.
    is_off = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    stops = "Ctrl-C is off here, SIGTERM stops" if is_off else "Ctrl-C stops"
    reporter.say(f"run folder: {run.folder.path}; {stops}, and what is there can be resumed")


def data_warnings(run: RunState) -> list[str]:
    """Sentences on what will spoil the result: training images to validate with, and more objects than can be found."""
    train, val = run.data.train, run.data.val
    leak = None if val is train else training_images_among(train, val)
    warnings = [] if leak is None else [leak]
    queries = num_queries_of(run.model)
    crowded = None if queries is None else crowding([train, val], queries)
    if crowded is not None:
        is_fixed = run.origin.weights and "num_queries" not in run.config.model.free_settings
        way_out = "the weights fix their number; train without --weights, or cut the images into tiles"
        warnings.append(queries_text(crowded, "the model", way_out=way_out if is_fixed else None))
    copied = getattr(run.config.model, "denoising_queries", 0)
    crowded = crowding([train], copied) if copied else None
    if crowded is not None:
        warnings.append(denoising_text(crowded))
    crowded = crowding([val], MOST_EVALUATED)
    if crowded is not None:
        counted = counted_detections(run.model, val)
        more = f"what {counted} detections give is evaluated besides, as val_at_n" if counted > MOST_EVALUATED else None
        warnings.append(evaluation_text(crowded, way_out=more))
    return warnings


def _schedule_line(run: RunState) -> str:
    optimizer, batch_size = run.config.optimizer, run.plan.batch_size
    origin = ""
    if optimizer.lr == "auto" and optimizer.base_batch_size != batch_size:
        origin = f" ({optimizer.base_lr:g} x sqrt({batch_size} / {optimizer.base_batch_size}))"
    return (
        f"{run.plan.epochs} epochs of {run.steps_per_epoch} steps of {batch_size} images, "
        f"learning rate {learning_rate(optimizer, batch_size):.3g}{origin}"
    )


def step_record(run: RunState, figures: dict[str, float], terms: dict[str, float], pace: Pace) -> dict[str, Any]:
    """Record of a step for metrics.jsonl."""
    device = run.learner.device
    return {
        "epoch": run.progress.epoch + 1,
        "step": run.progress.step,
        "loss": figures["loss"],
        "terms": terms,
        "class_error": figures["class_error"],
        "grad_norm": figures["grad_norm"],
        "lr": run.learner.optimizer.param_groups[0]["lr"],
        "images_per_second": run.plan.batch_size / pace.seconds_per_step,
        "memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory_in_use(),
    }


def details(run: RunState, record: dict[str, Any], pace: Pace) -> str:
    """Details of a step for the progress line: loss, learning rate, speed, memory, and time left."""
    progress = run.progress
    stages = [name.rsplit("/", 1)[0] for name in record["terms"]]
    last = next((stage for stage in reversed(stages) if stage.partition(".")[0] not in _OTHER_STAGES), "")
    terms = {name.rsplit("/", 1)[-1]: term for name, term in record["terms"].items() if name.startswith(f"{last}/")}
    shown = " ".join(f"{name} {value:.2f}" for name, value in terms.items())
    left = pace.seconds_per_step * (run.steps_per_epoch - progress.step_in_epoch)
    run_left = pace.seconds_per_step * (run.total_steps - progress.step)
    run_left += progress.evaluation_seconds * run.evaluations_left
    return (
        f"loss {record['loss']:.2f} ({shown})  lr {record['lr']:.1e}  {record['images_per_second']:.1f} images/s  "
        f"{record['memory_bytes'] / 2**30:.1f} GB  {duration(left)} left, run {duration(run_left)}"
    )


def epoch_record(run: RunState, pace: Pace, report: EvaluationReport | None) -> dict[str, Any]:
    """Record of a complete epoch for metrics.jsonl."""
    record: dict[str, Any] = {
        "epoch": run.progress.epoch,
        "step": run.progress.step,
        "train": run.progress.averages(),
        "not_finite": run.progress.num_not_finite,
        "train_seconds": pace.seconds - (report.seconds if report else 0.0),
    }
    if report is not None:
        record["val"] = report.metrics.twelve()
        record["val_per_class"] = {name: one._asdict() for name, one in report.metrics.per_class.items()}
        if (own := report.metrics_at_n) is not None:
            record["val_at_n"] = {"max_detections": own.max_detections, **own.twelve()}
            record["val_at_n_per_class"] = {name: one._asdict() for name, one in own.per_class.items()}
        record["val_seconds"] = report.seconds
    return record


def epoch_line(run: RunState, pace: Pace, report: EvaluationReport | None, is_best: bool) -> str:
    """Line for people about a complete epoch."""
    line = f"epoch {run.progress.epoch}/{run.plan.epochs}"
    if run.progress.num_summed:
        line += f"  loss {run.progress.averages()['loss']:.2f}"
    if report is not None:
        line += f"  AP {percent(report.metrics.ap)}  AP50 {percent(report.metrics.ap50)}"
        if (own := report.metrics_at_n) is not None:
            line += f"  AP with {own.max_detections} detections {percent(own.ap)}"
        line += "  best so far" if is_best else ""
        line += f"  {len(report.skipped)} validation images skipped" if report.skipped else ""
    return f"{line}  ({duration(pace.seconds)})"


def early_stop_line(run: RunState) -> str:
    """Line for people about a run that `patience` has ended."""
    waited = run.progress.evaluations_without_gain
    best_by = run.config.checkpoints.best_by
    return (
        f"stopped early: no better {best_by} in the last {waited} evaluations; to continue: --resume with more --epochs"
    )


@contextmanager
def explained_step(run: RunState, batch: Batch) -> Iterator[None]:
    """Context of a step that explains its errors to users: where they occurred, with which images, and a way out.

    Raises:
        TrainingError: the step raised one itself (its class stays), there is not enough memory, or batch norm has too
            few values.
    """
    height, width = batch.images.shape[2:]
    try:
        yield
    except TrainingError as error:
        place = f"step {run.progress.step + 1}, epoch {run.progress.epoch + 1}"
        error.args = (f"{place}: {error}; {_images(run, batch)}",)
        raise
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            f"batch norm has nothing to learn from: of {len(batch.images) // run.learner.accumulate or 1} images of "
            f"{width} x {height} its coarsest map is a single number; use a larger --image-size or --batch-size, or "
            "weights for the backbone"
        ) from error
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"not enough memory on {run.learner.device} for {len(batch.images)} images of {width} x {height}; "
            "use --batch-size auto, --set accumulate=2 or more, --set activation_checkpointing=true, or a smaller "
            "--image-size"
        ) from error


@contextmanager
def explained_evaluation(run: RunState, batch_size: int) -> Iterator[None]:
    """Context of an evaluation that explains its errors to users.

    Raises:
        TrainingError: there is not enough memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        images = run.plan.batch_size
        singly = f"; with --set accumulate={images} it is one at a time" * (batch_size > 1)
        raise TrainingError(
            f"not enough memory on {run.detector.device} to evaluate {batch_size} images of "
            f"{run.plan.preprocessing.short_side} pixels at once{singly}; a smaller --image-size needs less"
        ) from error


def _images(run: RunState, batch: Batch) -> str:
    paths = [str(run.data.train.samples[index].path) for index in batch.sample_indices]
    return f"images: {', '.join(paths[:_NAMED_IMAGES])}{', ...' if len(paths) > _NAMED_IMAGES else ''}"
