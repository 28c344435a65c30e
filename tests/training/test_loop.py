import json
import math
from dataclasses import replace

import pytest
import torch

from deformable_detr.core.distributed import Ranks
from deformable_detr.core.errors import DataError, TrainingError
from deformable_detr.core.types import Batch, Target
from deformable_detr.data.batch import stand_in
from deformable_detr.data.splits import open_training_data
from deformable_detr.evaluation.coco_metrics import Metrics
from deformable_detr.evaluation.evaluate import EvaluationReport, evaluate
from deformable_detr.models import MODELS
from deformable_detr.runs.config import OptimizerConfig, plan_of
from deformable_detr.runs.folder import create_run_folder
from deformable_detr.training import loop
from deformable_detr.training.autoconfig import fit_to_data
from deformable_detr.training.loop import (
    NotFiniteError,
    complete_epoch,
    evaluate_if_due,
    gradient_step,
    take_steps,
)
from deformable_detr.training.messages import explained_step
from deformable_detr.training.metrics_log import MetricsLog
from deformable_detr.training.setup import make_learner, set_up
from deformable_detr.weights.checkpoint import load
from tests.family import FAMILY


class Notes:
    """A reporter that remembers."""

    def __init__(self):
        self.lines, self.updates = [], []

    def say(self, line):
        self.lines.append(line)

    def update(self, stage, done, total, details=""):
        self.updates.append((stage, done, total, details))


@pytest.fixture
def session(tiny_config, scenes, tmp_path):
    data = open_training_data(scenes, val_share=0.1, seed=0, skip_bad_images=False)
    config, _ = fit_to_data(tiny_config, data.train)
    return set_up(config, create_run_folder(tmp_path / "run"), data, "scenes", device=torch.device("cpu"), weights=True)


def run(session, reporter=None):
    notes = reporter or Notes()
    with MetricsLog(session.folder) as log:
        pace = take_steps(session, log, notes)
        complete_epoch(session, log, notes, pace, evaluate_if_due(session, notes))
    return [json.loads(line) for line in session.folder.metrics.read_text().splitlines()]


def test_an_epoch_is_taken_evaluated_and_written(session):
    notes = Notes()
    first, second, epoch = run(session, notes)
    assert (session.progress.epoch, session.progress.step, session.progress.step_in_epoch) == (1, 2, 0)
    assert session.progress.best_epoch == 1
    assert {"loss", "terms", "class_error", "grad_norm", "lr", "images_per_second", "memory_bytes"} <= first.keys()
    assert {name.split("/")[0] for name in first["terms"]} == {"decoder.0", "decoder.1", "proposals"}
    weights = {"class": 2, "l1": 5, "giou": 2}
    total = sum(weights[name.split("/")[1]] * term for name, term in second["terms"].items())
    assert second["loss"] == pytest.approx(total, rel=1e-5)
    assert epoch["train"]["loss"] == pytest.approx((first["loss"] + second["loss"]) / 2)
    assert epoch["val"] == session.progress.best
    assert set(epoch["val_per_class"]) == {"disc", "square", "star"}
    assert session.folder.best.is_file()
    assert session.folder.last.is_file()
    stages = [(stage, done, total) for stage, done, total, _ in notes.updates]
    assert stages[:2] == [("epoch 1/2", 1, 2), ("epoch 1/2", 2, 2)]
    assert stages[-1] == ("evaluating", 3, 3)
    assert all(word in notes.updates[0][3] for word in ("loss", "giou", "lr", "images/s", "GB", "left, run"))
    assert notes.lines[0].startswith("epoch 1/2  loss ")
    assert "AP50" in notes.lines[0]


def test_evaluation_waits_for_its_turn_but_the_last_epoch_always_has_one(session):
    session = session._replace(plan=session.plan._replace(eval_every=5))
    assert "val" not in run(session)[-1]
    assert not session.folder.best.exists()
    assert "val" in run(session)[-1]


def test_weights_change_and_the_model_learns_in_training_mode(session):
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    run(session)
    changed = {name for name, tensor in session.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name, _ in session.model.named_parameters()} - changed <= {"query_source.class_head.weight"}


def test_worse_weights_do_not_replace_the_best(session):
    session.progress.best, session.progress.best_epoch, session.progress.best_value = {"ap": 2.0}, 7, 2.0
    notes = Notes()
    run(session, notes)
    assert (session.progress.best, session.progress.best_epoch) == ({"ap": 2.0}, 7)
    assert not session.folder.best.exists()
    assert "best so far" not in notes.lines[0]


def test_a_loss_that_is_not_finite_stops_and_names_the_terms(session):
    huge = OptimizerConfig(lr=1e20, clip_norm=0.0)
    for group in session.learner.optimizer.param_groups:
        group["peak_lr"] = 1e20
    session = session._replace(config=replace(session.config, optimizer=huge))
    run_twice = [session, session]
    with pytest.raises(TrainingError, match=r"^step [23], epoch [12]: .*not finite"):
        list(map(run, run_twice))


def test_the_message_names_step_epoch_terms_and_images(session):
    batch = next(iter(session.loader))
    paths = ", ".join(str(session.data.train.samples[index].path) for index in batch.sample_indices)
    with pytest.raises(NotFiniteError) as raised, explained_step(session, batch):
        raise NotFiniteError("loss", {"a/class": 1.0, "a/giou": math.nan})
    assert str(raised.value) == (
        "step 1, epoch 1: the loss is not finite; a smaller --lr usually cures it; loss terms: a/giou nan; "
        f"images: {paths}"
    )
    with pytest.raises(NotFiniteError) as raised, explained_step(session, batch):
        raise NotFiniteError("gradient", {"a/class": 1.0})
    assert "the gradient is not finite; a smaller --lr usually cures it; loss terms: a/class 1;" in str(raised.value)


def test_too_little_memory_is_said_with_a_way_out(session, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(session.model), "forward", full)
    with pytest.raises(TrainingError, match=r"not enough memory on cpu for 3 images of \d+ x \d+; .*--batch-size"):
        run(session)


def test_an_evaluation_holds_no_more_images_than_a_part_of_a_step(session, monkeypatch):
    sizes = []

    def note(*arguments, batch_size, **others):
        sizes.append(batch_size)
        return evaluate(*arguments, batch_size=batch_size, **others)

    monkeypatch.setattr(loop, "evaluate", note)
    for images, parts in ((3, 1), (8, 1), (8, 4), (7, 3), (8, 8)):
        config = session.config.with_settings(batch_size=images, accumulate=parts)
        evaluate_if_due(session._replace(config=config, plan=plan_of(config)), Notes())
    assert sizes == [3, 4, 2, 3, 1]

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "evaluate", full)
    with pytest.raises(
        TrainingError, match=r"to evaluate 3 images of 48 pixels at once; with --set accumulate=3 it is one at a time"
    ):
        run(session)


def test_batch_norm_that_sees_a_single_number_is_said(session, monkeypatch):
    def single(*_):
        raise ValueError("Expected more than 1 value per channel when training, got input size [1, 8, 1, 1]")

    monkeypatch.setattr(type(session.model), "forward", single)
    with pytest.raises(TrainingError, match=r"batch norm has nothing to learn from: of 3 images .*larger --image-size"):
        run(session)


def test_images_that_cannot_be_read_are_counted_or_stop_it(session, tmp_path, scenes, tiny_config):
    bad = tmp_path / "cut.jpg"
    bad.write_bytes(session.data.train.samples[0].path.read_bytes()[:800])
    samples = [replace(sample, path=bad) for sample in session.data.train.samples]
    for skip, message in ((False, "cut.jpg"), (True, "none of the 8 training images could be read")):
        data = session.data._replace(train=replace(session.data.train, samples=samples))
        config = session.config.with_settings(skip_bad_images=skip)
        folder = create_run_folder(tmp_path / f"bad-{skip}")
        broken = set_up(config, folder, data, "scenes", device=torch.device("cpu"), weights=True)
        with pytest.raises(DataError, match=message):
            run(broken)
    assert list(broken.skipped) == [str(bad)]


def test_steps_taken_before_an_interruption_are_not_taken_again(session, monkeypatch):
    taken = []
    take = loop.gradient_step

    def stop_after_one(learner, batch):
        if taken:
            raise KeyboardInterrupt
        taken.append(batch.sample_indices)
        return take(learner, batch)

    monkeypatch.setattr(loop, "gradient_step", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        run(session)
    assert session.progress.step_in_epoch == 1

    def note(learner, batch):
        taken.append(batch.sample_indices)
        return take(learner, batch)

    monkeypatch.setattr(loop, "gradient_step", note)
    run(session)
    assert len(taken) == 2
    assert not set(taken[0]) & set(taken[1])


def start(config, scenes, folder):
    data = open_training_data(scenes, val_share=0.1, seed=0, skip_bad_images=False)
    config, _ = fit_to_data(config, data.train)
    return set_up(config, create_run_folder(folder), data, "scenes", device=torch.device("cpu"), weights=True)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_step_in_parts_is_the_same_step(tiny_config, scenes, tmp_path, parts):
    # A first stage counts the positions in the padding as background, and parts have less padding.
    model = replace(tiny_config.model, variant="refine", dropout=0.0, features="per_image")
    config = tiny_config.with_settings(model=model, batch_size=8)
    sessions = [start(config.with_settings(accumulate=count), scenes, tmp_path / str(count)) for count in (1, parts)]
    for module in (module for one in sessions for module in one.model.modules()):
        if "Norm" in type(module).__name__:
            module.eval()  # statistics of a batch would be those of a part
    for one in sessions:
        generator = torch.Generator().manual_seed(2)
        for name, parameter in one.model.named_parameters():
            if "sampling_offsets.bias" in name:
                # Untrained points lie between pixels to the bit, where rounding decides on the gradient.
                parameter.data.add_(0.1 * torch.rand(parameter.shape, generator=generator))
    batch = next(iter(sessions[0].loader))
    steps = [gradient_step(session.learner, batch) for session in sessions]
    assert steps[0].loss == pytest.approx(steps[1].loss, rel=1e-5)
    assert steps[0].terms == pytest.approx(steps[1].terms, rel=1e-5, abs=1e-6)
    assert steps[0].grad_norm == pytest.approx(steps[1].grad_norm, rel=1e-5)
    for (name, one), other in zip(sessions[0].model.named_parameters(), sessions[1].model.parameters(), strict=True):
        if one.grad is not None:
            scale = max(1e-3, float(one.grad.abs().max()))
            torch.testing.assert_close(
                other.grad / scale, one.grad / scale, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_what_is_judged_and_kept_is_the_average(session):
    run(session)
    best = load(session.folder.best).weights
    averaged, trained = session.learner.ema.model.state_dict(), session.model.state_dict()
    assert all(torch.equal(best[name], averaged[name]) for name in best)
    assert not all(torch.equal(best[name], trained[name]) for name in best)
    saved = load(session.folder.last, training=True)
    assert all(torch.equal(saved.training.tensors[f"trained/{name}"], one) for name, one in trained.items())


class Judge:
    """An evaluation that gives these values of AP, one after the other."""

    def __init__(self, values):
        self.values = list(values)

    def __call__(self, detector, dataset, **_):
        twelve = dict.fromkeys(("ap50", "ap75", "ap_small", "ap_medium", "ap_large"), 0.5)
        twelve |= dict.fromkeys(("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"), 0.5)
        metrics = Metrics(ap=self.values.pop(0), **twelve, per_class={})
        return EvaluationReport(metrics=metrics, detections=[], dataset=dataset, skipped={}, num_skipped=0, seconds=0.1)


@pytest.mark.parametrize(
    ("values", "best_by", "completed"),
    [
        ([0.1, 0.3, 0.2, 0.2, 0.9], "ap", 4),
        ([0.1, 0.1, 0.1], "ap", 3),  # of equals the later is kept, but it is no improvement
        ([0.1, 0.2, 0.3, 0.4, 0.5], "ap50", 3),
        ([-1.0] * 5, "ap", 5),  # nothing to judge by
    ],
)
def test_patience_ends_a_run_that_no_longer_gets_better(
    tiny_config, scenes, tmp_path, monkeypatch, values, best_by, completed
):
    session = start(tiny_config.with_settings(epochs=5, patience=2, best_by=best_by), scenes, tmp_path / "run")
    monkeypatch.setattr(loop, "evaluate", Judge(values))
    notes = Notes()
    while session.progress.epoch < 5 and not session.progress.stopped_early:
        run(session, notes)
    assert session.progress.epoch == completed
    assert session.progress.stopped_early == (completed < 5)
    assert any(
        line.startswith(f"stopped early: no better {best_by} in the last 2 evaluations") for line in notes.lines
    ) == (completed < 5)


def test_parts_of_a_step_are_the_step_for_a_mean_over_all_predictions(tiny_config, tmp_path):
    """Two parts, of which one has no object: the divisor is the sum of the weights in both."""
    model = replace(FAMILY["detr"], num_classes=3, frozen_batch_norm=False)
    torch.manual_seed(0)
    network = MODELS.build(model).eval()
    learner = make_learner(replace(tiny_config, model=model).with_settings(ema_decay=0.0, lr=1e-9), network, 2)
    batch = Batch(
        images=torch.randn(2, 3, 48, 72),
        padding_mask=torch.zeros(2, 48, 72, dtype=torch.bool),
        targets=[
            Target(torch.tensor([2, 0]), torch.rand(2, 4) * 0.4 + 0.2),
            Target(torch.zeros(0).long(), torch.zeros(0, 4)),
        ],
        sample_indices=[0, 1],
        original_sizes_wh=[(72, 48)] * 2,
    )
    whole, parts = (gradient_step(learner._replace(accumulate=number), batch) for number in (1, 2))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert parts.terms == pytest.approx(whole.terms, rel=1e-5)
    assert parts.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
    losses = learner.criterion(network(batch.images, batch.padding_mask), batch.targets)
    assert whole.loss == pytest.approx(losses.total.item(), rel=1e-5)


class AsTwo(Ranks):
    """One process that believes another takes the same step with the same numbers."""

    def total(self, *numbers):
        self.__dict__.setdefault("asked", []).append(numbers)
        return [2.0 * number for number in numbers]


def test_a_stand_in_for_what_could_not_be_read_has_no_weight_in_the_mean(tiny_config):
    """The target of an image that is not there would make the divisor of the class loss too large."""
    model = replace(FAMILY["detr"], num_classes=3, frozen_batch_norm=False)
    network = MODELS.build(model).eval()
    learner = make_learner(replace(tiny_config, model=model), network, 2)._replace(ranks=AsTwo())
    targets = [Target(torch.tensor([2, 0]), torch.rand(2, 4) * 0.4 + 0.2)]
    batch = Batch(torch.randn(1, 3, 48, 72), torch.zeros(1, 48, 72, dtype=torch.bool), targets, [0], [(72, 48)])
    for given, expected in ((stand_in(), (0, 0.0)), (batch, (2, 2 + 0.1 * (model.num_queries - 2)))):
        learner.ranks.__dict__["asked"] = []
        gradient_step(learner, given)
        assert learner.ranks.__dict__["asked"][0] == pytest.approx(expected)
