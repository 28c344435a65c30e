import csv
import json
import os
import shutil
import signal
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import deformable_detr
from deformable_detr.core.errors import BackendError, CheckpointError, ConfigError, DataError, OutputError
from deformable_detr.data.formats import coco
from deformable_detr.data.open import open_dataset
from deformable_detr.report.history import history_of
from deformable_detr.runs.config import OptimizerConfig
from deformable_detr.runs.config_file import from_json
from deformable_detr.training import loop
from deformable_detr.training import train as training
from deformable_detr.training.autoconfig import fitted_decay
from deformable_detr.training.setup import set_up
from deformable_detr.training.train import resume, train
from deformable_detr.weights.checkpoint import load, save
from tests.data.noise import dataset_of


class Lines:
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)

    def update(self, stage, done, total, details=""):
        pass


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def interrupt_after(monkeypatch, steps):
    """Ctrl-C arrives inside this step."""
    take, taken = loop.gradient_step, []

    def step(learner, batch):
        taken.append(1)
        if len(taken) == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return take(learner, batch)

    monkeypatch.setattr(loop, "gradient_step", step)


def test_one_process_says_that_there_is_nothing_to_share_out(tiny_config, scenes, tmp_path):
    notes = Lines()
    config = tiny_config.with_settings(epochs=1, sharded=True)
    run = train(config, data=scenes, output=tmp_path / "run", device="cpu", report=False, reporter=notes)
    assert run.epochs_completed == 1
    remark = "compute.sharded is true and has no effect: there is one process, and it keeps everything"
    assert notes.lines.count(remark) == 1


def test_a_run_leaves_a_detector_its_config_and_its_figures(tiny_config, scenes, tmp_path):
    notes = Lines()
    run = train(tiny_config, data=scenes, output=tmp_path / "run", device="cpu", reporter=notes)
    assert (run.epochs_completed, run.interrupted, run.skipped) == (2, False, {})
    assert run.best_epoch in (1, 2)
    assert load(tmp_path / "run" / "best.safetensors").metrics == run.best
    assert from_json(json.loads((tmp_path / "run" / "config.json").read_text()), "config.json") == run.config
    assert run.config.model.num_classes == 3
    assert [record["kind"] for record in read(run.folder)] == ["step", "step", "epoch"] * 2
    detector = deformable_detr.load(run.folder / "best.safetensors", device="cpu")
    assert detector.classes == ("disc", "square", "star")
    report = deformable_detr.evaluate(detector, open_dataset(scenes, split="val"))
    assert report.metrics.twelve() == pytest.approx(run.best, abs=1e-6)
    said = "\n".join(notes.lines)
    for fact in (
        "8 images with",
        "3 classes (disc, square, star)",
        "the validation split, 3 images",
        "on cpu in float32",
    ):
        assert fact in said
    assert "learning rate 6.12e-05 (0.0002 x sqrt(3 / 32))" in said


def test_bfloat16_where_it_is_slow_is_said(tiny_config, scenes, tmp_path, monkeypatch):
    config, notes = tiny_config.with_settings(precision="bfloat16", epochs=1), Lines()
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True}, raising=False)
    run = train(config, data=scenes, output=tmp_path / "run", device="cpu", reporter=notes)
    said = "\n".join(notes.lines)
    assert "on cpu in bfloat16" in said
    assert "no instructions for bfloat16: --precision float32 is several times as fast" in said
    assert run.epochs_completed == 1


@pytest.mark.slow
def test_the_same_seed_is_the_same_run_whatever_the_workers(tiny_config, scenes, tmp_path):
    runs = [
        train(tiny_config.with_settings(num_workers=workers), data=scenes, output=tmp_path / str(workers), device="cpu")
        for workers in (0, 2)
    ]
    first, second = (load_file(run.folder / "last.safetensors") for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert runs[0].best == runs[1].best


@pytest.mark.parametrize("steps", [1, 3])
def test_ctrl_c_finishes_the_step_and_resuming_gives_the_uninterrupted_run(
    tiny_config, scenes, tmp_path, monkeypatch, steps
):
    whole = train(tiny_config, data=scenes, output=tmp_path / "whole", device="cpu")
    with monkeypatch.context() as patched:
        interrupt_after(patched, steps)
        part = train(tiny_config, data=scenes, output=tmp_path / "part", device="cpu", on_interrupt="return")
    assert part.interrupted
    assert load(tmp_path / "part" / "last.safetensors", training=True).training.progress["progress"]["step"] == steps
    deformable_detr.load(tmp_path / "part" / "last.safetensors", device="cpu")  # usable as it is
    rest = resume(tmp_path / "part", device="cpu")
    assert not rest.interrupted
    assert rest.best == whole.best
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "part"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Of the interrupted epoch, only the steps since resuming are averaged, as "train".
    volatile = {"time", "images_per_second", "memory_bytes", "train_seconds", "val_seconds", "train"}
    lines = [[{k: v for k, v in one.items() if k not in volatile} for one in read(run.folder)] for run in (whole, rest)]
    assert lines[0] == lines[1]


@pytest.fixture
def crowds(tmp_path):
    """Four images with 104 objects each to train on, and two with 120 to judge by."""
    boxes = [
        (n % 2, (x, y, x + 11, y + 9))
        for n, (x, y) in enumerate((x, y) for x in range(0, 180, 12) for y in range(0, 130, 10))
    ]
    coco.save(dataset_of(tmp_path / "a", *[boxes[:104]] * 4), tmp_path / "crowds", split="train")
    coco.save(dataset_of(tmp_path / "bb", *[boxes[:120]] * 2), tmp_path / "crowds", split="val")
    return tmp_path / "crowds"


def test_crowds_get_more_queries_and_numbers_beside_those_of_coco(tiny_config, crowds, tmp_path):
    notes = Lines()
    config = tiny_config.with_settings(epochs=1, fit_queries=True)
    run = train(config, data=crowds, output=tmp_path / "run", device="cpu", report=False, reporter=notes)
    assert notes.lines[0].startswith(
        "chosen for these data: images hold up to 104 objects: 200 queries instead of 11 ("
    )
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (settings["model"]["num_queries"], settings["run"]["fit_queries"]) == (200, False)
    said = "\n".join(notes.lines)
    assert "2 of 2 images have more objects than the 100 detections of an image that the evaluation counts" in said
    assert "what 200 detections give is evaluated besides, as val_at_n" in said
    assert "  AP with 200 detections " in said
    # COCO's numbers have COCO's names, and decide; the others have names of their own.
    (record,) = [one for one in read(run.folder) if one["kind"] == "epoch"]
    assert record["val"] == run.best == load(tmp_path / "run" / "best.safetensors").metrics
    assert record["val_at_n"]["max_detections"] == 200
    assert record["val_at_n"].keys() ^ record["val"].keys() == {"max_detections", "ar_200", "ar_100"}
    assert record["val_at_n_per_class"].keys() == record["val_per_class"].keys() == {"cat", "dog"}
    detector = deformable_detr.load(run.folder, device="cpu")
    report = deformable_detr.evaluate(detector, open_dataset(crowds, split="val"), max_detections=200)
    assert report.metrics.twelve() == pytest.approx(record["val"], abs=1e-6)
    own = {name: value for name, value in record["val_at_n"].items() if name != "max_detections"}
    assert report.metrics_at_n.twelve() == pytest.approx(own, abs=1e-6)
    table = next(csv.DictReader((run.folder / "metrics.csv").read_text().splitlines()))
    assert {"val/ar_100", "val_at_n/ar_200", "val_at_n_per_class/cat/ap"} <= table.keys()


def test_what_decides_may_be_of_more_detections(tiny_config, crowds, tmp_path, monkeypatch):
    """Two evaluations: COCO's AP falls, that of all queries rises."""
    numbers = iter([(0.5, 0.6), (0.4, 0.7)] * 2)
    measure = loop.evaluate

    def evaluate(*args, **options):
        report, (coco_ap, own_ap) = measure(*args, **options), next(numbers)
        own = replace(report.metrics_at_n, ap=own_ap)
        return replace(report, metrics=replace(report.metrics, ap=coco_ap), metrics_at_n=own)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    for best_by, epoch, ap in (("ap", 1, 0.5), ("ap@queries", 2, 0.4)):
        config = tiny_config.with_settings(epochs=2, num_queries=130, best_by=best_by)
        run = train(config, data=crowds, output=tmp_path / best_by, device="cpu", report=False)
        assert (run.best_epoch, run.best["ap"]) == (epoch, ap)
        history = history_of(read(run.folder))
        assert history.best(best_by)["epoch"] == epoch


@pytest.mark.parametrize("steps", [1, 3])
def test_averages_and_the_end_of_variation_are_the_same_in_a_run_that_goes_on(
    tiny_config, scenes, tmp_path, monkeypatch, steps
):
    config = tiny_config.with_settings(
        ema_decay="auto", mosaic=0.7, scale_jitter=(0.5, 1.5), color_jitter=0.5, until=0.5, epochs=2
    )
    whole = train(config, data=scenes, output=tmp_path / "whole", device="cpu", report=False)
    with monkeypatch.context() as patched:
        interrupt_after(patched, steps)
        train(config, data=scenes, output=tmp_path / "part", device="cpu", on_interrupt="return", report=False)
    written = json.loads((tmp_path / "part" / "config.json").read_text())
    assert written["optimizer"]["ema_decay"] == fitted_decay(4) == 0.5
    assert written["augmentation"]["until"] == 0.5
    rest = resume(tmp_path / "part", device="cpu", report=False)
    assert rest.best == whole.best
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "part"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    longer = resume(tmp_path / "part", epochs=3, device="cpu", report=False)
    assert longer.config.optimizer.ema_decay == 0.5


def test_ctrl_c_in_the_evaluation_costs_only_the_evaluation(tiny_config, scenes, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "evaluate", stop)
        part = train(tiny_config, data=scenes, output=tmp_path / "run", device="cpu", on_interrupt="return")
    assert (part.interrupted, part.epochs_completed, part.best_epoch) == (True, 0, None)
    rest = resume(tmp_path / "run", device="cpu")
    assert rest.epochs_completed == 2
    kinds = [(record["kind"], record["step"]) for record in read(rest.folder)]
    assert kinds == [("step", 1), ("step", 2), ("epoch", 2), ("step", 3), ("step", 4), ("epoch", 4)]


def test_a_finished_run_can_be_trained_for_longer(tiny_config, scenes, tmp_path):
    train(tiny_config.with_settings(epochs=1), data=scenes, output=tmp_path / "run", device="cpu")
    with pytest.raises(ConfigError, match="completed 1 of 1 epochs"):
        resume(tmp_path / "run", device="cpu")
    settings = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(BackendError, match="no such device"):
        resume(tmp_path / "run", epochs=2, device="abacus")
    assert (tmp_path / "run" / "config.json").read_text() == settings
    run = resume(tmp_path / "run", epochs=2, device="cpu")
    assert (run.epochs_completed, run.config.schedule.epochs) == (2, 2)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["schedule"]["epochs"] == 2


def test_moved_data_can_be_named_and_other_classes_are_refused(tiny_config, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "here")
    train(tiny_config.with_settings(epochs=1), data=tmp_path / "here", output=tmp_path / "run", device="cpu")
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(DataError, match="here: no such file or folder"):
        resume(tmp_path / "run", epochs=2, device="cpu")
    assert resume(tmp_path / "run", epochs=2, data=tmp_path / "there", device="cpu").epochs_completed == 2
    assert resume(tmp_path / "run", epochs=3, device="cpu").epochs_completed == 3  # it is remembered
    annotations = tmp_path / "there" / "train" / "_annotations.coco.json"
    document = json.loads(annotations.read_text())
    document["categories"].append({"id": 77, "name": "cube"})
    annotations.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"3 classes \(disc, square, star\), the data set has 4"):
        resume(tmp_path / "run", epochs=4, data=tmp_path / "there", device="cpu")


def test_data_below_the_home_folder(tiny_config, scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(scenes, tmp_path / "photos")
    run = train(tiny_config.with_settings(epochs=1), data="~/photos", output=tmp_path / "run", device="cpu")
    assert json.loads((run.folder / "data.json").read_text())["path"] == str(tmp_path / "photos")
    (run.folder / "data.json").unlink()
    assert resume(run.folder, epochs=2, data="~/photos", device="cpu").epochs_completed == 2


def test_with_fewer_images_a_run_keeps_its_images_to_judge_by_and_its_figures(tiny_config, scenes, tmp_path):
    shutil.copytree(scenes / "train", tmp_path / "photos")
    config = tiny_config.with_settings(batch_size=1, val_share=0.25, log_every=1)
    run = train(config, data=tmp_path / "photos", output=tmp_path / "run", device="cpu")
    held_out = json.loads((run.folder / "data.json").read_text())["held_out"]
    before = read(run.folder)
    assert [line["epoch"] for line in before if line["kind"] == "epoch"] == [1, 2]
    annotations = tmp_path / "photos" / "_annotations.coco.json"
    document = json.loads(annotations.read_text())
    learnt_from = [one for one in document["images"] if one["file_name"] not in held_out]
    gone = {one["id"] for one in learnt_from[:3]}
    for key, name in (("images", "id"), ("annotations", "image_id")):
        document[key] = [one for one in document[key] if one[name] not in gone]
    annotations.write_text(json.dumps(document))
    notes = Lines()
    run = resume(run.folder, epochs=3, device="cpu", reporter=notes)
    assert "an epoch now has 3 steps instead of 6: epoch 3 begins anew" in "\n".join(notes.lines)
    assert "evaluated on 2 images held out" in "\n".join(notes.lines)
    assert json.loads((run.folder / "data.json").read_text())["held_out"] == held_out
    assert read(run.folder)[: len(before)] == before
    assert [line["epoch"] for line in read(run.folder) if line["kind"] == "epoch"] == [1, 2, 3]


def test_of_two_runs_that_found_a_folder_empty_one_has_it_and_the_other_leaves_it_whole(
    tiny_config, scenes, tmp_path, monkeypatch
):
    config, folder = tiny_config.with_settings(epochs=1), tmp_path / "run"
    start, first = set_up, []

    def begin_another_meanwhile(*arguments, **others):
        session = start(*arguments, **others)
        if not first:
            first.append(True)
            first.append(train(config, data=scenes, output=folder, device="cpu"))
        return session

    monkeypatch.setattr(training, "set_up", begin_another_meanwhile)
    with pytest.raises(OutputError, match=r"another run has begun in .*run in the meantime; name another folder"):
        train(config.with_settings(seed=5), data=scenes, output=folder, device="cpu")
    assert json.loads((folder / "config.json").read_text())["run"]["seed"] == config.run.seed
    assert resume(folder, epochs=2, device="cpu").epochs_completed == 2


def test_data_given_in_python_must_be_given_again(tiny_config, scenes, tmp_path):
    data, val = open_dataset(scenes, split="train"), open_dataset(scenes, split="val")
    config = tiny_config.with_settings(epochs=1)
    run = train(config, data=data, val_data=val, output=tmp_path / "run", device="cpu")
    with pytest.raises(ConfigError, match="trained on data given in Python"):
        resume(run.folder, epochs=2, device="cpu")
    assert resume(run.folder, epochs=2, data=data, val_data=val, device="cpu").epochs_completed == 2


def test_images_to_evaluate_on_may_come_from_elsewhere_and_are_found_again(tiny_config, scenes, tmp_path):
    """A path for one, an open data set for the other, or two paths; `resume` remembers the paths."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(scenes, elsewhere)
    config, val = tiny_config.with_settings(epochs=1), open_dataset(elsewhere, split="val")
    one = train(config, data=scenes, val_data=val, output=tmp_path / "a", device="cpu", report=False)
    two = train(config, data=scenes, val_data=elsewhere, output=tmp_path / "b", device="cpu", report=False)
    assert one.best == two.best
    assert json.loads((two.folder / "data.json").read_text())["val_path"] == str(elsewhere)
    assert resume(two.folder, epochs=2, device="cpu", report=False).epochs_completed == 2


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_smallest_data_sets(tiny_config, scenes, tmp_path, count, batch_size):
    """One image, images without objects, one class only, batches of one and batches larger than the data set."""
    whole = open_dataset(scenes, split="train")
    empty = replace(
        whole.samples[0],
        boxes_xyxy=whole.samples[0].boxes_xyxy[:0],
        class_ids=whole.samples[0].class_ids[:0],
        is_crowd=whole.samples[0].is_crowd[:0],
        areas=whole.samples[0].areas[:0],
        object_ids=(),
        image_id=99,
    )
    one_class = [replace(sample, class_ids=sample.class_ids * 0) for sample in whole.samples[: count - 1]]
    data = replace(whole, classes=("thing",), category_ids=(4,), samples=[empty, *one_class])
    run = train(
        tiny_config.with_settings(epochs=1, batch_size=batch_size), data=data, output=tmp_path / "run", device="cpu"
    )
    assert run.epochs_completed == 1
    assert run.config.run.batch_size == 1
    assert run.best_epoch == 1


def test_the_default_folder_is_named_after_recipe_and_data(tiny_config, scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_config.with_settings(epochs=1)
    for number in (1, 2):
        run = train(config, data=scenes, device="cpu")
        assert run.folder.as_posix() == f"runs/tiny-{scenes.name}-{number}"


def test_what_cannot_work_fails_before_the_work(tiny_config, scenes, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write to the output folder"):
        train(tiny_config, data=scenes, output=tmp_path / "file", device="cpu")
    with pytest.raises(DataError, match="no such file or folder"):
        train(tiny_config, data=tmp_path / "nope", output=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    bad = replace(tiny_config, model=replace(tiny_config.model, backbone="resnet19"))
    with pytest.raises(ConfigError, match="resnet19"):
        train(bad, data=scenes, output=tmp_path / "run", device="cpu")
    with pytest.raises(BackendError, match="no such device"):
        train(tiny_config, data=scenes, output=tmp_path / "run", device="abacus")
    assert not (tmp_path / "run").exists()
    train(tiny_config.with_settings(epochs=1), data=scenes, output=tmp_path / "run", device="cpu")  # still free
    with pytest.raises(OutputError, match="is not empty"):
        train(tiny_config, data=scenes, output=tmp_path / "run", device="cpu")


def test_a_given_learning_rate_is_in_force_as_it_is(tiny_config, scenes, tmp_path):
    config = tiny_config.with_settings(epochs=1, optimizer=OptimizerConfig(lr=3e-3))
    notes = Lines()
    run = train(config, data=scenes, output=tmp_path / "run", device="cpu", reporter=notes)
    assert any(line.endswith("learning rate 0.003") for line in notes.lines)
    assert read(run.folder)[0]["lr"] == 3e-3


def test_an_image_that_stops_the_first_step_leaves_no_run_behind(tiny_config, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "data")
    for path in (tmp_path / "data" / "train").glob("*.jpg"):
        path.write_bytes(path.read_bytes()[:800])
    with pytest.raises(DataError, match="cannot decode"):
        train(tiny_config, data=tmp_path / "data", output=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_without_objects_to_judge_by_the_newest_weights_are_the_best(tiny_config, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "data")
    annotations = tmp_path / "data" / "val" / "_annotations.coco.json"
    annotations.write_text(json.dumps(json.loads(annotations.read_text()) | {"annotations": []}))
    notes = Lines()
    run = train(tiny_config, data=tmp_path / "data", output=tmp_path / "run", device="cpu", reporter=notes)
    assert (run.best_epoch, run.best["ap"]) == (2, -1)
    assert any("AP -  AP50 -" in line for line in notes.lines)


def test_skipped_images_are_counted_and_listed(tiny_config, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "data")
    cut = tmp_path / "data" / "train" / "scene_00001.jpg"
    cut.write_bytes(cut.read_bytes()[:800])
    (tmp_path / "data" / "train" / "scene_00002.jpg").unlink()
    cut_val = tmp_path / "data" / "val" / "scene_00001.jpg"
    cut_val.write_bytes(cut_val.read_bytes()[:800])
    config = tiny_config.with_settings(epochs=1, skip_bad_images=True, batch_size=1)
    notes = Lines()
    run = train(config, data=tmp_path / "data", output=tmp_path / "run", device="cpu", reporter=notes)
    assert list(run.skipped) == [str(cut)]
    assert any("problems in the annotations: 1, 1 images left out; `ddetr check-data`" in line for line in notes.lines)
    assert sum(line.startswith(f"skipped: {cut}: ") for line in notes.lines) == 1
    assert any("1 validation images skipped" in line for line in notes.lines)


@pytest.mark.gpu
def test_a_run_on_a_gpu_can_be_resumed_and_used_on_the_cpu(tiny_config, scenes, tmp_path, monkeypatch):
    config = tiny_config.with_settings(num_workers=1)
    with monkeypatch.context() as patched:
        interrupt_after(patched, 3)
        assert train(config, data=scenes, output=tmp_path / "run", device="cuda", on_interrupt="return").interrupted
    run = resume(tmp_path / "run", device="auto")
    assert run.epochs_completed == 2
    assert all(record["memory_bytes"] > 0 for record in read(run.folder) if record["kind"] == "step")
    reports = [
        deformable_detr.evaluate(
            deformable_detr.load(run.folder / "best.safetensors", device=device), open_dataset(scenes, split="val")
        )
        for device in ("cuda", "cpu")
    ]
    assert reports[0].metrics.twelve() == pytest.approx(reports[1].metrics.twelve(), abs=0.02)


@pytest.fixture
def weights(tiny_config, scenes, tmp_path):
    """Of a run of one epoch that knew other classes, in a structure that differs from `tiny_config`'s."""
    model = replace(tiny_config.model, hidden_dim=64, ffn_dim=40)
    data = open_dataset(scenes, split="train")
    data = replace(data, classes=("Disc", "hexagon", "star"))
    config = tiny_config.with_settings(name="before", epochs=1, model=model)
    run = train(config, data=data, val_data=data, output=tmp_path / "before", device="cpu")
    best = load(run.folder / "best.safetensors")
    save(replace(best, licence="CC-BY-4.0"), tmp_path / "before.safetensors")
    return tmp_path / "before.safetensors"


def test_a_run_that_starts_from_weights_says_so_everywhere_and_resumes_to_the_bit(
    tiny_config, scenes, weights, tmp_path, monkeypatch
):
    notes = Lines()
    config = tiny_config.with_settings(freeze=("backbone", "encoder"))
    whole = train(config, data=scenes, weights=weights, output=tmp_path / "whole", device="cpu", reporter=notes)
    assert whole.config.model == replace(load(weights).model, num_classes=3)
    assert (whole.config.run.start, whole.config.preprocessing.short_side) == ("weights", 48)
    said = "\n".join(notes.lines)
    assert "by class: 2 kept (disc <- Disc, star), 1 fresh (square), 1 not needed (hexagon)" in said
    assert "all weights from before.safetensors (before, COCO _annotations.coco.json), " in said
    assert "million frozen (backbone, encoder), on cpu" in said
    record = json.loads((tmp_path / "whole" / "transfer.json").read_text())
    assert record["classes"] == {"disc": "Disc", "square": None, "star": "star"}
    with monkeypatch.context() as patched:
        interrupt_after(patched, 3)
        with pytest.raises(KeyboardInterrupt):
            train(config, data=scenes, weights=weights, output=tmp_path / "part", device="cpu")
    weights.rename(tmp_path / "elsewhere.safetensors")  # not needed any more
    resume(tmp_path / "part", device="cpu")
    for name in ("last", "best"):
        first, second = (load(tmp_path / run / f"{name}.safetensors") for run in ("whole", "part"))
        assert all(torch.equal(first.weights[key], second.weights[key]) for key in first.weights)
        assert first.licence == second.licence == "CC-BY-4.0"
        assert first.provenance == second.provenance
        assert first.provenance["weights"] == "before.safetensors (before, COCO _annotations.coco.json)"
    start = load(tmp_path / "elsewhere.safetensors").weights
    end = load(tmp_path / "part" / "last.safetensors").weights
    frozen = [name for name in end if name.startswith(("encoder.", "pyramid.backbone."))]
    assert all(torch.equal(end[name], start[name]) for name in frozen)
    assert not torch.equal(end["decoder.box_heads.0.layers.0.weight"], start["decoder.box_heads.0.layers.0.weight"])
    assert str(tmp_path).encode() not in (tmp_path / "part" / "last.safetensors").read_bytes()


def test_frozen_parts_leave_the_optimizer_and_its_checkpoint(tiny_config, scenes, weights, tmp_path):
    config = tiny_config.with_settings(epochs=1, freeze=("all_but_heads",))
    run = train(config, data=scenes, weights=weights, output=tmp_path / "run", device="cpu")
    tensors = load(run.folder / "last.safetensors", training=True).training.tensors
    moments = [name for name in tensors if name.startswith("exp_avg/")]
    assert moments
    assert all("class_head" in name or "box_head" in name for name in moments)


@pytest.mark.slow
def test_replaying_a_run_that_started_from_weights_asks_for_them(tiny_config, scenes, weights, tmp_path):
    config = tiny_config.with_settings(epochs=1)
    run = train(config, data=scenes, weights=weights, output=tmp_path / "run", device="cpu")
    replay = from_json(json.loads((run.folder / "config.json").read_text()), "config.json")
    with pytest.raises(ConfigError, match="tiny starts from the weights of a whole detector; name them"):
        train(replay, data=scenes, output=tmp_path / "again", device="cpu")
    assert not (tmp_path / "again").exists()
    again = train(replay, data=scenes, weights=weights, output=tmp_path / "again", device="cpu")
    assert again.best == run.best


def test_weights_that_do_not_fit_leave_no_run_behind(tiny_config, scenes, weights, tmp_path):
    loaded = load(weights)
    short = {name: tensor for name, tensor in loaded.weights.items() if not name.startswith("encoder.")}
    save(replace(loaded, weights=short), tmp_path / "short.safetensors")
    with pytest.raises(CheckpointError, match=r"short\.safetensors does not fit the model: .* missing: encoder\."):
        train(tiny_config, data=scenes, weights=tmp_path / "short.safetensors", output=tmp_path / "run", device="cpu")
    everything = tiny_config.with_settings(freeze=("all_but_heads", "heads"))
    same = replace(open_dataset(scenes, split="train"), classes=("Disc", "hexagon", "star"))
    with pytest.raises(ConfigError, match="nothing is left to train"):
        train(everything, data=same, weights=weights, output=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_figures_go_to_tensorboard_where_it_is_installed_and_its_absence_is_said_once(
    tiny_config, scenes, tmp_path, monkeypatch
):
    config = tiny_config.with_settings(epochs=1)
    for installed in (True, False):
        monkeypatch.setattr("deformable_detr.training.loggers._is_installed", lambda name, there=installed: there)
        notes, folder = Lines(), tmp_path / str(installed)
        train(config, data=scenes, output=folder, device="cpu", report=False, reporter=notes)
        assert (folder / "tensorboard").exists() == installed
        assert sum("TensorBoard is not installed" in line for line in notes.lines) == (0 if installed else 1)
    notes = Lines()
    train(config, data=scenes, output=tmp_path / "none", log=[], device="cpu", report=False, reporter=notes)
    assert not any("TensorBoard" in line for line in notes.lines)


def test_a_service_that_is_missing_or_fails(tiny_config, scenes, tmp_path, monkeypatch):
    config = tiny_config.with_settings(epochs=1)
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        train(config, data=scenes, output=tmp_path / "run", log=["wandb"], device="cpu")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # there, and its import fails
    notes = Lines()
    run = train(config, data=scenes, output=tmp_path / "run", log=["wandb"], device="cpu", report=False, reporter=notes)
    assert run.epochs_completed == 1
    assert sum("Weights & Biases failed" in line for line in notes.lines) == 1


def test_metrics_csv_of_a_resumed_run_is_that_of_the_whole(tiny_config, scenes, tmp_path, monkeypatch):
    whole = train(tiny_config, data=scenes, output=tmp_path / "whole", device="cpu", report=False)
    with monkeypatch.context() as patched:
        interrupt_after(patched, 3)
        train(tiny_config, data=scenes, output=tmp_path / "part", device="cpu", on_interrupt="return")
    assert not (tmp_path / "part" / "report.html").exists()  # who pressed Ctrl-C does not want to wait
    rest = resume(tmp_path / "part", device="cpu")
    assert rest.report == tmp_path / "part" / "report.html"
    tables = []
    for run in (whole, rest):
        with (run.folder / "metrics.csv").open(newline="") as file:
            tables.append([{k: v for k, v in row.items() if k.startswith(("epoch", "step", "lr", "val/"))}
                           for row in csv.DictReader(file)])  # fmt: skip
    assert tables[0] == tables[1]
    assert [row["epoch"] for row in tables[0]] == ["1", "2"]
