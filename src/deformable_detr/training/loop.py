"""One epoch: read a batch, take a step, and again; then evaluate, and keep the best. Here to be read."""

import math
import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from deformable_detr.core.distributed import Ranks
from deformable_detr.core.errors import DataError, TrainingError
from deformable_detr.core.progress import Reporter, duration, memory_in_use, percent
from deformable_detr.core.types import Batch, Target
from deformable_detr.data.batch import split
from deformable_detr.evaluation.evaluate import EvaluationReport, evaluate
from deformable_detr.training.freezing import to_training_mode
from deformable_detr.training.metrics_log import Journal
from deformable_detr.training.optimizer import clip_gradients, schedule, set_learning_rate
from deformable_detr.training.sharding import equally_many
from deformable_detr.training.signals import answer, uninterrupted
from deformable_detr.training.state import Position, Session

_MOST_LEFT_OUT = 10
_NAMED_IMAGES = 8
_MOST_AT_ONCE = 4
"""Images in an evaluation's batch, which is not shared out: steps in parts or in processes hold few at a time, too."""


class _Step(NamedTuple):
    loss: float
    terms: dict[str, float]
    """Before weighting, by "stage/term"."""
    class_error: float
    grad_norm: float
    """Before clipping."""


class _NotFinite(TrainingError):
    """Loss or gradient of a step is not finite; the weights are those of before."""


class _Averages:
    """Of the steps of one epoch, those before an interruption included, and how fast the others went."""

    def __init__(self, position: Position) -> None:
        self.num_steps = 0
        self._position = position
        self._started = time.monotonic()

    def add(self, step: _Step) -> None:
        sums = self._position.sums
        scalars = {"loss": step.loss, "class_error": step.class_error, "grad_norm": step.grad_norm}
        for name, value in (scalars | step.terms).items():
            sums[name] = sums.get(name, 0.0) + value
        self._position.num_summed += 1

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / max(1, self.num_steps)

    def by_name(self) -> dict[str, float]:
        return {name: total / self._position.num_summed for name, total in self._position.sums.items()}


def run_epoch(session: Session, journal: Journal, reporter: Reporter, held_back: Sequence[int] = ()) -> None:
    """Take the steps that are left of this epoch, evaluate if it is time, and write what there is to write.

    KeyboardInterrupt leaves it between two steps or between step and evaluation, and `session` fit to be saved. Of
    several processes all stop before the same step, for what `held_back` has of any of them.

    Raises:
        TrainingError: the loss is not finite, or memory does not suffice.
        DataError: an image cannot be read.
    """
    config, position = session.config, session.position
    number = position.epoch + 1
    averages = _take_steps(session, journal, reporter, held_back)
    report = None
    assert config.eval_every is not None
    if number % config.eval_every == 0 or number == config.epochs:
        # Weights first: an evaluation that fails loses nothing but itself.
        with uninterrupted():
            session.save_last()
        report = _evaluate(session, reporter)
    with uninterrupted():
        is_best = _complete_epoch(session, report)
        record, line = _epoch_record(session, averages, report), _epoch_line(session, averages, report, is_best)
        # The line before the checkpoint: what says that an epoch is complete comes last.
        journal.epoch(record)
        position.begin_epoch()
        session.save_last()
    reporter.say(line)
    if position.stopped_early:
        reporter.say(
            f"stopped early: no better {config.best_by} in the {position.epoch - position.improved_epoch} epochs "
            f"since epoch {position.improved_epoch}; --epochs goes on"
        )


def _evaluate(session: Session, reporter: Reporter) -> EvaluationReport:
    config = session.config
    batch_size = min(_MOST_AT_ONCE, -(-config.batch_size // config.accumulate))
    try:
        return evaluate(
            session.judged(),
            session.data.val,
            batch_size=batch_size,
            num_workers=config.num_workers,
            skip_bad_images=config.skip_bad_images,
            reporter=reporter,
            ranks=session.ranks,
        )
    except torch.OutOfMemoryError as error:
        singly = f'; with "accumulate": {config.batch_size} in config.json it is one at a time' * (batch_size > 1)
        raise TrainingError(
            f"not enough memory on {session.detector.device} to evaluate {batch_size} images of "
            f"{config.preprocessing.short_side} pixels at once{singly}; a smaller --image-size needs less"
        ) from error


def _take_steps(session: Session, journal: Journal, reporter: Reporter, held_back: Sequence[int]) -> _Averages:
    config, position, loader = session.config, session.position, session.loader
    to_training_mode(session.model, config.freeze)
    loader.set_epoch(position.epoch, start=position.batches_in_epoch)
    averages = _Averages(position)
    saved, num_images = time.monotonic(), 0
    for batch in loader if position.batches_in_epoch < len(loader) else ():
        due = config.save_every > 0 and time.monotonic() - saved >= 60 * config.save_every
        if _agree(session.ranks, held_back, due):
            with uninterrupted():
                session.save_last()
            saved = time.monotonic()
        with uninterrupted():
            set_learning_rate(session.optimizer, schedule(config.optimizer, position.step, session.total_steps))
            step = _step_or_skip(session, batch, reporter)
            position.step += 1
            position.step_in_epoch += 1
            position.batches_in_epoch = loader.consumed
            averages.num_steps += 1
            num_images += len(batch.sample_indices)
            details = ""
            if step is not None:
                averages.add(step)
                record = _step_record(session, step, averages)
                details = _details(session, record, averages)
                if position.step % config.log_every == 0:
                    journal.step(record)
        stage = f"epoch {position.epoch + 1}/{config.epochs}"
        reporter.update(stage, position.step_in_epoch, len(loader), details)
    position.batches_in_epoch = len(loader)
    # Of several processes one without images takes part all the same: only together they know that there were none.
    (num_images_of_all,) = session.ranks.total(num_images)
    if num_images_of_all == 0 and position.step_in_epoch == averages.num_steps:
        reasons = [why for part in session.ranks.gathered(session.skipped) for why in part.values()]
        first = f"; the first: {reasons[0]}" if reasons else ""
        raise DataError(f"none of the {len(session.data.train)} training images could be read{first}")
    return averages


def _agree(ranks: Ranks, held_back: Sequence[int], due: bool) -> bool:
    """Whether to save now; raises for a signal that has reached any of the processes. All ask at the same steps."""
    interrupted, terminated, due_somewhere = ranks.total(signal.SIGINT in held_back, signal.SIGTERM in held_back, due)
    answer(interrupted > 0, terminated > 0)
    return due_somewhere > 0


def _step_or_skip(session: Session, batch: Batch, reporter: Reporter) -> _Step | None:
    """One step; None if it was left out because it was not finite and the settings say so."""
    position = session.position
    if session.config.on_non_finite == "stop":
        return _take_step(session, batch)
    # Batch norm has its statistics from the forward pass, before anything can be seen to be wrong.
    buffers = [(buffer, buffer.clone()) for buffer in session.model.buffers()]
    try:
        step = _take_step(session, batch)
    except _NotFinite as error:
        for buffer, before in buffers:
            buffer.copy_(before)
        position.num_not_finite += 1
        position.not_finite_in_a_row += 1
        if position.not_finite_in_a_row >= _MOST_LEFT_OUT:
            raise TrainingError(f"{position.not_finite_in_a_row} steps in a row left out; the last: {error}") from error
        reporter.say(f"left out: {error}")
        return None
    position.not_finite_in_a_row = 0
    return step


def _take_step(session: Session, batch: Batch) -> _Step:
    device, ranks, network = session.detector.device, session.ranks, session.network
    # A step's images may go through in parts, and in several processes; its sums are divided by all of its objects.
    (num_boxes,) = ranks.total(sum(len(one.labels) for one in batch.targets))
    session.optimizer.zero_grad(set_to_none=True)  # those of a step that was left out
    figures: Tensor | float = 0.0
    try:
        parts = split(batch, session.config.accumulate)
        if session.sharded:
            parts = equally_many(parts, ranks)
        for number, part in enumerate(parts, start=1):
            counts = 1.0 if part.sample_indices else 0.0  # a stand-in for nothing to learn from does not
            # Processes exchange gradients once a step, with those of its last part.
            more = number < len(parts)
            with network.no_sync() if more and isinstance(network, DistributedDataParallel) else nullcontext():
                with session.precision.applied():
                    output = network(
                        part.images.to(device, non_blocking=True), part.padding_mask.to(device, non_blocking=True)
                    )
                targets = [Target(one.labels.to(device), one.boxes.to(device)) for one in part.targets]
                losses = session.criterion(output, targets, num_boxes=num_boxes)
                # Of the processes' gradients each gets the mean; that of the whole step is their sum.
                session.precision.backward(losses.total * (counts * ranks.size))
            share = sum(len(one.labels) for one in part.targets) / max(num_boxes, 1)
            values = torch.stack([losses.total.detach(), losses.class_error * share, *losses.terms.values()])
            figures = figures + values * counts
        # One copy from the device for all figures of the step.
        assert isinstance(figures, Tensor)
        loss, class_error, *sums = ranks.total(*figures.tolist())
        terms = dict(zip(losses.terms, sums, strict=True))
    except TrainingError as error:
        message = f"{_place(session)}: {error}; {_images(session, batch)}"
        # The other processes have seen nothing and would wait for this one for ever.
        raise TrainingError(message) if ranks.together else _NotFinite(message) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        height, width = batch.images.shape[2:]
        raise TrainingError(
            f"batch norm has nothing to learn from: of {len(batch.images) // session.config.accumulate or 1} images of "
            f"{width} x {height} its coarsest map is a single number; use a larger --image-size or --batch-size, or "
            "weights for the backbone"
        ) from error
    except torch.OutOfMemoryError as error:
        height, width = batch.images.shape[2:]
        raise TrainingError(
            f"not enough memory on {device} for {len(batch.images)} images of {width} x {height}; "
            "use --batch-size auto, --set accumulate=2 or more, --set activation_checkpointing=true, or a smaller "
            "--image-size"
        ) from error
    if not math.isfinite(loss):
        raise _not_finite(session, batch, "loss", terms)
    session.precision.unscale(session.optimizer)
    grad_norm = clip_gradients(session.model, session.config.optimizer.clip_norm)
    if not math.isfinite(grad_norm) and not session.precision.may_overflow:
        raise _not_finite(session, batch, "gradient", terms)
    session.precision.step(session.optimizer)
    session.optimizer.zero_grad(set_to_none=True)  # while the next step remembers activations they are of no use
    if session.average is not None:
        session.average.update()
    return _Step(loss, terms, class_error, grad_norm)


def _not_finite(session: Session, batch: Batch, what: str, terms: dict[str, float]) -> _NotFinite:
    bad = {name: term for name, term in terms.items() if not math.isfinite(term)} or terms
    listed = ", ".join(f"{name} {term:.3g}" for name, term in bad.items())
    return _NotFinite(
        f"{_place(session)}: the {what} is not finite; loss terms: {listed}; {_images(session, batch)}; "
        "a smaller --lr usually cures it"
    )


def _images(session: Session, batch: Batch) -> str:
    paths = [str(session.data.train.samples[index].path) for index in batch.sample_indices]
    return f"images: {', '.join(paths[:_NAMED_IMAGES])}{', ...' if len(paths) > _NAMED_IMAGES else ''}"


def _place(session: Session) -> str:
    return f"step {session.position.step + 1}, epoch {session.position.epoch + 1}"


def _complete_epoch(session: Session, report: EvaluationReport | None) -> bool:
    """Count it, and keep the weights if they are the best so far, which is what it returns."""
    position, config = session.position, session.config
    position.epoch += 1
    if report is None:
        return False
    position.evaluation_seconds = report.seconds
    value, before = report.metrics.value(config.best_by), position.best_value
    # Of equals the later: where the metric says nothing, as without objects to judge by, more steps are worth more.
    is_best = before is None or value >= before
    if before is None or value > before or value < 0:
        position.improved_epoch = position.epoch
    if is_best:
        position.best_epoch, position.best, position.best_value = position.epoch, report.metrics.twelve(), value
        session.save_best(report.metrics)
    waited = position.epoch - position.improved_epoch
    position.stopped_early = 0 < config.patience <= waited and position.epoch < (config.epochs or 0)
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
        "not_finite": session.position.num_not_finite,
        "train_seconds": averages.seconds - (report.seconds if report else 0.0),
    }
    if report is not None:
        record["val"] = report.metrics.twelve()
        record["val_per_class"] = {name: one._asdict() for name, one in report.metrics.per_class.items()}
        record["val_seconds"] = report.seconds
    return record


def _epoch_line(session: Session, averages: _Averages, report: EvaluationReport | None, is_best: bool) -> str:
    line = f"epoch {session.position.epoch}/{session.config.epochs}"
    if session.position.num_summed:
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
