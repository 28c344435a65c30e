import json
import os
import signal
from dataclasses import replace

import pytest

from deformable_detr import loop
from deformable_detr.cli.train import chosen_config
from deformable_detr.errors import ConfigError
from deformable_detr.recipes import small


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


def test_ctrl_c_says_where_and_how_to_go_on(ddetr, recipe, scenes, tmp_path, monkeypatch):
    take = loop._take_step

    def step(session, batch):
        os.kill(os.getpid(), signal.SIGINT)
        return take(session, batch)

    monkeypatch.setattr(loop, "_take_step", step)
    result = ddetr("train", recipe, "--data", scenes, "--output", tmp_path / "run", "--device", "cpu")
    assert result.code == 130
    assert f"the weights so far are in {tmp_path / 'run' / 'last.safetensors'}" in result.err
    assert f"ddetr train --resume {tmp_path / 'run'}" in result.err
    assert json.loads(result.out)["interrupted"] is True


def test_usage_errors(ddetr, scenes, tmp_path):
    result = ddetr("train")
    assert (result.code, "--data" in result.err) == (2, True)
    result = ddetr("train", "small", "--resume", tmp_path, "--lr", 1e-4)
    assert (result.code, "RECIPE" in result.err, "--lr" in result.err) == (2, True, True)
    assert ddetr("train", "--data", scenes, "--epochs", 0).code == 2
    assert ddetr("train", "--data", scenes, "--format", "tfrecord").code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "num_querys=3"], "unknown setting num_querys; did you mean model.num_queries?"),
        (["--set", "model.num_querys=3"], "did you mean model.num_queries?"),
        (["--set", "model.num_classes=3"], "model.num_classes comes from the data"),
        (["--set", "batch_size=many"], "setting batch_size is 'many'; it must be an integer"),
        (["smal"], "did you mean small?"),
        (["--device", "cuda:77"], "device 'cuda:77' is not here"),
        (["--backbone-weights", "nope.pth"], "no such file of backbone weights: nope.pth"),
        (["--lr", "0"], "optimizer.lr is 0"),
    ],
)
def test_what_cannot_be_is_one_line_and_code_1(ddetr, scenes, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = ddetr("train", *arguments, "--data", scenes)
    assert (result.code, result.out) == (1, "")
    assert message in result.err.splitlines()[-1]
    assert result.err.splitlines()[-1].startswith("Error: ")


def test_options_change_the_config_and_settings_come_last():
    assert chosen_config("small", settings=[]) == small()
    config = chosen_config(
        "small",
        epochs=3,
        batch_size=8,
        lr=1e-3,
        image_size=160,
        seed=5,
        workers=0,
        backbone="resnet18",
        backbone_weights="none",
        skip_bad_images=True,
        settings=["batch_size=2", "model.dropout=0.3"],
    )
    assert (config.epochs, config.batch_size, config.seed, config.num_workers) == (3, 2, 5, 0)
    assert (config.optimizer.lr, config.optimizer.lr_batch_size) == (1e-3, None)
    assert (config.preprocessing.short_side, max(config.augmentation.short_sides)) == (160, 160)
    assert (config.model.backbone, config.model.frozen_stages, config.model.dropout) == ("resnet18", 0, 0.3)
    assert config.skip_bad_images
    assert replace(config, seed=0).seed == 0


def test_a_setting_of_the_data_cannot_be_set():
    with pytest.raises(ConfigError, match="comes from the data"):
        chosen_config("small", settings=[" model.num_classes =3"])


def test_an_augmentation_by_name_follows_the_image_size_and_settings_come_last():
    config = chosen_config("small", image_size=160, augment="strong", settings=["augmentation.mosaic=0.25"])
    assert max(config.augmentation.short_sides) == 160
    assert (config.augmentation.mosaic, config.augmentation.mixup) == (0.25, 0.15)
    assert chosen_config("small", augment="paper", settings=[]) == small()
    with pytest.raises(ConfigError, match="no augmentation called 'weak'"):
        chosen_config("small", augment="weak", settings=[])
