"""Training loop: the step, the steps of an epoch, and the evaluation after it."""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deformable_detr.core.distributed import Ranks
from deformable_detr.core.errors import DataError, TrainingError
from deformable_detr.core.progress import Reporter
from deformable_detr.core.types import Batch, Target
from deformable_detr.data.batch import split
from deformable_detr.evaluation.evaluate import EvaluationReport, counted_detections, evaluate
from deformable_detr.models.interface import AveragingCriterion
from deformable_detr.models.losses import NotFinitePredictionsError
from deformable_detr.training.freezing import to_training_mode
from deformable_detr.training.messages import (
    Pace,
    details,
    early_stop_line,
    epoch_line,
    epoch_record,
    explained_evaluation,
    explained_step,
    step_record,
)
from deformable_detr.training.metrics_log import MetricsLog
from deformable_detr.training.optimizer import clip_gradients, schedule_share, set_learning_rate
from deformable_detr.training.sharding import equally_many
from deformable_detr.training.signals import INTERRUPTING, answer, uninterrupted
from deformable_detr.training.state import Learner, RunState

_MOST_LEFT_OUT = 10
_MOST_AT_ONCE = 4
"""Most images in a batch of an evaluation, which has to fit into memory in one part and on one process."""


class Step(NamedTuple):
    """Figures of one training step."""

    loss: float
    """Loss, the weighted sum of the terms."""
    terms: dict[str, float]
    """Loss terms before weighting, by "stage/term"."""
    class_error: float
    """Share of the matched predictions of the last layer whose best class is wrong, in percent."""
    grad_norm: float
    """2-norm of the gradient before clipping."""


class NotFiniteError(TrainingError):
    """Error of a step whose loss or gradient is not finite; no weight has changed."""

    def __init__(self, what: str, terms: dict[str, float]) -> None:
        bad = {name: term for name, term in terms.items() if not math.isfinite(term)} or terms
        listed = ", ".join(f"{name} {term:.3g}" for name, term in bad.items())
        super().__init__(f"the {what} is not finite; a smaller --lr usually cures it; loss terms: {listed}")


def gradient_step(learner: Learner, batch: Batch) -> Step:
    """Training step on one batch: forward pass, loss, backward pass, clipping, update (arXiv 2010.04159, A.2).

    Args:
        learner: the network with all that a step needs; its weights change.
        batch: images and targets of this process.

    Returns:
        Figures of the step, over the images of all processes.

    Raises:
        NotFiniteError: loss or gradient is not finite; no weight has changed.
        NotFinitePredictionsError: predictions in this process are not finite; no weight has changed. Other processes
            may not have noticed.
    """
    ranks, precision, optimizer = learner.ranks, learner.precision, learner.optimizer
    # Split. The images of a step may go through in parts and in several processes. The loss of each part is divided by
    # the number of objects in the whole step, so that the sum over the parts is the loss of the step; a mean over all
    # predictions, by the sum of their weights in the whole step. So is the size of denoising groups that of the whole
    # step: it follows the image with the most objects.
    criterion = learner.criterion
    averaging = criterion if isinstance(criterion, AveragingCriterion) else None
    # The stand-in for a batch that could not be read has a target, and does not count.
    weight = averaging.total_weight(batch.targets) if averaging is not None and batch.sample_indices else 0.0
    num_boxes, weight = ranks.total(sum(len(one.labels) for one in batch.targets), weight)
    most_objects = ranks.largest(max((len(one.labels) for one in batch.targets), default=0))
    parts = split(batch, learner.accumulate)
    if learner.sharded:
        parts = equally_many(parts, ranks)
    optimizer.zero_grad(set_to_none=True)  # a step that was left out has left its gradients
    # Forward and backward pass of each part; gradients add up.
    figures: Tensor | float = 0.0
    for number, part in enumerate(parts, start=1):
        counts = 1.0 if part.sample_indices else 0.0  # an empty part, which only keeps the processes in step, does not
        with _exchange_after(learner.network, last=number == len(parts)):
            images, padding_mask, targets = _on(learner.device, part, most_objects)
            with precision.applied():
                output = learner.network(images, padding_mask, targets)
            if averaging is None:
                losses = criterion(output, targets, num_boxes=num_boxes)
            else:
                losses = averaging(output, targets, num_boxes=num_boxes, total_weight=weight)
            # PyTorch averages gradients over the processes; the gradient of the step is their sum.
            precision.backward(losses.total * (counts * ranks.size))
        share = sum(len(one.labels) for one in part.targets) / max(num_boxes, 1)
        values = torch.stack([losses.total.detach(), losses.class_error * share, *losses.terms.values()])
        figures = figures + values * counts
    # Figures, copied from the device all at once, because every copy waits for the device.
    assert isinstance(figures, Tensor)
    loss, class_error, *sums = ranks.total(*figures.tolist())
    terms = dict(zip(losses.terms, sums, strict=True))
    if not math.isfinite(loss):
        raise NotFiniteError("loss", terms)
    # Clipping, on gradients of their true size.
    precision.unscale(optimizer)
    grad_norm = clip_gradients(learner.model, learner.clip_norm)
    if not math.isfinite(grad_norm) and not precision.may_overflow:
        raise NotFiniteError("gradient", terms)
    # Update. Gradients are freed now: the activations of the next step need the memory.
    precision.step(optimizer)
    optimizer.zero_grad(set_to_none=True)
    if learner.ema is not None:
        learner.ema.update()
    return Step(loss, terms, class_error, grad_norm)


def _on(device: torch.device, part: Batch, most_objects: int) -> tuple[Tensor, Tensor, list[Target]]:
    images = part.images.to(device, non_blocking=True)
    padding_mask = part.padding_mask.to(device, non_blocking=True)
    targets = [
        one._replace(labels=one.labels.to(device), boxes=one.boxes.to(device), most_objects=most_objects)
        for one in part.targets
    ]
    return images, padding_mask, targets


def _exchange_after(network: nn.Module, *, last: bool) -> AbstractContextManager[object]:
    """Context of a backward pass, in which processes exchange gradients only if it is the last of the step."""
    return nullcontext() if last or not isinstance(network, DistributedDataParallel) else network.no_sync()


def take_steps(run: RunState, log: MetricsLog, reporter: Reporter, held_back: Sequence[int] = ()) -> Pace:
    """Take the remaining steps of this epoch.

    KeyboardInterrupt is raised only between two steps, where `run` can be saved. Several processes all stop before the
    same step, if a signal has reached any of them.

    Args:
        run: the run; its weights and progress change.
        log: log of the metrics.
        reporter: receives messages and the progress.
        held_back: signals that have arrived in this process so far, see `signals.held`.

    Returns:
        Duration, and numbers of steps and images.

    Raises:
        TrainingError: the loss is not finite, or there is not enough memory.
        DataError: an image cannot be read.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP.
    """
    # Begin or continue the epoch: the loader skips batches that were taken before an interruption.
    config, progress, loader, learner = run.config, run.progress, run.loader, run.learner
    to_training_mode(run.model, config.run.freeze)
    loader.set_epoch(progress.epoch, start=progress.batches_in_epoch)
    pace, saved = Pace(), time.monotonic()
    for batch in loader if progress.batches_in_epoch < run.steps_per_epoch else ():
        # Save if it is time. A run may be saved or interrupted between two steps, but not within one.
        save_every = 60 * config.checkpoints.save_every
        if _agree_to_save(run.ranks, held_back, due=0 < save_every <= time.monotonic() - saved):
            with uninterrupted():
                run.save_last()
            saved = time.monotonic()
        # Step, and count it at once: weights and progress must always belong together.
        with uninterrupted():
            set_learning_rate(learner.optimizer, schedule_share(config.schedule, progress.step, run.total_steps))
            step = _step_or_skip(run, batch, reporter)
            progress.step += 1
            progress.step_in_epoch += 1
            progress.batches_in_epoch = loader.consumed
            pace.add(len(batch.sample_indices))
            shown = ""
            if step is not None:
                figures = {"loss": step.loss, "class_error": step.class_error, "grad_norm": step.grad_norm}
                progress.add(figures | step.terms)
                record = step_record(run, figures, step.terms, pace)
                shown = details(run, record, pace)
                if progress.step % config.run.log_every == 0:
                    log.step(record)
        reporter.update(
            f"epoch {progress.epoch + 1}/{run.plan.epochs}", progress.step_in_epoch, run.steps_per_epoch, shown
        )
    progress.batches_in_epoch = run.steps_per_epoch
    _check_something_was_read(run, pace)
    return pace


def _agree_to_save(ranks: Ranks, held_back: Sequence[int], *, due: bool) -> bool:
    """Whether to save before this step, agreed on by all processes, which call it together.

    Raises:
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP has reached one of the processes.
    """
    due_somewhere, *counts = ranks.total(due, *(number in held_back for number in INTERRUPTING))
    answer([number for number, count in zip(INTERRUPTING, counts, strict=True) if count > 0])
    return due_somewhere > 0


def _step_or_skip(run: RunState, batch: Batch, reporter: Reporter) -> Step | None:
    """Take a step; None if it was not finite and the settings say that such steps are left out."""
    progress = run.progress
    if run.config.stopping.on_non_finite == "stop":
        with explained_step(run, batch):
            return gradient_step(run.learner, batch)
    # The forward pass updates the statistics of batch norm before anybody can see that the step is not finite.
    buffers = [(buffer, buffer.clone()) for buffer in run.model.buffers()]
    try:
        with explained_step(run, batch):
            step = gradient_step(run.learner, batch)
    except (NotFiniteError, NotFinitePredictionsError) as error:
        if run.ranks.together and isinstance(error, NotFinitePredictionsError):
            raise  # the other processes have not noticed, and would wait for this one for ever
        for buffer, before in buffers:
            buffer.copy_(before)
        progress.num_not_finite += 1
        progress.not_finite_in_a_row += 1
        if progress.not_finite_in_a_row >= _MOST_LEFT_OUT:
            raise TrainingError(f"{progress.not_finite_in_a_row} steps in a row left out; the last: {error}") from error
        reporter.say(f"left out: {error}")
        return None
    progress.not_finite_in_a_row = 0
    return step


def _check_something_was_read(run: RunState, pace: Pace) -> None:
    # A process may have no readable image and others may have some, so the images of all processes are counted.
    (num_images,) = run.ranks.total(pace.num_images)
    if num_images == 0 and run.progress.step_in_epoch == pace.num_steps:
        reasons = [why for part in run.ranks.gathered(run.skipped) for why in part.values()]
        first = f"; the first: {reasons[0]}" if reasons else ""
        raise DataError(f"none of the {len(run.data.train)} training images could be read{first}")


def evaluate_if_due(run: RunState, reporter: Reporter) -> EvaluationReport | None:
    """Evaluate the weights that are kept for use, after every `eval_every` epochs and after the last epoch.

    Returns:
        Result of the evaluation; None if none is due.

    Raises:
        TrainingError: there is not enough memory.
        DataError: an image cannot be read.
    """
    config, number = run.config, run.progress.epoch + 1
    if number % run.plan.eval_every and number != run.plan.epochs:
        return None
    # Save the weights first, so that an evaluation that fails loses no training.
    with uninterrupted():
        run.save_last()
    batch_size = min(_MOST_AT_ONCE, -(-run.plan.batch_size // config.compute.accumulate))
    with explained_evaluation(run, batch_size):
        return evaluate(
            run.judged(),
            run.data.val,
            batch_size=batch_size,
            num_workers=config.data.num_workers,
            max_detections=counted_detections(run.model, run.data.val, config.checkpoints.best_by),
            skip_bad_images=config.data.skip_bad_images,
            reporter=reporter,
            ranks=run.ranks,
        )


def complete_epoch(
    run: RunState, log: MetricsLog, reporter: Reporter, pace: Pace, report: EvaluationReport | None
) -> None:
    """Complete an epoch: count and log it, keep the weights if they are the best, and save the run.

    Args:
        run: the run; its progress changes.
        log: log of the metrics.
        reporter: receives the line for people.
        pace: duration and steps of the epoch.
        report: result of the evaluation, if there was one.
    """
    progress = run.progress
    with uninterrupted():
        progress.epoch += 1
        is_best = report is not None and _keep_if_best(run, report)
        line = epoch_line(run, pace, report, is_best)
        # First the record, then the checkpoint: an epoch counts as complete once its checkpoint is there.
        log.epoch(epoch_record(run, pace, report))
        progress.begin_epoch()
        run.save_last()
    reporter.say(line)
    if progress.stopped_early:
        reporter.say(early_stop_line(run))


def _keep_if_best(run: RunState, report: EvaluationReport) -> bool:
    """Save the weights as the best if no earlier evaluation was better, and count evaluations for `patience`.

    Returns:
        Whether they are the best.
    """
    progress, config = run.progress, run.config
    progress.evaluation_seconds = report.seconds
    value, before = report.value(config.checkpoints.best_by), progress.best_value
    # Of equals the later one is kept. Without validation objects all values are -1, and more steps are better.
    is_best = before is None or value >= before
    gains = before is None or value > before or value < 0
    progress.evaluations_without_gain = 0 if gains else progress.evaluations_without_gain + 1
    if is_best:
        progress.best_epoch, progress.best, progress.best_value = progress.epoch, report.metrics.twelve(), value
        run.save_best(report.metrics)
    out_of_patience = 0 < config.stopping.patience <= progress.evaluations_without_gain
    progress.stopped_early = out_of_patience and progress.epoch < run.plan.epochs
    return is_best
