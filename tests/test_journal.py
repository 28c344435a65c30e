import importlib.util
import json

import pytest

from deformable_detr.errors import ConfigError
from deformable_detr.journal import Journal, check_tensorboard
from deformable_detr.run_folder import RunFolder

STEP = {"epoch": 1, "step": 3, "loss": 2.5, "terms": {"decoder.0/class": 0.5}}


def test_each_record_is_one_line(tmp_path):
    with Journal(RunFolder(tmp_path), tensorboard=False) as journal:
        journal.step(STEP)
        journal.epoch({"epoch": 1, "step": 3, "train": {"loss": 2.0}})
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first.pop("time") > 1e9
    assert first == {"kind": "step", **STEP}
    assert (second["kind"], second["train"]) == ("epoch", {"loss": 2.0})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Journal(RunFolder(tmp_path), tensorboard=True) as journal:
        journal.step(STEP)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"step/loss", "step/terms/decoder.0/class"}
    (event,) = events.Scalars("step/loss")
    assert (event.step, event.value) == (3, 2.5)


def test_a_missing_tensorboard_shows_before_any_work(monkeypatch):
    check_tensorboard(False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install deformable-detr\[tensorboard\]"):
        check_tensorboard(True)
    check_tensorboard(False)
