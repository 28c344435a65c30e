import json
import math
from dataclasses import replace

import pytest
import torch

from deformable_detr import loop
from deformable_detr.errors import DataError, TrainingError
from deformable_detr.journal import Journal
from deformable_detr.loop import run_epoch
from deformable_detr.optimizer import OptimizerConfig
from deformable_detr.recipes import fit_to_data
from deformable_detr.run_folder import create_run_folder
from deformable_detr.session import start_session
from deformable_detr.splits import open_training_data


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
    config = fit_to_data(tiny_config, num_images=8, num_classes=3)
    return start_session(config, create_run_folder(tmp_path / "run"), data, "scenes", device="cpu", weights=True)


def run(session, reporter=None):
    with Journal(session.folder, tensorboard=False) as journal:
        run_epoch(session, journal, reporter or Notes())
    return [json.loads(line) for line in session.folder.metrics.read_text().splitlines()]


def test_an_epoch_is_taken_evaluated_and_written(session):
    notes = Notes()
    first, second, epoch = run(session, notes)
    assert (session.position.epoch, session.position.step, session.position.step_in_epoch) == (1, 2, 0)
    assert session.position.best_epoch == 1
    assert {"loss", "terms", "class_error", "grad_norm", "lr", "images_per_second", "memory_bytes"} <= first.keys()
    assert {name.split("/")[0] for name in first["terms"]} == {"decoder.0", "decoder.1", "proposals"}
    weights = {"class": 2, "l1": 5, "giou": 2}
    total = sum(weights[name.split("/")[1]] * term for name, term in second["terms"].items())
    assert second["loss"] == pytest.approx(total, rel=1e-5)
    assert epoch["train"]["loss"] == pytest.approx((first["loss"] + second["loss"]) / 2)
    assert epoch["val"] == session.position.best
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
    session = session._replace(config=replace(session.config, eval_every=5))
    assert "val" not in run(session)[-1]
    assert not session.folder.best.exists()
    assert "val" in run(session)[-1]


def test_weights_change_and_the_model_learns_in_training_mode(session):
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    run(session)
    changed = {name for name, tensor in session.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name, _ in session.model.named_parameters()} - changed <= {"query_source.class_head.weight"}


def test_worse_weights_do_not_replace_the_best(session):
    session.position.best, session.position.best_epoch, session.position.best_value = {"ap": 2.0}, 7, 2.0
    notes = Notes()
    run(session, notes)
    assert (session.position.best, session.position.best_epoch) == ({"ap": 2.0}, 7)
    assert not session.folder.best.exists()
    assert "best so far" not in notes.lines[0]


def test_a_loss_that_is_not_finite_stops_and_names_the_terms(session):
    huge = OptimizerConfig(lr=1e20, lr_batch_size=None, clip_norm=0.0)
    for group in session.optimizer.param_groups:
        group["peak_lr"] = 1e20
    session = session._replace(config=replace(session.config, optimizer=huge))
    run_twice = [session, session]
    with pytest.raises(TrainingError, match=r"^step [23], epoch [12]: .*not finite"):
        list(map(run, run_twice))


def test_the_message_names_step_epoch_terms_and_images(session):
    batch = next(iter(session.loader))
    paths = ", ".join(str(session.data.train.samples[index].path) for index in batch.sample_indices)
    error = loop._not_finite(session, batch, "loss", {"a/class": 1.0, "a/giou": math.nan})
    assert str(error).startswith(
        f"step 1, epoch 1: the loss is not finite; loss terms: a/giou nan; images: {paths}; a smaller --lr"
    )
    error = loop._not_finite(session, batch, "gradient", {"a/class": 1.0})
    assert "step 1, epoch 1: the gradient is not finite; loss terms: a/class 1;" in str(error)


def test_too_little_memory_is_said_with_a_way_out(session, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(session.model), "forward", full)
    with pytest.raises(TrainingError, match=r"not enough memory on cpu for 3 images of \d+ x \d+; .*--batch-size"):
        run(session)


def test_images_that_cannot_be_read_are_counted_or_stop_it(session, tmp_path, scenes, tiny_config):
    bad = tmp_path / "cut.jpg"
    bad.write_bytes(session.data.train.samples[0].path.read_bytes()[:800])
    samples = [replace(sample, path=bad) for sample in session.data.train.samples]
    for skip, message in ((False, "cut.jpg"), (True, "none of the 8 training images could be read")):
        data = session.data._replace(train=replace(session.data.train, samples=samples))
        config = replace(session.config, skip_bad_images=skip)
        folder = create_run_folder(tmp_path / f"bad-{skip}")
        broken = start_session(config, folder, data, "scenes", device="cpu", weights=True)
        with pytest.raises(DataError, match=message):
            run(broken)
    assert list(broken.skipped) == [str(bad)]


def test_steps_taken_before_an_interruption_are_not_taken_again(session, monkeypatch):
    taken = []
    take = loop._take_step

    def stop_after_one(session, batch):
        if taken:
            raise KeyboardInterrupt
        taken.append(batch.sample_indices)
        return take(session, batch)

    monkeypatch.setattr(loop, "_take_step", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        run(session)
    assert session.position.step_in_epoch == 1

    def note(session, batch):
        taken.append(batch.sample_indices)
        return take(session, batch)

    monkeypatch.setattr(loop, "_take_step", note)
    run(session)
    assert len(taken) == 2
    assert not set(taken[0]) & set(taken[1])
