from dataclasses import replace

import pytest
import torch

from deformable_detr.core.errors import CheckpointError, ConfigError, TrainingError
from deformable_detr.data.splits import open_training_data
from deformable_detr.models.interface import GivenModelConfig
from deformable_detr.runs.folder import create_run_folder
from deformable_detr.runs.progress import RunProgress
from deformable_detr.training.autoconfig import fit_to_data
from deformable_detr.training.setup import check_same_classes, check_same_model, set_up, with_epochs
from deformable_detr.weights.checkpoint import load


@pytest.fixture
def start(tiny_config, scenes, tmp_path):
    """start(**changes to the config) -> a session in a folder of its own."""
    folders = iter(range(9))

    def make(**changes):
        data = open_training_data(scenes, val_share=0.1, seed=0, skip_bad_images=False)
        config, _ = fit_to_data(tiny_config.with_settings(changes), data.train)
        folder = create_run_folder(tmp_path / str(next(folders)))
        return set_up(config, folder, data, "scenes", device=torch.device("cpu"), weights=True)

    return make


def step(session, seed):
    """Some gradient, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in session.model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    session.learner.optimizer.step()
    session.progress.step += 1
    session.progress.step_in_epoch += 1


def test_the_seed_decides_the_weights(start):
    first, second, other = (start(seed=seed).model.pyramid.level_embed for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_restored_session_goes_on_as_if_it_had_never_stopped(start):
    one, other = start(), start(seed=7)
    step(one, 0)
    one.progress.best = {"ap": 0.5}
    one.save_last()
    torch.rand(3)  # a generator that has gone on
    other.restore(load(one.folder.last, training=True))
    assert other.progress == one.progress
    restored = torch.rand(3)
    one.restore(load(one.folder.last, training=True))
    assert torch.equal(torch.rand(3), restored)
    for session in (one, other):
        step(session, 1)
    for (name, first), second in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(first, second), name


def test_with_another_number_of_steps_the_epoch_begins_again(start):
    one, other = start(), start(batch_size=2)
    one.progress.epoch, one.progress.step, one.progress.step_in_epoch = 1, 3, 1
    one.save_last()
    other.restore(load(one.folder.last, training=True))
    assert (other.progress.epoch, other.progress.step_in_epoch, other.progress.step) == (1, 0, 4)


def test_checkpoints_say_where_they_come_from_but_no_path(start, tmp_path):
    session = start()
    elsewhere = replace(session.config.model, backbone_weights=str(tmp_path / "weights.pth"))
    session = session._replace(config=replace(session.config, model=elsewhere))
    session.save_last()
    saved = load(session.folder.last)
    assert {"recipe": "tiny", "data": "scenes", "epoch": "0"}.items() <= saved.provenance.items()
    assert saved.model.backbone_weights == "weights.pth"
    assert str(tmp_path).encode() not in session.folder.last.read_bytes()


def test_best_is_smaller_and_carries_its_metrics(start, scenes):
    from deformable_detr.evaluation.evaluate import evaluate

    session = start()
    step(session, 0)
    session.save_last()
    report = evaluate(session.detector, session.data.val)
    session.save_best(report.metrics)
    assert session.folder.best.stat().st_size < session.folder.last.stat().st_size
    assert load(session.folder.best).metrics == report.metrics.twelve()


def test_a_state_of_another_shape_is_refused(start):
    one, other = start(), start()
    step(one, 0)
    one.save_last()
    saved = load(one.folder.last, training=True)
    name = "exp_avg/pyramid.level_embed"
    saved.training.tensors[name] = saved.training.tensors[name][:1]
    with pytest.raises(CheckpointError, match=r"state of pyramid\.level_embed is missing or of another shape"):
        other.restore(saved)
    saved = load(one.folder.last, training=True)
    saved.training.progress["steps_per_epoch"] = "3"
    with pytest.raises(CheckpointError, match=r"last\.safetensors does not say how many steps an epoch had"):
        other.restore(saved)
    saved.training.progress["progress"]["place"] = 3
    with pytest.raises(CheckpointError, match="does not say how far the run was"):
        other.restore(saved)


def test_a_run_goes_on_with_its_own_classes_only(start):
    session = start()
    session.save_last()
    saved = load(session.folder.last)
    check_same_classes(saved, session.data.train, session.folder.last)
    other = replace(session.data.train, classes=("a", "b"), category_ids=(1, 2))
    with pytest.raises(CheckpointError, match=r"3 classes \(disc, square, star\), the data set has 2 \(a, b\)"):
        check_same_classes(saved, other, session.folder.last)


def test_a_checkpoint_and_a_config_of_different_networks_do_not_belong_together(start):
    session = start()
    session.save_last()
    saved, config, path = load(session.folder.last), session.config, session.folder.last
    check_same_model(saved, config, path)
    free = replace(config, model=replace(config.model, dropout=0.3, backbone_weights="elsewhere/x.pth"))
    check_same_model(saved, free, path)
    for name, value in (("ffn_dim", 16_384), ("encoder_layers", 48), ("backbone", "resnet50")):
        other = replace(config, model=replace(config.model, **{name: value}))
        with pytest.raises(
            CheckpointError, match=rf"has {name}=.*, and config.json has '?{value}'?: they do not belong"
        ):
            check_same_model(saved, other, path)
    given = replace(config, model=GivenModelConfig(class_name="a.B", num_classes=3))
    with pytest.raises(CheckpointError, match=r"is of a deformable_detr, and config.json of a given: they do not"):
        check_same_model(saved, given, path)


def test_a_finished_run_needs_more_epochs(tiny_config):
    assert with_epochs(tiny_config, 5, RunProgress(epoch=2)).schedule.epochs == 5
    assert with_epochs(tiny_config, None, RunProgress(epoch=1)).schedule.epochs == 2
    with pytest.raises(ConfigError, match=r"completed 2 of 2 epochs.*--epochs"):
        with_epochs(tiny_config, None, RunProgress(epoch=2))
    with pytest.raises(ConfigError, match=r"stopped early after epoch 1.*--epochs"):
        with_epochs(tiny_config, None, RunProgress(epoch=1, stopped_early=True))


def test_evaluations_left(start):
    session = start(epochs=5, eval_every=2)  # after 2, 4 and 5
    left = []
    for epoch in range(5):
        session.progress.epoch = epoch
        left.append(session.evaluations_left)
    assert left == [3, 3, 2, 2, 1]


def test_the_loader_knows_the_cache_and_the_epochs(start, tiny_config):
    session = start(image_cache_gb=0.001, epochs=20, augmentation=replace(tiny_config.augmentation, mixing_off=0.25))
    assert session.loader.source._cache_bytes_left == 1_000_000
    assert session.loader.source.mixing_epochs == 15


def test_runs_of_earlier_versions_go_on(start):
    """Their checkpoints have no average and fewer counters."""
    one, other = start(ema_decay=0.0), start()
    step(one, 0)
    one.save_last()
    saved = load(one.folder.last, training=True)
    kept = ("epoch", "step", "step_in_epoch", "evaluation_seconds", "best_epoch", "best")
    counters = saved.training.progress.pop("progress")
    saved.training.progress["position"] = {name: counters[name] for name in kept}
    (note,) = other.restore(saved)
    assert "no averaged weights: averaging begins here" in note
    assert (other.progress.batches_in_epoch, other.learner.ema.updates) == (1, 0)
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], tensor)
        assert torch.equal(other.learner.ema.model.state_dict()[name], tensor)


def test_without_an_average_the_weights_themselves_are_judged(start):
    session = start(ema_decay=0.0)
    assert session.learner.ema is None
    assert session.judged() is session.detector


def test_weights_that_are_lost_do_not_replace_others(start):
    session = start()
    session.save_last()
    before = session.folder.last.read_bytes()
    with torch.no_grad():
        session.model.pyramid.level_embed[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"weights are not finite, pyramid\.level_embed is the first"):
        session.save_last()
    assert session.folder.last.read_bytes() == before


def test_older_checkpoints_are_kept_in_order(start):
    session = start(keep_last=3)
    for number in range(5):
        session.progress.step = number
        session.save_last()
    steps = [load(path, training=True).training.progress["progress"]["step"] for path in session.folder.resumable()]
    assert steps == [4, 3, 2]
    assert not list(session.folder.path.glob("new-*"))
