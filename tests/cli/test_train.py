import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from deformable_detr.cli.train import chosen_config
from deformable_detr.core.errors import ConfigError
from deformable_detr.data.augmentation.settings import Augmentation
from deformable_detr.data.formats import coco
from deformable_detr.runs.recipes import small
from deformable_detr.training import loop


def test_a_run_from_the_command_line(ddetr, recipe, scenes, tmp_path):
    result = ddetr("train", recipe, "--data", scenes, "--output", tmp_path / "run", "--epochs", 1, "--device", "cpu")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert record["folder"] == str(tmp_path / "run")
    assert (record["epochs_completed"], record["interrupted"]) == (1, False)
    assert "8 images with" in result.err
    assert f"ddetr predict {tmp_path / 'run' / 'best.safetensors'}" in result.err
    again = ddetr("train", "--resume", tmp_path / "run", "--epochs", 2, "--device", "cpu")
    assert again.code == 0, again.err
    assert json.loads(again.out)["epochs_completed"] == 2
    replay = ddetr(
        "train", tmp_path / "run" / "config.json", "--data", scenes, "--output", tmp_path / "b", "--device", "cpu"
    )
    assert json.loads(replay.out)["best"] == json.loads(again.out)["best"]


def test_a_zip_archive_is_trained_on_where_it_lies(ddetr, recipe, scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("DEFORMABLE_DETR_CACHE", str(tmp_path / "cache"))
    shutil.make_archive(str(tmp_path / "scenes"), "zip", scenes)
    options = ("--output", tmp_path / "run", "--epochs", 1, "--device", "cpu")
    result = ddetr("train", recipe, "--data", tmp_path / "scenes.zip", *options)
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "run/data.json").read_text())["path"] == str(tmp_path / "scenes.zip")
    shutil.rmtree(tmp_path / "cache")  # it is unpacked again
    again = ddetr("train", "--resume", tmp_path / "run", "--epochs", 2, "--device", "cpu")
    assert again.code == 0, again.err
    assert json.loads(again.out)["epochs_completed"] == 2


def test_ctrl_c_says_where_and_how_to_go_on(ddetr, recipe, scenes, tmp_path, monkeypatch):
    take = loop.gradient_step

    def step(session, batch):
        os.kill(os.getpid(), signal.SIGINT)
        return take(session, batch)

    monkeypatch.setattr(loop, "gradient_step", step)
    result = ddetr("train", recipe, "--data", scenes, "--output", tmp_path / "run", "--device", "cpu")
    assert result.code == 130
    assert f"the weights so far are in {tmp_path / 'run' / 'last.safetensors'}" in result.err
    assert f"ddetr train --resume {tmp_path / 'run'}" in result.err
    assert json.loads(result.out)["interrupted"] is True


def test_a_damaged_picture_has_a_way_out(ddetr, recipe, scenes, tmp_path):
    """The run stops, says what to do, and goes on without the picture; no word of a way that would end there again."""
    shutil.copytree(scenes, tmp_path / "data")
    damaged = tmp_path / "data" / "val" / "scene_00001.jpg"  # read after the first epoch
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    run, short = tmp_path / "run", ("--epochs", 1, "--device", "cpu")
    stopped = ddetr("train", recipe, "--data", tmp_path / "data", "--output", run, *short)
    way_on, error = stopped.err.splitlines()[-2:]
    assert (stopped.code, stopped.out) == (1, "")
    assert error.startswith(f"Error: {damaged}: cannot decode this image: ")
    assert "(`ddetr check-data` lists all such images; --skip-bad-images, or skip_bad_images in Python, goes" in error
    command = f"ddetr train --resume {run} --skip-bad-images"
    assert way_on == f"the last checkpoint is complete; to continue without such images: {command}"
    again = ddetr("train", "--resume", run, "--device", "cpu")
    assert (again.code, again.err.splitlines()[-2:]) == (1, [way_on, error])
    done = ddetr(*command.split()[1:], "--device", "cpu")
    assert done.code == 0, done.err
    assert json.loads(done.out)["epochs_completed"] == 1
    assert "1 validation images skipped" in done.err
    # From now on these are settings of the run.
    assert json.loads((run / "config.json").read_text())["data"]["skip_bad_images"] is True
    assert ddetr("train", "--resume", run, "--epochs", 2, "--device", "cpu").code == 0


def test_usage_errors(ddetr, scenes, tmp_path):
    result = ddetr("train")
    assert (result.code, "--data" in result.err) == (2, True)
    result = ddetr("train", "small", "--resume", tmp_path, "--lr", 1e-4)
    assert (result.code, "RECIPE" in result.err, "--lr" in result.err) == (2, True, True)
    assert ddetr("train", "--data", scenes, "--epochs", 0).code == 2
    assert ddetr("train", "--data", scenes, "--format", "tfrecord").code == 2


def test_an_archive_that_cannot_be_unpacked_is_one_line(ddetr, tmp_path, monkeypatch):
    monkeypatch.setenv("DEFORMABLE_DETR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 cut off")
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b\x08")
    for name, message in (("x.zip", "this zip archive is damaged or cut off"), ("x.tar.gz", "this is a gzip archive")):
        for command in (("train",), ("eval", "none.safetensors"), ("check-data",)):
            option = () if command[0] == "check-data" else ("--data",)
            result = ddetr(*command, *option, tmp_path / name)
            assert (result.code, result.out) == (1, "")
            assert f"{tmp_path / name}: {message}" in result.err.splitlines()[-1]


def test_starting_from_weights(ddetr, weights, scenes, tmp_path):
    """Without a recipe it is `finetune`, in the structure and the image size of the weights."""
    output = ("--output", tmp_path / "run", "--device", "cpu")
    result = ddetr("train", "--data", scenes, "--weights", weights, "--epochs", 1, "--workers", 0, *output)
    assert result.code == 0, result.err
    assert "3 kept (disc, square, star), none fresh, none not needed" in result.err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["name"], config["model"]["hidden_dim"], config["preprocessing"]["short_side"]) == (
        "finetune",
        32,
        48,
    )
    refused = ddetr("train", "--resume", tmp_path / "run", "--weights", weights, "--freeze", "encoder")
    assert (refused.code, "--weights" in refused.err, "--freeze" in refused.err) == (2, True, True)
    replay = ddetr("train", tmp_path / "run" / "config.json", "--data", scenes, "--output", tmp_path / "again")
    assert (replay.code, "name them with --weights" in replay.err) == (1, True)


def test_a_recipe_and_settings_go_on_top_of_weights(ddetr, recipe, weights, scenes, tmp_path):
    changes = ("--image-size", 40, "--set", "model.dropout=0.4", "--set", "preprocessing.mean=[0.5, 0.5, 0.5]")
    freeze = ("--freeze", "backbone", "--freeze", "encoder", "--epochs", 1, "--device", "cpu")
    where = ("--data", scenes, "--weights", weights, "--output", tmp_path / "run")
    result = ddetr("train", recipe, *where, *changes, *freeze)
    assert result.code == 0, result.err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["name"], config["run"]["freeze"], config["model"]["dropout"]) == (
        "tiny",
        ["backbone", "encoder"],
        0.4,
    )
    assert (config["preprocessing"]["short_side"], config["preprocessing"]["mean"]) == (40, [0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "model.hidden_dim=64"], 1, "model.hidden_dim is set to 64, and weights.safetensors has 32"),
        (["--set", "model.variant=base"], 1, "model.variant is set to 'base', and weights.safetensors has 'two_stage'"),
        (["--set", "model.num_classes=4"], 1, "model.num_classes comes from the data"),
        (["--backbone", "resnet18"], 2, "--weights brings the whole network"),
        (["--backbone-weights", "none"], 2, "--weights brings the whole network"),
        (["--freeze", "spine"], 1, "freeze holds 'spine'; there are heads, backbone, projections"),
        (["--freeze", "all_but_heads", "--freeze", "heads"], 1, "nothing is left to train"),
    ],
)
def test_what_contradicts_the_weights_is_refused(ddetr, weights, scenes, tmp_path, arguments, code, message):
    result = ddetr("train", "--data", scenes, "--weights", weights, "--output", tmp_path / "run", *arguments)
    assert (result.code, result.out) == (code, "")
    assert message in " ".join(result.err.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "num_querys=3"], "unknown setting num_querys; did you mean model.num_queries?"),
        (["--set", "model.num_querys=3"], "did you mean model.num_queries?"),
        (["--set", "model.num_classes=3"], "model.num_classes comes from the data"),
        (["--set", "batch_size=many"], "setting batch_size is 'many'; it must be an integer or one of 'auto'"),
        (["smal"], "did you mean small?"),
        (["--device", "cuda:77"], "device 'cuda:77' is not here"),
        (["--backbone-weights", "nope.pth"], "no such file of backbone weights: nope.pth"),
        (["--lr", "0"], "optimizer.lr is 0"),
        (["finetune"], "finetune starts from the weights of a whole detector; name them with --weights"),
        (["--weights", "nope.safetensors"], "no such checkpoint file: nope.safetensors"),
        (["--freeze", "encoder"], "freeze holds encoder, which would keep random weights"),
        (
            ["--set", "model.backbone=hf-hub:timm/resnet50"],
            "backbone is 'hf-hub:timm/resnet50'; it must be a name that",
        ),
        (["--backbone", "local-dir:."], "backbone is 'local-dir:.'; it must be a name that timm itself knows"),
        (["--set", "model.hidden_dim=1000000"], "hidden_dim is 1000000; it can be at most 2048"),
    ],
)
def test_what_cannot_be_is_one_line_and_code_1(ddetr, scenes, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = ddetr("train", *arguments, "--data", scenes)
    assert (result.code, result.out) == (1, "")
    assert message in result.err.splitlines()[-1]
    assert result.err.splitlines()[-1].startswith("Error: ")


def test_options_change_the_config_and_settings_come_last():
    assert chosen_config("small") == small()
    config = chosen_config(
        "small",
        image_size=160,
        backbone="resnet18",
        backbone_weights="none",
        settings={
            "schedule.epochs": 3,
            "run.batch_size": 8,
            "optimizer.lr": 1e-3,
            "run.seed": 5,
            "data.num_workers": 0,
            "data.skip_bad_images": True,
        },
        overrides=["run.batch_size=2", "model.dropout=0.3"],
    )
    assert (config.schedule.epochs, config.run.batch_size, config.run.seed, config.data.num_workers) == (3, 2, 5, 0)
    assert (config.optimizer.lr, config.preprocessing.short_side, config.augmentation) == (1e-3, 160, "auto")
    assert (config.model.backbone, config.model.frozen_stages, config.model.dropout) == ("resnet18", 0, 0.3)
    assert config.data.skip_bad_images
    assert config.with_settings(seed=0).run.seed == 0


def test_a_setting_of_the_data_cannot_be_set():
    with pytest.raises(ConfigError, match="comes from the data"):
        chosen_config("small", overrides=[" model.num_classes =3"])


def test_services_are_named_at_the_door(ddetr, recipe, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    start = ("train", recipe, "--data", scenes, "--output", tmp_path / "run")
    result = ddetr(*start, "--log", "wandb")
    assert (result.code, "Weights & Biases is not installed; `pip install wandb`" in result.err) == (1, True)
    result = ddetr(*start, "--log", "visdom")
    assert (result.code, "cannot log to 'visdom'" in result.err) == (1, True)
    result = ddetr(*start, "--log", "none", "--log", "mlflow")
    assert (result.code, "--log none cannot be combined" in result.err) == (2, True)
    assert not (tmp_path / "run").exists()


def test_an_augmentation_by_name_follows_the_image_size_and_settings_come_last():
    config = chosen_config("small", image_size=160, augment="strong", overrides=["augmentation.mosaic=0.25"])
    assert max(config.augmentation.short_sides) == 160
    assert (config.augmentation.mosaic, config.augmentation.mixup) == (0.25, 0.15)
    assert chosen_config("small", augment="paper") == replace(small(), augmentation=Augmentation())
    with pytest.raises(ConfigError, match="no augmentation called 'weak'"):
        chosen_config("small", augment="weak")


@pytest.mark.slow
def test_a_batch_that_memory_decides_on(ddetr, recipe, scenes, tmp_path):
    run = tmp_path / "run"
    result = ddetr("train", recipe, "--data", scenes, "--output", run, "--batch-size", "auto", "--epochs", 1)
    assert result.code == 0, result.err
    assert "chosen for these data: batches of 8 images, which take " in result.err
    config = json.loads((run / "config.json").read_text())
    assert config["run"]["batch_size"] == 8
    for wrong in ("0", "-3", "many"):
        result = ddetr("train", recipe, "--data", scenes, "--batch-size", wrong)
        assert result.code == 2
        assert "it must be a number" in " ".join(result.err.split())
    result = ddetr("train", recipe, "--data", scenes, "--batch-size", "auto", "--devices", 2)
    assert (result.code, result.err.count("--batch-size auto is for one process, and --devices asks for 2")) == (1, 1)


@pytest.mark.slow
def test_activations_computed_twice_make_the_same_run(ddetr, recipe, scenes, tmp_path):
    runs = []
    for setting in ("false", "true"):
        run = tmp_path / setting
        result = ddetr(
            "train", recipe, "--data", scenes, "--output", run, "--epochs", 1,
            "--set", f"activation_checkpointing={setting}",
        )  # fmt: skip
        assert result.code == 0, result.err
        assert ("computed twice instead of remembered: encoder, decoder" in result.err) == (setting == "true")
        runs.append(load_file(run / "best.safetensors"))
    assert all(torch.equal(runs[1][name], tensor) for name, tensor in runs[0].items())


def test_data_are_read_once_and_before_anything_else(ddetr, recipe, scenes, tmp_path, monkeypatch):
    reads = []
    load = coco.load
    monkeypatch.setattr(coco, "load", lambda file, **options: reads.append(file.parent.name) or load(file, **options))
    result = ddetr("train", recipe, "--data", scenes, "--output", tmp_path / "run", "--epochs", 1, "--no-report")
    assert result.code == 0, result.err
    assert reads == ["train", "val"]
    assert json.loads((tmp_path / "run" / "data.json").read_text())["path"] == str(scenes)


def test_a_leak_is_said(ddetr, recipe, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "data")
    for number in range(2):
        place = f"scene_0000{number}.jpg"
        shutil.copy(tmp_path / "data" / "train" / place, tmp_path / "data" / "val" / place)
    short = ("--epochs", 1, "--device", "cpu", "--no-report")
    result = ddetr("train", recipe, "--data", tmp_path / "data", "--output", tmp_path / "run", *short)
    assert "warning: 2 of 3 validation images are training images, too: AP on them rewards" in result.err
