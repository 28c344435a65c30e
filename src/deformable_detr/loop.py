"""One epoch: read a batch, take a step, and again; then evaluate, and keep the best. Here to be read."""

import math
import time
from collections import defaultdict
from typing import Any, NamedTuple

import torch

from deformable_detr.errors import DataError, TrainingError
from deformable_detr.evaluation import EvaluationReport, evaluate
from deformable_detr.freezing import to_training_mode
from deformable_detr.interrupt import uninterrupted
from deformable_detr.journal import Journal
from deformable_detr.optimizer import clip_gradients, schedule, set_learning_rate
from deformable_detr.progress import Reporter, duration, memory_in_use, percent
from deformable_detr.session import Session
from deformable_detr.types import Batch, Target


class _Step(NamedTuple):
    loss: float
    terms: dict[str, float]
    """Before weighting, by "stage/term"."""
    class_error: float
    grad_norm: float
    """Before clipping."""


class _Averages:
    """Of the steps of one epoch, and how fast they went."""

    def __init__(self) -> None:
        self.num_steps = 0
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._started = time.monotonic()

    def add(self, step: _Step) -> None:
        self.num_steps += 1
        scalars = {"loss": step.loss, "class_error": step.class_error, "grad_norm": step.grad_norm}
        for name, value in (scalars | step.terms).items():
            self._sums[name] += value

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / self.num_steps

    def by_name(self) -> dict[str, float]:
        return {name: total / self.num_steps for name, total in self._sums.items()}


def run_epoch(session: Session, journal: Journal, reporter: Reporter) -> None:
    """Take the steps that are left of this epoch, evaluate if it is time, and write what there is to write.

    KeyboardInterrupt leaves it between two steps or between step and evaluation, and `session` fit to be saved.

    Raises:
        TrainingError: the loss is not finite, or memory does not suffice.
        DataError: an image cannot be read.
    """
    config, number = session.config, session.position.epoch + 1
    averages = _take_steps(session, journal, reporter)
    report = None
    if number % config.eval_every == 0 or number == config.epochs:
        # Weights first: an evaluation that fails loses nothing but itself.
        with uninterrupted():
            session.save_last()
        report = evaluate(
            session.detector,
            session.data.val,
            batch_size=config.batch_size,
            num_workers=config.num_workers,
            skip_bad_images=config.skip_bad_images,
            reporter=reporter,
        )
    with uninterrupted():
        is_best = _complete_epoch(session, report)
        journal.epoch(_epoch_record(session, averages, report))
    reporter.say(_epoch_line(session, averages, report, is_best))


def _take_steps(session: Session, journal: Journal, reporter: Reporter) -> _Averages:
    config, position, loader = session.config, session.position, session.loader
    to_training_mode(session.model, config.freeze)
    loader.set_epoch(position.epoch)
    skip = position.step_in_epoch
    batches = iter(loader if skip < len(loader) else ())
    for _ in range(skip):
        next(batches, None)  # read again and not used, so that resuming goes on at the very step
    averages = _Averages()
    for batch in batches:
        with uninterrupted():
            set_learning_rate(session.optimizer, schedule(config.optimizer, position.step, session.total_steps))
            step = _take_step(session, batch)
            position.step += 1
            position.step_in_epoch += 1
            averages.add(step)
            record = _step_record(session, step, averages)
            if position.step % config.log_every == 0:
                journal.step(record)
        reporter.update(
            f"epoch {position.epoch + 1}/{config.epochs}",
            position.step_in_epoch,
            len(loader),
            _details(session, record, averages),
        )
    if position.step_in_epoch == 0:
        first = next(iter(session.skipped.values()))
        raise DataError(f"none of the {len(session.data.train)} training images could be read; the first: {first}")
    return averages


def _take_step(session: Session, batch: Batch) -> _Step:
    device = session.detector.device
    try:
        output = session.model(
            batch.images.to(device, non_blocking=True), batch.padding_mask.to(device, non_blocking=True)
        )
        targets = [Target(one.labels.to(device), one.boxes.to(device)) for one in batch.targets]
        losses = session.criterion(output, targets)
        # One copy from the device for all figures of the step.
        figures = torch.stack([losses.total.detach(), losses.class_error, *losses.terms.values()]).tolist()
        loss, class_error, terms = figures[0], figures[1], dict(zip(losses.terms, figures[2:], strict=True))
        session.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
    except TrainingError as error:
        raise TrainingError(f"{_place(session)}: {error}") from error
    except torch.OutOfMemoryError as error:
        height, width = batch.images.shape[2:]
        raise TrainingError(
            f"not enough memory on {device} for {len(batch.images)} images of {width} x {height}; "
            "use a smaller --batch-size (the learning rate follows) or --image-size"
        ) from error
    if not math.isfinite(loss):
        raise _not_finite(session, "loss", terms)
    grad_norm = clip_gradients(session.model, session.config.optimizer.clip_norm)
    if not math.isfinite(grad_norm):
        raise _not_finite(session, "gradient", terms)
    session.optimizer.step()
    return _Step(loss, terms, class_error, grad_norm)


def _not_finite(session: Session, what: str, terms: dict[str, float]) -> TrainingError:
    bad = {name: term for name, term in terms.items() if not math.isfinite(term)} or terms
    listed = ", ".join(f"{name} {term:.3g}" for name, term in bad.items())
    return TrainingError(
        f"{_place(session)}: the {what} is not finite; loss terms: {listed}; a smaller --lr usually cures it"
    )


def _place(session: Session) -> str:
    return f"step {session.position.step + 1}, epoch {session.position.epoch + 1}"


def _complete_epoch(session: Session, report: EvaluationReport | None) -> bool:
    """Count it and write the checkpoints; returns whether these weights are the best so far."""
    position = session.position
    # Of equals the later: where AP says nothing, as without objects to judge by, more steps are worth more.
    is_best = report is not None and (not position.best or report.metrics.ap >= position.best["ap"])
    position.epoch += 1
    position.step_in_epoch = 0
    position.evaluation_seconds = report.seconds if report is not None else position.evaluation_seconds
    if report is not None and is_best:
        position.best_epoch, position.best = position.epoch, report.metrics.twelve()
        session.save_best(report.metrics)
    session.save_last()
    return is_best


def _step_record(session: Session, step: _Step, averages: _Averages) -> dict[str, Any]:
    device = session.detector.device
    on_gpu = device.type == "cuda"
    return {
        "epoch": session.position.epoch + 1,
        "step": session.position.step,
        "loss": step.loss,
        "terms": step.terms,
        "class_error": step.class_error,
        "grad_norm": step.grad_norm,
        "lr": session.optimizer.param_groups[0]["lr"],
        "images_per_second": session.config.batch_size / averages.seconds_per_step,
        "memory_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else memory_in_use(),
    }


def _epoch_record(session: Session, averages: _Averages, report: EvaluationReport | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "epoch": session.position.epoch,
        "step": session.position.step,
        "train": averages.by_name(),
        "train_seconds": averages.seconds - (report.seconds if report else 0.0),
    }
    if report is not None:
        record["val"] = report.metrics.twelve()
        record["val_per_class"] = {name: one._asdict() for name, one in report.metrics.per_class.items()}
        record["val_seconds"] = report.seconds
    return record


def _epoch_line(session: Session, averages: _Averages, report: EvaluationReport | None, is_best: bool) -> str:
    line = f"epoch {session.position.epoch}/{session.config.epochs}"
    if averages.num_steps:
        line += f"  loss {averages.by_name()['loss']:.2f}"
    if report is not None:
        line += f"  AP {percent(report.metrics.ap)}  AP50 {percent(report.metrics.ap50)}"
        line += "  best so far" if is_best else ""
        line += f"  {len(report.skipped)} of the images to judge by skipped" if report.skipped else ""
    return f"{line}  ({duration(averages.seconds)})"


def _details(session: Session, record: dict[str, Any], averages: _Averages) -> str:
    """Loss terms of the last decoder layer, learning rate, speed, memory, and time left of the epoch and the run."""
    position, last = session.position, session.config.model.decoder_layers - 1
    terms = {name: record["terms"][f"decoder.{last}/{name}"] for name in ("class", "l1", "giou")}
    shown = " ".join(f"{name} {value:.2f}" for name, value in terms.items())
    left = averages.seconds_per_step * (len(session.loader) - position.step_in_epoch)
    run_left = averages.seconds_per_step * (session.total_steps - position.step)
    run_left += position.evaluation_seconds * session.evaluations_left
    return (
        f"loss {record['loss']:.2f} ({shown})  lr {record['lr']:.1e}  {record['images_per_second']:.1f} images/s  "
        f"{record['memory_bytes'] / 2**30:.1f} GB  {duration(left)} left, run {duration(run_left)}"
    )
