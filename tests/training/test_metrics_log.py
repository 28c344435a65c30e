import csv
import json
import time
from contextlib import suppress

import pytest

from deformable_detr.runs.folder import RunFolder
from deformable_detr.training import loggers as services
from deformable_detr.training.metrics_log import MetricsLog, flat_numbers

STEP = {"epoch": 1, "step": 3, "loss": 2.5, "terms": {"decoder.0/class": 0.5}, "lr": 1e-3}


def epoch(number, **more):
    return {"epoch": number, "step": 3 * number, "train": {"loss": 2.0 / number}, **more}


def judged(number):
    return epoch(number, val={"ap": 0.25, "ap_small": -1.0}, val_per_class={"a, b": {"ap": -1.0}}, val_seconds=1.5)


def rows(folder):
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_record_is_one_line(tmp_path):
    with MetricsLog(RunFolder(tmp_path)) as journal:
        journal.step(STEP)
        journal.epoch({"epoch": 1, "step": 3, "train": {"loss": 2.0}})
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first.pop("time") > 1e9
    assert first == {"kind": "step", **STEP}
    assert (second["kind"], second["train"]) == ("epoch", {"loss": 2.0})


def test_epochs_are_a_table_with_the_same_columns_in_every_row(tmp_path):
    with MetricsLog(RunFolder(tmp_path)) as journal:
        journal.step(STEP)
        assert not (tmp_path / "metrics.csv").exists()
        journal.epoch(epoch(1))
        journal.step({**STEP, "epoch": 2, "step": 6, "lr": 5e-4})
        journal.epoch(judged(2))
        journal.epoch(epoch(3))
    first, second, third = rows(tmp_path)
    assert first.keys() == second.keys() == third.keys()
    assert (first["epoch"], first["step"], first["lr"], first["train/loss"]) == ("1", "3", "0.001", "2.0")
    assert (second["lr"], second["val/ap"], second["val_seconds"]) == ("0.0005", "0.25", "1.5")
    assert (first["val/ap"], third["val/ap"]) == ("", "")
    # COCO's -1 would be a number to whoever draws the table.
    assert (second["val/ap_small"], second["val_per_class/a, b/ap"]) == ("", "")


def test_the_table_of_a_resumed_run_has_each_epoch_once(tmp_path):
    folder = RunFolder(tmp_path)
    with MetricsLog(folder) as journal:
        for number in (1, 2, 3):
            journal.epoch(judged(number))
    whole = (tmp_path / "metrics.csv").read_text()
    with folder.metrics.open("a") as file:
        file.write('{"kind": "epoch", "epo')  # a crash
    folder.forget_after(6, epoch=2)
    (tmp_path / "metrics.csv").unlink()
    with MetricsLog(folder) as journal:
        assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2"]
        journal.epoch(judged(3))
    assert (tmp_path / "metrics.csv").read_text() == whole


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(RunFolder(tmp_path), services=("tensorboard",)) as journal:
        journal.step(STEP)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"step/loss", "step/lr", "step/terms/decoder.0/class"}
    (event,) = events.Scalars("step/loss")
    assert (event.step, event.value) == (3, 2.5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tensorboard_shows_steps_that_are_taken_again_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in ((1, 2, 3, 4), (3, 4, 5)):
        with MetricsLog(RunFolder(tmp_path), services=("tensorboard",)) as journal:
            for step in steps:
                journal.step(STEP | {"step": step})
        time.sleep(1.1)  # files are named, and so read, by the second
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("step/loss")] == [1, 2, 3, 4, 5]


def test_every_service_gets_every_record_and_hears_of_the_end(tmp_path, monkeypatch):
    heard = []

    class Service:
        def __init__(self, name):
            self.name = name

        def log(self, numbers, step):
            heard.append((self.name, step, numbers))

        def close(self, *, failed):
            heard.append((self.name, failed))

    monkeypatch.setattr("deformable_detr.training.metrics_log.open_service", lambda name, *_: Service(name))
    with suppress(ZeroDivisionError), MetricsLog(RunFolder(tmp_path), services=("wandb", "mlflow")) as journal:
        journal.epoch(epoch(2))
        _ = 1 / 0
    numbers = {"epoch/train/loss": 1.0}
    assert heard == [("wandb", 6, numbers), ("mlflow", 6, numbers), ("wandb", True), ("mlflow", True)]


def test_numbers_by_their_path():
    assert flat_numbers({"epoch": 1, "step": 2, "val": {"ap": 1}, "x": 3}, "epoch") == {"epoch/val/ap": 1, "epoch/x": 3}
    assert services.chosen_services([]) == ()


def test_a_class_whose_name_is_no_unicode_costs_no_run(tmp_path):
    """A run never writes one, but a file may have been changed by a strange hand before the run is resumed."""
    folder = RunFolder(tmp_path)
    folder.log({"kind": "epoch", **epoch(1, val={"ap": 0.5}, val_per_class={"\ud800": {"ap": 0.25}})})
    with MetricsLog(folder):
        pass
    assert rows(tmp_path)[0]["val_per_class/\\ud800/ap"] == "0.25"
