from dataclasses import asdict
from pathlib import Path

import pytest

from deformable_detr.core.errors import CheckpointError
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.progress import RunProgress, saved_run_progress

PATH = Path("last.safetensors")


def test_counters_come_back_from_a_checkpoint():
    progress = RunProgress(epoch=3, step=71, step_in_epoch=11, best={"ap": 0.25}, best_value=0.25)
    assert saved_run_progress({"progress": asdict(progress)}, PATH, TrainConfig()) == progress


def test_averages_are_over_the_steps_of_the_epoch():
    progress = RunProgress()
    progress.add({"loss": 3.0, "a/giou": 0.5})
    progress.add({"loss": 1.0, "a/giou": 1.5})
    assert progress.averages() == {"loss": 2.0, "a/giou": 1.0}
    progress.begin_epoch()
    assert (progress.averages(), progress.num_summed) == ({}, 0)


def test_checkpoints_of_earlier_versions_have_a_position():
    """It counted patience in epochs, and knew neither batches without an image nor other metrics than AP."""
    old = {"epoch": 7, "step": 90, "step_in_epoch": 4, "best_epoch": 2, "best": {"ap": 0.5, "ap50": 0.75}}
    config = TrainConfig().with_settings(eval_every=2, best_by="ap50")
    progress = saved_run_progress({"position": old}, PATH, config)
    assert (progress.epoch, progress.step, progress.batches_in_epoch) == (7, 90, 4)
    assert (progress.best_value, progress.evaluations_without_gain) == (0.75, 2)
    progress = saved_run_progress({"position": {**old, "improved_epoch": 6}}, PATH, config)
    assert progress.evaluations_without_gain == 0


@pytest.mark.parametrize(
    "saved",
    [
        *({}, {"progress": None}, {"progress": {"place": 3}}, {"progress": {"epoch": "3"}}, {"progress": {"step": -1}}),
        *({"progress": {"step": True}}, {"progress": {"step": 10**30}}, {"progress": {"best": 3}}),
        *({"progress": {"sums": {"loss": "low"}}}, {"progress": {"best_epoch": []}}, {"position": {"best": []}}),
        *({"position": {"improved_epoch": "x"}}, {"progress": {"stopped_early": 1}}),
    ],
)
def test_a_checkpoint_without_counters_is_refused(saved):
    with pytest.raises(CheckpointError, match=r"last\.safetensors does not say how far the run was"):
        saved_run_progress(saved, PATH, TrainConfig())
