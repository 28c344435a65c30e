"""Two processes are one: the same losses but for rounding, the same evaluation to the last bit."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from deformable_detr.core.config import to_dict
from deformable_detr.core.distributed import joined
from deformable_detr.data.open import open_dataset
from deformable_detr.data.synthetic import SceneStyle, draw_scenes
from deformable_detr.evaluation.evaluate import evaluate
from deformable_detr.inference.detector import Detector
from tests import processes
from tests.processes import Group, ddetr

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
STEPS_A_EPOCH, EPOCHS = 2, 10


def command(*arguments):
    return [sys.executable, "-m", "deformable_detr.cli", "train", *map(str, arguments)]


def run(*arguments):
    """The real command in a process that has still to import everything."""
    return subprocess.run(
        command(*arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )


def group(size, folder, *arguments):
    """`ddetr train` as `size` processes of torchrun, all of which have left, and their exit code."""
    with Group(size, ddetr, ["train", *arguments], folder=folder / "group") as members:
        return members.wait(), members


def one(folder, *arguments):
    """`ddetr train` in one process, which has left, and its exit code."""
    with processes.start(ddetr, ["train", *arguments], said=folder / "said.txt") as process:
        return process.wait(), process


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """11 pictures, 7 of them empty: no whole number of batches of 4, and a process often has no object at all."""
    folder = tmp_path_factory.mktemp("several")
    style = SceneStyle(size_wh=(90, 60), classes=("disc", "square", "star"), most_objects=3)
    draw_scenes(folder, 11, 5, seed=3, style=style)
    file = folder / "train" / "_annotations.coco.json"
    document = json.loads(file.read_text())
    kept = {image["id"] for image in document["images"][:4]}
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] in kept]
    file.write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def recipe(tiny_config, tmp_path_factory):
    """Nothing drawn by chance inside the network, and no result that depends on an image's neighbours.

    Batch norm that learns divides by the spread of a few pixels here, and would make much of the last bit. Proposals
    are made for the padding, too, of which smaller batches have less.
    """
    tmp_path = tmp_path_factory.mktemp("recipe")
    body = timm.create_model(tiny_config.model.backbone, pretrained=False)
    save_file(body.state_dict(), tmp_path / "backbone.safetensors")
    weights = str(tmp_path / "backbone.safetensors")
    model = replace(tiny_config.model, dropout=0.0, features="per_image", backbone_weights=weights)
    model = replace(model, frozen_batch_norm=True, variant="refine")
    config = tiny_config.with_settings(model=model, epochs=EPOCHS, batch_size=4, eval_every=EPOCHS)
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(to_dict(config)))
    return file


def records(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


@pytest.fixture(scope="module")
def alone(photos, recipe, tmp_path_factory):
    """The run of one process that those of several are held against."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    code, process = one(folder.parent, recipe, "--data", photos, "--output", folder)
    assert code == 0, process.said
    return folder


def check_same_steps(folder, alone):
    assert len(records(folder, "step")) == STEPS_A_EPOCH * EPOCHS
    for one, other in zip(records(alone, "step"), records(folder, "step"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["terms"] == pytest.approx(one["terms"], rel=1e-5, abs=1e-6)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)  # where it is small, rounding is not


def tensors_of(file):
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def check_same_tensors(file, alone):
    """The same names, whole and nearly equal; where chance stands is each process' own.

    A bias before a norm has no gradient but rounding, of which Adam makes steps of full size.
    """
    one, other = ({n: t for n, t in tensors_of(f).items() if "generator/" not in n} for f in (alone, file))
    assert other.keys() == one.keys()
    for name in (name for name in one if not re.search(r"projections\.\d\.0\.bias", name)):
        torch.testing.assert_close(
            other[name], one[name], rtol=1e-3, atol=1e-5, msg=lambda why, name=name: f"{name}: {why}"
        )


def test_the_same_losses(photos, recipe, alone, tmp_path):
    code, members = group(2, tmp_path, recipe, "--data", photos, "--output", tmp_path / "2")
    assert code == 0, members.said
    assert members.printed.count("\n") == members.said.count("epoch 10/10") == 1
    check_same_steps(tmp_path / "2", alone)


@pytest.mark.slow
def test_a_group_of_one_learns_what_one_alone_learns(photos, recipe, alone, tmp_path):
    code, members = group(1, tmp_path, recipe, "--data", photos, "--output", tmp_path / "1")
    assert code == 0, members.said
    check_same_steps(tmp_path / "1", alone)


@pytest.mark.slow
def test_the_command_starts_as_many_as_there_are_devices(photos, recipe, alone, tmp_path):
    done = run(recipe, "--data", photos, "--output", tmp_path / "2", "--devices", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == done.stderr.count("epoch 10/10") == 1
    check_same_steps(tmp_path / "2", alone)


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_one_process_of_torchrun_learns_what_one_alone_learns(photos, recipe, alone, tmp_path, device):
    """By gloo, and on a GPU by NCCL, whole and sharded, where sums come in another order every time."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m"]
    options = ["--data", photos, "--device", device, "--precision", "float32"]
    if device == "cuda":
        environment = {name: value for name, value in ENVIRONMENT.items() if name != "CUDA_VISIBLE_DEVICES"}
        ways: dict[str, list[str]] = {"alone": [], "whole": torchrun, "sharded": torchrun}
        tolerance = 1e-2
    else:
        environment, ways, tolerance = ENVIRONMENT, {"whole": torchrun}, 1e-5
    runs = {"alone": alone}
    for name, start in ways.items():
        runs[name] = tmp_path / name
        module = command(recipe, *options, "--output", runs[name], "--set", f"sharded={str(name == 'sharded').lower()}")
        done = subprocess.run(
            [*start, *module[2:]] if start else module,
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    for name in ways:
        pairs = list(zip(records(runs["alone"], "step"), records(runs[name], "step"), strict=True))
        assert len(pairs) == STEPS_A_EPOCH * EPOCHS
        for one, other in pairs:
            assert other["loss"] == pytest.approx(one["loss"], rel=tolerance)


@pytest.mark.slow
def test_sharded_the_same_losses_and_files(photos, recipe, alone, tmp_path):
    """Images in two parts on each process, clipped to 0.1, averaged."""
    folder = tmp_path / "run"
    settings = ("--set", "sharded=true", "--set", "accumulate=2")
    code, members = group(2, tmp_path, recipe, "--data", photos, "--output", folder, *settings)
    assert code == 0, members.said
    assert "sharded: each of 2 processes keeps its part" in members.said
    check_same_steps(folder, alone)
    for name in ("last.safetensors", "best.safetensors"):
        check_same_tensors(folder / name, alone / name)
    one, other = records(alone, "epoch")[-1], records(folder, "epoch")[-1]
    assert other["val"] == pytest.approx(one["val"], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False], ids=["sharded first", "sharded then"])
def test_a_run_goes_on_with_shards_or_without(photos, recipe, alone, tmp_path, first):
    """Half of it on two processes, half on one, or on two that share everything."""
    folder = tmp_path / "run"
    half = ("--devices", 2, "--set", f"sharded={json.dumps(first)}", "--epochs", EPOCHS)
    with subprocess.Popen(
        command(recipe, "--data", photos, "--output", folder, *half),
        env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while not (folder / "metrics.jsonl").exists() or len(records(folder, "step")) < 3:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "Traceback" not in said
    steps = len(records(folder, "step"))
    assert steps < STEPS_A_EPOCH * EPOCHS
    if first:
        again = run("--resume", folder, "--device", "cpu")
        assert "compute.sharded is true and has no effect" in again.stderr
    else:
        settings = folder / "config.json"
        changed = json.loads(settings.read_text())
        changed["compute"]["sharded"] = True
        settings.write_text(json.dumps(changed))
        again = run("--resume", folder, "--devices", 2, "--device", "cpu")
        assert "sharded: each of 2 processes" in again.stderr
    assert again.returncode == 0, again.stderr
    check_same_steps(folder, alone)
    check_same_tensors(folder / "last.safetensors", alone / "last.safetensors")


@pytest.mark.slow
def test_sharded_with_all_that_makes_processes_differ(photos, alone, tmp_path):
    """From weights, with a frozen part, a step's images in parts, and two images that cannot be read."""
    data = tmp_path / "photos"
    shutil.copytree(photos, data)
    for image in sorted((data / "train").glob("*.[jp][pn]g"))[2:4]:
        image.write_bytes(b"no picture")
    given = ("--data", data, "--weights", alone / "best.safetensors", "--freeze", "backbone", "--epochs", 3)
    given += (
        "--batch-size",
        4,
        "--skip-bad-images",
        "--set",
        "log_every=1",
        "--set",
        "accumulate=2",
        "--device",
        "cpu",
    )
    runs = {1: (), 2: ("--devices", 2, "--set", "sharded=true", "--set", "on_non_finite=skip")}
    for size, more in runs.items():
        done = run("finetune", *given, *more, "--output", tmp_path / str(size))
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("skipped: ") == 2
    one, other = (records(tmp_path / str(size), "step") for size in runs)
    assert [step["loss"] for step in other] == pytest.approx([step["loss"] for step in one], rel=1e-4)
    before, after = (tensors_of(folder / "best.safetensors") for folder in (alone, tmp_path / "2"))
    kept = [name for name in before if name.startswith("pyramid.backbone.")]
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept)


def evaluated(weights, data, said):
    """Judge the weights in each process of the group, and write what each has found."""
    with joined("cpu") as ranks:
        detector = Detector.load(weights, device="cpu")
        report = evaluate(detector, open_dataset(data, split="val"), batch_size=2, ranks=ranks)
        parts = ("boxes_xyxy", "scores", "class_ids", "query_ids")
        found = [[getattr(one, part).tolist() for part in parts] for one in report.detections]
        Path(f"{said}-{ranks.size}-{ranks.rank}").write_text(json.dumps([report.metrics.twelve(), found]))


def test_evaluation_of_the_same_weights_is_equal_to_the_last_bit(photos, alone, tmp_path):
    arguments = [alone / "best.safetensors", photos, tmp_path / "said"]
    with processes.start(evaluated, *arguments, said=tmp_path / "alone.txt") as process:
        assert process.wait() == 0, process.said
    with Group(2, evaluated, *arguments, folder=tmp_path / "group") as both:
        assert both.wait() == 0, both.said
    found = json.loads((tmp_path / "said-1-0").read_text())
    assert len(found[1]) == 5
    assert all(json.loads((tmp_path / f"said-2-{rank}").read_text()) == found for rank in (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", 1], "2 processes cannot share batches of 1 images; ask for --batch-size 2 or more"),
        (["--set", "model.num_querys=3"], "unknown setting model.num_querys"),
    ],
)
def test_what_is_wrong_is_said_once(photos, recipe, tmp_path, arguments, message):
    code, members = group(2, tmp_path, recipe, "--data", photos, "--output", tmp_path / "run", *arguments)
    check_said_once(code, members.said, message)
    assert not (tmp_path / "run").exists()


def check_said_once(code, said, message):
    assert code == 1
    assert said.count(message) == said.count("Error") == 1, said
    assert "Traceback" not in said


@pytest.mark.slow
def test_what_is_wrong_is_said_once_by_all_that_the_command_starts(photos, recipe, tmp_path):
    for arguments, message in (
        (["--batch-size", 1], "2 processes cannot share batches of 1 images; ask for --batch-size 2 or more"),
        (["--set", "model.num_querys=3"], "unknown setting model.num_querys"),
    ):
        done = run(recipe, "--data", photos, "--output", tmp_path / "run", "--devices", 2, *arguments)
        check_said_once(done.returncode, done.stderr, message)
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_without_a_single_image_that_can_be_read_nothing_is_trained(photos, recipe, tmp_path):
    here = shutil.copytree(photos, tmp_path / "photos")
    for path in (here / "train").glob("*.jpg"):
        path.write_bytes(path.read_bytes()[:800])
    arguments = ("--output", tmp_path / "run", "--skip-bad-images", "--epochs", 1)
    code, members = group(2, tmp_path, recipe, "--data", here, *arguments)
    check_said_once(code, members.said, "Error: none of the 11 training images could be read; the first: ")
    assert members.printed == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_stops_all_after_a_step_and_the_run_goes_on(photos, recipe, tmp_path, sent, code):
    """Here the command starts both, and passes the signal on."""
    folder = tmp_path / "run"
    with subprocess.Popen(
        command(recipe, "--data", photos, "--output", folder, "--devices", 2, "--epochs", 500),
        env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while not (folder / "metrics.jsonl").exists() or len(records(folder, "step")) < 5:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.send_signal(sent)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert f"--resume {folder}" in said
    steps = len(records(folder, "step"))
    epochs = steps // STEPS_A_EPOCH + 1
    code, again = one(tmp_path, "--resume", folder, "--epochs", epochs, "--device", "cpu")
    assert code == 0, again.said
    assert [record["step"] for record in records(folder, "step")] == list(range(1, epochs * STEPS_A_EPOCH + 1))
