import json
import os
import shutil
import sys
from dataclasses import replace

import pytest

import deformable_detr
from deformable_detr.core.errors import DataError, OutputError
from deformable_detr.data.open import open_dataset
from deformable_detr.report import write as writing
from deformable_detr.report import write_report
from deformable_detr.runs.folder import RunFolder
from deformable_detr.training.train import train
from deformable_detr.weights import checkpoint
from tests.report.test_page import Tree


class Lines:
    def __init__(self):
        self.lines, self.stages = [], set()

    def say(self, line):
        self.lines.append(line)

    def update(self, stage, done, total, details=""):
        self.stages.add(stage)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run without a report; made by the first test that needs it."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(finished, tiny_config, scenes, tmp_path):
    """A finished run of two epochs, to be changed at will."""
    if not finished.exists():
        train(tiny_config, data=scenes, output=finished, device="cpu", report=False)
    return shutil.copytree(finished, tmp_path / "run")


def titles(path):
    tree = Tree(path.read_text(encoding="utf-8"))
    return [attributes["id"] for tag, attributes in tree.tags if tag == "section"]


def text_of(path):
    return " ".join(" ".join(Tree(path.read_text(encoding="utf-8")).words).split())


def epochs_of(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [line for line in lines if json.loads(line)["kind"] == "epoch"]


def replace_in(training, progress):
    return checkpoint.TrainingState(progress=progress, tensors=training.tensors)


EVERYTHING = [
    "overview",
    "training",
    "accuracy",
    "thresholds",
    "confusion",
    "errors",
    "calibration",
    "mistakes",
    "looks",
    "data",
]


def test_a_run_on_one_page(run):
    notes = Lines()
    path = write_report(run, device="cpu", reporter=notes)
    assert path == run / "report.html"
    assert titles(path) == [*EVERYTHING, "configuration"]
    assert path.stat().st_size < 5_000_000
    assert notes.lines == []
    assert notes.stages == {"evaluating", "drawing mistakes"}
    text = text_of(path)
    assert "2 of 2" in text
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max(records, key=lambda record: record.get("val", {}).get("ap", -1))
    assert f"AP, % {100 * best['val']['ap']:.1f} AP50, % {100 * best['val']['ap50']:.1f}" in text
    assert "model.num_queries 11" in text


def test_another_place_and_the_public_name(run, tmp_path):
    path = deformable_detr.write_report(run, output=tmp_path / "page.html", device="cpu")
    assert (path, path.is_file()) == (tmp_path / "page.html", True)
    assert not (run / "report.html").exists()
    with pytest.raises(OutputError, match="cannot write"):
        write_report(run, output=tmp_path / "page.html" / "page.html", device="cpu")


def test_a_training_ends_with_a_report(tiny_config, scenes, tmp_path):
    result = train(tiny_config.with_settings(epochs=1), data=scenes, output=tmp_path / "run", device="cpu")
    assert result.report == tmp_path / "run" / "report.html"
    assert titles(result.report) == [*EVERYTHING, "configuration"]


def test_a_report_that_fails_does_not_fail_the_training(tiny_config, scenes, tmp_path, monkeypatch):
    config = tiny_config.with_settings(epochs=1)
    for number, error in enumerate((OutputError("disk full"), ZeroDivisionError("oh"), KeyboardInterrupt())):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(writing, "page", fail)
        notes = Lines()
        result = train(config, data=scenes, output=tmp_path / str(number), device="cpu", reporter=notes)
        assert (result.report, result.interrupted, result.best_epoch) == (None, False, 1)
        reason = ("disk full", "ZeroDivisionError: oh", "stopped")[number]
        assert notes.lines[-1] == f"no report: {reason}; `ddetr report {tmp_path / str(number)}` tries again"


def test_data_that_has_moved(run, scenes, tmp_path):
    moved = shutil.copytree(scenes, tmp_path / "there")
    (run / "data.json").write_text(json.dumps({"path": str(tmp_path / "here"), "format": None}))
    notes = Lines()
    path = write_report(run, device="cpu", reporter=notes)
    assert titles(path) == ["overview", "training", "configuration"]
    assert "here: no such file or folder" in text_of(path)
    assert f"ddetr report {run} --data FOLDER" in notes.lines[0]
    assert titles(write_report(run, data=moved, device="cpu")) == [*EVERYTHING, "configuration"]
    with pytest.raises(DataError, match="nowhere"):
        write_report(run, data=tmp_path / "nowhere", device="cpu")


def test_data_given_in_python(run, scenes):
    (run / "data.json").write_text('{"path": null, "format": null}')
    assert "given its data in Python" in text_of(write_report(run, device="cpu"))
    train_data, val = open_dataset(scenes, split="train"), open_dataset(scenes, split="val")
    assert titles(write_report(run, data=train_data, val_data=val, device="cpu")) == [*EVERYTHING, "configuration"]


def test_what_the_run_was_judged_by_may_be_a_path_of_its_own(run, scenes, tmp_path):
    apart = shutil.copytree(scenes / "train", tmp_path / "apart" / "test")
    assert "validation images 3 classes" in text_of(write_report(run, device="cpu"))
    assert "validation images 8 classes" in text_of(write_report(run, val_data=tmp_path / "apart", device="cpu"))
    origin = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps(origin | {"val_path": str(tmp_path / "apart")}))
    assert "validation images 8 classes" in text_of(write_report(run, device="cpu"))
    shutil.rmtree(apart.parent)
    assert "apart: no such file or folder" in text_of(write_report(run, device="cpu"))
    with pytest.raises(DataError, match="apart"):
        write_report(run, val_data=tmp_path / "apart", device="cpu")


def test_photos_that_are_gone(run, scenes, tmp_path):
    here = shutil.copytree(scenes, tmp_path / "here")
    photos = sorted((here / "val").glob("*.jpg"))
    photos[0].write_bytes(photos[0].read_bytes()[:700])
    text = text_of(write_report(run, data=here, device="cpu"))
    assert f"1 of {len(photos)} validation images are left out" in text
    for photo in photos:
        photo.write_bytes(b"")
    path = write_report(run, data=here, device="cpu")
    assert "Nothing could be evaluated" in text_of(path) or "could not be opened" in text_of(path)


def test_a_run_that_was_interrupted(run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    first_epoch = next(number for number, line in enumerate(lines) if json.loads(line)["kind"] == "epoch")
    (run / "metrics.jsonl").write_text("".join(lines[: first_epoch + 1]) + '{"kind": "st')
    assert "This run is not finished: 1 of 2 epochs are complete" in text_of(write_report(run, device="cpu"))
    (run / "best.safetensors").unlink()
    (run / "metrics.jsonl").write_text("".join(lines[:first_epoch]))
    path = write_report(run, device="cpu")
    assert "this page is about last.safetensors" in text_of(path)
    assert titles(path) == [*EVERYTHING, "configuration"]


def test_a_run_that_patience_ended(run):
    (run / "metrics.jsonl").write_text("".join(line + "\n" for line in epochs_of(run)[:1]))
    progress = {"position": {"stopped_early": True}}
    saved = checkpoint.load(run / "last.safetensors", training=True)
    checkpoint.save(replace(saved, training=replace_in(saved.training, progress)), run / "last.safetensors")
    text = text_of(write_report(run, device="cpu"))
    assert (
        f"This run stopped early (patience) after 1 of 2 epochs. To continue it anyway: ddetr train --resume {run}"
        in text
    )
    assert "not finished" not in text


def test_the_best_epoch_is_that_of_the_weights(tiny_config, scenes, tmp_path):
    ran = train(
        tiny_config.with_settings(best_by="ap50"), data=scenes, output=tmp_path / "run", device="cpu", report=False
    )
    lines = [json.loads(line) for line in (ran.folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "epoch":
            first = line["epoch"] == 1
            line["val"] |= {"ap": 0.5 if first else 0.4, "ap50": 0.6 if first else 0.9}
    (ran.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "best epoch 2" in text_of(write_report(ran.folder, device="cpu")).replace("2 best epoch", "best epoch 2")


def test_the_images_held_out_are_those_of_the_training(tiny_config, scenes, tmp_path):
    here = tmp_path / "here"
    shutil.copytree(scenes / "train", here)
    config = tiny_config.with_settings(epochs=1, val_share=0.25)
    ran = train(config, data=here, output=tmp_path / "run", device="cpu", report=False)
    held_out = json.loads((ran.folder / "data.json").read_text())["held_out"]
    assert len(held_out) == 2
    learnt_from = sorted(path for path in here.glob("*.jpg") if path.name not in held_out)
    learnt_from[0].unlink()
    seen = []
    original = writing.evaluate

    def note(detector, dataset, **others):
        seen.append({sample.path.name for sample in dataset.samples})
        return original(detector, dataset, **others)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(writing, "evaluate", note)
        text = text_of(write_report(ran.folder, device="cpu"))
    assert seen == [set(held_out)]
    assert "1 images are missing or are not of the size that the labels say" in text


def test_without_data_json_the_data_can_be_named(run, scenes):
    (run / "data.json").unlink()
    assert titles(write_report(run, data=scenes, device="cpu")) == [*EVERYTHING, "configuration"]


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode elsewhere")
def test_a_name_that_is_no_unicode_costs_no_report(run, scenes, tmp_path):
    here = shutil.copytree(scenes, tmp_path / os.fsdecode(b"caf\xe9"))
    path = write_report(run, data=here, device="cpu")
    assert titles(path) == [*EVERYTHING, "configuration"]


@pytest.mark.parametrize("lost", ["config.json", "metrics.jsonl", "data.json", "both weights"])
def test_what_is_lost_is_said(run, lost):
    names = ["best.safetensors", "last.safetensors"] if lost == "both weights" else [lost]
    for name in names:
        (run / name).unlink()
    path = write_report(run, device="cpu")
    expected = {
        "config.json": "The settings of this run are unknown",
        "metrics.jsonl": "There is no metrics.jsonl",
        "data.json": "The data set could not be opened",
        "both weights": "There are no weights",
    }
    assert expected[lost] in text_of(path)
    assert "overview" in titles(path)


def test_no_objects_to_judge_by_and_a_class_without_any(run, scenes, tmp_path):
    here = shutil.copytree(scenes, tmp_path / "here")
    annotations = here / "val" / "_annotations.coco.json"
    document = json.loads(annotations.read_text())
    stars = [one for one in document["annotations"] if one["category_id"] != 3]
    annotations.write_text(json.dumps(document | {"annotations": stars}))
    assert titles(write_report(run, data=here, device="cpu"))[:4] == EVERYTHING[:4]
    annotations.write_text(json.dumps(document | {"annotations": []}))
    path = write_report(run, data=here, device="cpu")
    assert "There are no objects in the validation images" in text_of(path)
    assert "thresholds" not in titles(path)


def test_what_is_no_run(tmp_path):
    with pytest.raises(OutputError, match="no such run folder"):
        write_report(tmp_path / "nope")
    with pytest.raises(OutputError, match="is not a run folder: it has none of"):
        write_report(tmp_path)


def test_the_epochs_of_the_folder_are_those_of_the_page(run):
    assert len([1 for record in RunFolder(run).records() if record["kind"] == "epoch"]) == 2
