"""Loop of a training: the step, the steps of an epoch, and the evaluation after it. Here to be read."""

import math
import signal
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
from deformable_detr.evaluation.evaluate import EvaluationReport, evaluate
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
from deformable_detr.training.signals import answer, uninterrupted
from deformable_detr.training.state import Learner, RunState

_MOST_LEFT_OUT = 10
_MOST_AT_ONCE = 4
"""Images in an evaluation's batch, which is not shared out: steps in parts or in processes hold few at a time, too."""


class Step(NamedTuple):
    """Figures of one step."""

    loss: float
    terms: dict[str, float]
    """Loss terms before weighting, by "stage/term"."""
    class_error: float
    """Share of matched predictions of the last layer whose best class is wrong, in percent."""
    grad_norm: float
    """2-norm of the gradient before clipping."""


class NotFiniteError(TrainingError):
    """Loss or gradient of a step that is not finite; the weights are those of before."""

    def __init__(self, what: str, terms: dict[str, float]) -> None:
        bad = {name: term for name, term in terms.items() if not math.isfinite(term)} or terms
        listed = ", ".join(f"{name} {term:.3g}" for name, term in bad.items())
        super().__init__(f"the {what} is not finite; a smaller --lr usually cures it; loss terms: {listed}")


def gradient_step(learner: Learner, batch: Batch) -> Step:
    """One step on one batch: forward pass, loss, backward pass, clipping, update (arXiv 2010.04159, A.2).

    Raises:
        NotFiniteError: loss or gradient is not finite; no weight has changed.
        NotFinitePredictionsError: predictions are not finite, which other processes do not know; no weight has changed.
    """
    ranks, precision, optimizer = learner.ranks, learner.precision, learner.optimizer
    # A step's images may go through in parts, and in several processes; its sums are divided by all of its objects.
    (num_boxes,) = ranks.total(sum(len(one.labels) for one in batch.targets))
    parts = split(batch, learner.accumulate)
    if learner.sharded:
        parts = equally_many(parts, ranks)
    optimizer.zero_grad(set_to_none=True)  # those of a step that was left out
    figures: Tensor | float = 0.0
    for number, part in enumerate(parts, start=1):
        counts = 1.0 if part.sample_indices else 0.0  # a stand-in for nothing to learn from does not
        with _exchange_after(learner.network, last=number == len(parts)):
            images, padding_mask, targets = _on(learner.device, part)
            with precision.applied():
                output = learner.network(images, padding_mask, targets)
            losses = learner.criterion(output, targets, num_boxes=num_boxes)
            # The gradient is the mean over processes; that of the whole step is their sum.
            precision.backward(losses.total * (counts * ranks.size))
        share = sum(len(one.labels) for one in part.targets) / max(num_boxes, 1)
        values = torch.stack([losses.total.detach(), losses.class_error * share, *losses.terms.values()])
        figures = figures + values * counts
    # One copy from the device for all figures of the step.
    assert isinstance(figures, Tensor)
    loss, class_error, *sums = ranks.total(*figures.tolist())
    terms = dict(zip(losses.terms, sums, strict=True))
    if not math.isfinite(loss):
        raise NotFiniteError("loss", terms)
    precision.unscale(optimizer)
    grad_norm = clip_gradients(learner.model, learner.clip_norm)
    if not math.isfinite(grad_norm) and not precision.may_overflow:
        raise NotFiniteError("gradient", terms)
    precision.step(optimizer)
    optimizer.zero_grad(set_to_none=True)  # while the next step remembers activations they are of no use
    if learner.ema is not None:
        learner.ema.update()
    return Step(loss, terms, class_error, grad_norm)


def _on(device: torch.device, part: Batch) -> tuple[Tensor, Tensor, list[Target]]:
    images = part.images.to(device, non_blocking=True)
    padding_mask = part.padding_mask.to(device, non_blocking=True)
    return images, padding_mask, [Target(one.labels.to(device), one.boxes.to(device)) for one in part.targets]


def _exchange_after(network: nn.Module, *, last: bool) -> AbstractContextManager[object]:
    """Processes exchange gradients once a step, with those of its last part."""
    return nullcontext() if last or not isinstance(network, DistributedDataParallel) else network.no_sync()


def take_steps(run: RunState, log: MetricsLog, reporter: Reporter, held_back: Sequence[int] = ()) -> Pace:
    """Take the steps that are left of this epoch.

    KeyboardInterrupt leaves it between two steps, and `run` fit to be saved. Several processes all stop before the
    same step, for what `held_back` has of any of them.

    Raises:
        TrainingError: the loss is not finite, or memory does not suffice.
        DataError: an image cannot be read.
    """
    config, progress, loader, learner = run.config, run.progress, run.loader, run.learner
    to_training_mode(run.model, config.run.freeze)
    loader.set_epoch(progress.epoch, start=progress.batches_in_epoch)
    pace, saved = Pace(), time.monotonic()
    for batch in loader if progress.batches_in_epoch < run.steps_per_epoch else ():
        # Between two steps a run may be saved or interrupted, within one it may not.
        save_every = 60 * config.checkpoints.save_every
        if _agree_to_save(run.ranks, held_back, due=0 < save_every <= time.monotonic() - saved):
            with uninterrupted():
                run.save_last()
            saved = time.monotonic()
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
    """Whether to save now; raises for a signal that has reached any of the processes. All ask at the same steps."""
    interrupted, terminated, due_somewhere = ranks.total(signal.SIGINT in held_back, signal.SIGTERM in held_back, due)
    answer(interrupted > 0, terminated > 0)
    return due_somewhere > 0


def _step_or_skip(run: RunState, batch: Batch, reporter: Reporter) -> Step | None:
    """One step; None if it was left out because it was not finite and the settings say so."""
    progress = run.progress
    if run.config.stopping.on_non_finite == "stop":
        with explained_step(run, batch):
            return gradient_step(run.learner, batch)
    # Batch norm has its statistics from the forward pass, before anything can be seen to be wrong.
    buffers = [(buffer, buffer.clone()) for buffer in run.model.buffers()]
    try:
        with explained_step(run, batch):
            step = gradient_step(run.learner, batch)
    except (NotFiniteError, NotFinitePredictionsError) as error:
        if run.ranks.together and isinstance(error, NotFinitePredictionsError):
            raise  # the other processes have seen nothing, and would wait for this one for ever
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
    # Of several processes one without images takes part all the same: only together they know that there were none.
    (num_images,) = run.ranks.total(pace.num_images)
    if num_images == 0 and run.progress.step_in_epoch == pace.num_steps:
        reasons = [why for part in run.ranks.gathered(run.skipped) for why in part.values()]
        first = f"; the first: {reasons[0]}" if reasons else ""
        raise DataError(f"none of the {len(run.data.train)} training images could be read{first}")


def evaluate_if_due(run: RunState, reporter: Reporter) -> EvaluationReport | None:
    """Evaluate the weights that are kept after every `eval_every` epochs, and after the last.

    Raises:
        TrainingError: memory does not suffice.
        DataError: an image cannot be read.
    """
    config, number = run.config, run.progress.epoch + 1
    if number % run.plan.eval_every and number != run.plan.epochs:
        return None
    # Weights first: an evaluation that fails loses nothing but itself.
    with uninterrupted():
        run.save_last()
    batch_size = min(_MOST_AT_ONCE, -(-run.plan.batch_size // config.compute.accumulate))
    with explained_evaluation(run, batch_size):
        return evaluate(
            run.judged(),
            run.data.val,
            batch_size=batch_size,
            num_workers=config.data.num_workers,
            skip_bad_images=config.data.skip_bad_images,
            reporter=reporter,
            ranks=run.ranks,
        )


def complete_epoch(
    run: RunState, log: MetricsLog, reporter: Reporter, pace: Pace, report: EvaluationReport | None
) -> None:
    """Count an epoch, keep the weights if they are the best, and save where the run is."""
    progress = run.progress
    with uninterrupted():
        progress.epoch += 1
        is_best = report is not None and _keep_if_best(run, report)
        line = epoch_line(run, pace, report, is_best)
        # The line before the checkpoint: what says that an epoch is complete comes last.
        log.epoch(epoch_record(run, pace, report))
        progress.begin_epoch()
        run.save_last()
    reporter.say(line)
    if progress.stopped_early:
        reporter.say(early_stop_line(run))


def _keep_if_best(run: RunState, report: EvaluationReport) -> bool:
    """Save the weights for use if no evaluation before was better; whether that is so. Counts for `patience`, too."""
    progress, config = run.progress, run.config
    progress.evaluation_seconds = report.seconds
    value, before = report.metrics.value(config.checkpoints.best_by), progress.best_value
    # Of equals the later: where the metric says nothing, as without objects to judge by, more steps are worth more.
    is_best = before is None or value >= before
    gains = before is None or value > before or value < 0
    progress.evaluations_without_gain = 0 if gains else progress.evaluations_without_gain + 1
    if is_best:
        progress.best_epoch, progress.best, progress.best_value = progress.epoch, report.metrics.twelve(), value
        run.save_best(report.metrics)
    out_of_patience = 0 < config.stopping.patience <= progress.evaluations_without_gain
    progress.stopped_early = out_of_patience and progress.epoch < run.plan.epochs
    return is_best
