import pytest

from deformable_detr.core.errors import ConfigError
from deformable_detr.runs.bounds import LARGEST_SEED
from deformable_detr.runs.config import TrainConfig


@pytest.mark.parametrize(
    ("setting", "value", "bound"),
    [
        ("run.seed", -1, "at least 0"),
        ("run.seed", 2**70, "at most 9223372036854775807"),
        ("schedule.epochs", 0, "at least 1"),
        ("schedule.epochs", 10**12, "at most 1000000"),
        ("run.batch_size", 10**9, "at most 1000000"),
        ("data.num_workers", -1, "at least 0"),
        ("data.num_workers", 10**7, "at most 1000000"),
        ("checkpoints.keep_last", 10**30, "at most 1000000"),
    ],
)
def test_numbers_that_no_run_could_mean(setting: str, value: int, bound: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting} is {value}; it must be {bound}"):
        TrainConfig().with_settings({setting: value})


def test_what_is_allowed() -> None:
    config = TrainConfig().with_settings({"run.seed": LARGEST_SEED, "schedule.epochs": "auto", "run.batch_size": 1})
    assert (config.run.seed, config.schedule.epochs, config.run.batch_size) == (2**63 - 1, "auto", 1)
