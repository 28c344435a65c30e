"""Recipes compared in the same time: on networks of seconds."""

import json

import pytest

from benchmarks.accuracy import few_photos
from benchmarks.accuracy.few_photos import ARMS, BASELINE, Arm, config_of, epochs_of, table

TINY = {
    "model.backbone": "test_resnet",
    "model.num_levels": 2,
    "model.hidden_dim": 32,
    "model.num_heads": 2,
    "model.encoder_layers": 1,
    "model.decoder_layers": 2,
    "model.ffn_dim": 48,
    "model.num_queries": 11,
}


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_a_run(name):
    config = config_of(ARMS[name], "none", 160, 2)
    assert (config.run.seed, config.preprocessing.short_side, config.schedule.epochs) == (2, 160, "auto")
    assert (config.name == "small") == (ARMS[name].recipe == "small")
    others = [config_of(arm, "none", 160, 2) for key, arm in ARMS.items() if key != name]
    assert config not in others


def test_epochs_follow_from_the_cost(scenes):
    config = config_of(Arm(TINY), "none", 48, 0)
    whole = epochs_of(config, scenes, 1.0)
    assert whole > 10
    assert epochs_of(config, scenes, 1.25) == round(whole / 1.25)
    assert epochs_of(config, scenes, 1e9) == 1


def test_from_end_to_end(scenes, tmp_path, monkeypatch, capsys):
    arms = {BASELINE: Arm(TINY), "denoising": Arm({**TINY, "model.denoising_queries": 3})}
    monkeypatch.setattr(few_photos, "ARMS", arms)
    monkeypatch.setattr(few_photos, "STEPS", 1)
    command = [
        *(str(tmp_path), "--data", str(scenes), "--backbone-weights", "none", "--arms", *arms),
        *("--image-size", "48", "--epochs", "2"),
    ]
    few_photos.main([*command, "--minutes", "0"])  # no time for any
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["results"] == []
    costs = json.loads((tmp_path / "costs.json").read_text())
    few_photos.main(command)
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert {one["arm"] for one in results} == set(arms)
    assert {one["epochs"] for one in results} == {2}
    assert all(one["cpu_seconds"] > 0 for one in results)
    few_photos.main(command)  # all is there: nothing is trained or measured again
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["results"] == results
    assert json.loads((tmp_path / "costs.json").read_text()) == costs


def test_differences_are_of_the_same_seed():
    common = {"data": "photos", "epochs": 9, "ap50": 0.8}
    results = [
        {"arm": BASELINE, "seed": 0, "ap": 0.5, **common},
        {"arm": BASELINE, "seed": 1, "ap": 0.6, **common},
        {"arm": "mal", "seed": 1, "ap": 0.62, **common},
    ]
    first, second = table(results, {BASELINE: 2.0, "mal": 2.5})
    assert first == (BASELINE, "photos", "2", "9", "1.00", "55.0", "80.0", "+0.0")
    assert second == ("mal", "photos", "1", "9", "1.25", "62.0", "80.0", "+2.0")
