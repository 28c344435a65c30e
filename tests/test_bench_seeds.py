"""Runs of several seeds are told apart from runs of several settings, and their figures are those of `evaluate`."""

import json
import shutil

import pytest
import torch

import deformable_detr
from benchmarks.accuracy import seeds
from deformable_detr.training.state import trained_weights
from deformable_detr.weights import checkpoint as checkpoints


@pytest.fixture(scope="module")
def photos(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds") / "photos"
    shutil.copytree(scenes, folder)
    shutil.copytree(folder / "val", folder / "test")
    return folder


@pytest.fixture(scope="module")
def runs(photos, tiny_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed in (5, 3):
        config = tiny_config.with_settings(seed=seed, ema_decay=0.9)
        deformable_detr.train(config, data=photos, output=folder / f"run{seed}", device="cpu")
    return [folder / "run5", folder / "run3"]


@pytest.mark.slow
def test_from_end_to_end(photos, runs, tmp_path, capsys):
    output = tmp_path / "results"
    seeds.main([*map(str, runs), "--data", str(photos), "--output", str(output), "--threads", "1"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["seed"] for one in line["runs"]] == [5, 3]
    assert {"torch", "processor", "commit", "threads"} <= line.keys()
    for run, one in zip(runs, line["runs"], strict=True):
        rows = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
        by_epoch = {row["epoch"]: row["val"] for row in rows if row["kind"] == "epoch"}
        measured = one["measured"]["val"]
        for name, epoch in (("best", one["best_epoch"]), ("averaged", 2)):
            assert measured[name]["ap"] == pytest.approx(by_epoch[epoch]["ap"], abs=1e-6)
        assert one["measured"]["test"]["best"] == measured["best"]  # these are the same images
        assert 0 < one["minutes"] < 10
    assert sorted(path.name for path in output.iterdir()) == ["curves.png", "seed_3", "seed_5", "table.md"]
    assert json.loads((output / "seed_3" / "config.json").read_text())["run"]["seed"] == 3
    kept = (output / "seed_3" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(text)["epoch"] for text in kept] == [1, 2]
    assert (output / "table.md").read_text().count("\n| all |") == 2
    assert (output / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_weights_as_trained_are_not_their_average(runs):
    saved = checkpoints.load(runs[0] / "last.safetensors", training=True)
    trained = trained_weights(saved)
    assert trained.keys() == saved.weights.keys()
    assert any(not torch.equal(tensor, saved.weights[name]) for name, tensor in trained.items())


def test_other_settings_and_equal_seeds_are_refused(runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    with pytest.raises(SystemExit, match=r"seeds are \[3, 3\]"):
        seeds.check_same([runs[1], other])
    config = json.loads((other / "config.json").read_text())
    config["optimizer"]["base_lr"] *= 2
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=r"differ in optimizer\.base_lr, not in the seed alone"):
        seeds.check_same([runs[0], other])


def test_a_run_that_has_not_ended_is_refused(photos, runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"schedule": config["schedule"] | {"epochs": 4}}))
    with pytest.raises(SystemExit, match="has 2 of 4 epochs; ddetr train --resume"):
        seeds.judge_run(other, photos)


def test_the_tables():
    def one(seed, ap):
        figures = {"ap": ap, "ap50": 2 * ap, "ap50_per_class": {"disc": 2 * ap}}
        measured = {"val": {"best": figures, "averaged": figures, "trained": {**figures, "ap": ap - 0.01}}}
        return {"seed": seed, "epochs": 9, "best_epoch": 8, "minutes": 10.0 + seed, "measured": measured}

    assert seeds.tables([one(0, 0.3), one(1, 0.32), one(2, 0.34)]).splitlines() == [
        "| val, seed | best epoch | minutes | AP | AP50 | disc |",
        "|---|---:|---:|---:|---:|---:|",
        "| 0 | 8 of 9 | 10 | 30.0 | 60.0 | 60.0 |",
        "| 1 | 8 of 9 | 11 | 32.0 | 64.0 | 64.0 |",
        "| 2 | 8 of 9 | 12 | 34.0 | 68.0 | 68.0 |",
        "| all | | 11 | 32.0 ± 2.0 | 64.0 ± 4.0 | 64.0 ± 4.0 |",
        "",
        "| weights of the last step | val AP | AP50 |",
        "|---|---:|---:|",
        "| averaged | 32.0 ± 2.0 | 64.0 ± 4.0 |",
        "| as trained | 31.0 ± 2.0 | 64.0 ± 4.0 |",
    ]
