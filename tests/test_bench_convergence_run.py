"""A stage goes on where it was stopped, gives the same as without a stop, and two processes share it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.accuracy.convergence import analysis, arms, run, scenes
from benchmarks.accuracy.convergence.place import Place, read_lines
from benchmarks.accuracy.convergence.watch import End, Watch, seconds_until

TINY = ["model.backbone=test_resnet", "model.hidden_dim=32", "model.ffn_dim=48", "model.encoder_layers=1"]
TINY += ["model.decoder_layers=2", "model.num_queries=9"]
SCENES = ["--variant", "easy", "--train", "8", "--val", "3", "--test", "0"]


def begin(folder):
    scenes.main([str(folder / "data"), *SCENES])
    return folder


def command(stage, folder, *options):
    return [stage, "--folder", str(folder), "--backbone-weights", "none", "--epochs", "6", *options, "--set", *TINY]


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_end_comes_with_time_or_when_asked():
    end = End(None)
    assert not end.has_come
    end.asked = True
    assert end.has_come
    assert End(0.0).has_come
    assert not End(10.0).has_come


def test_the_watch_writes_epochs_and_stops(tmp_path):
    end = End(None)
    watch = Watch(tmp_path / "clock.jsonl", end, "arm")
    watch.say("chosen for these data: nothing")
    watch.update("epoch 1/3", 1, 2)
    watch.say("epoch 1/3  loss 1.00")
    end.asked = True
    with pytest.raises(KeyboardInterrupt):
        watch.update("epoch 2/3", 1, 2)
    watch.note(None)
    lines = read_lines(tmp_path / "clock.jsonl")
    assert [line["epoch"] for line in lines] == [1, None]
    assert all(line["wall_seconds"] >= 0 and line["cpu_seconds"] >= 0 for line in lines)


def test_seconds_add_up_over_stops(tmp_path):
    path = tmp_path / "clock.jsonl"
    # Stopped in epoch 2; killed between saving epoch 3 and its line.
    lines = [(1, 2.0), (None, 0.5), (2, 1.0), (4, 6.0)]
    path.write_text("".join(json.dumps({"epoch": e, "cpu_seconds": s, "wall_seconds": 2 * s}) + "\n" for e, s in lines))
    assert [row["cpu_seconds"] for row in seconds_until(path, 4)] == [2.0, 3.5, 9.5, 9.5]
    assert [row["wall_seconds"] for row in seconds_until(path, 2)] == [4.0, 7.0]


def test_rates_are_chosen_once_and_by_the_best(tmp_path):
    place = Place(tmp_path)
    grid = arms.grid_arms("detr", 8)
    assert [arm.epochs for arm in grid] == [2, 2, 2]
    for arm, ap in zip(grid[:2], (0.2, 0.3), strict=True):
        place.result(arm).write_text(json.dumps({"best": {"ap": ap}}))
    assert place.rates(8) == {}
    place.result(grid[2]).write_text(json.dumps({"best": {"ap": 0.3}}))
    assert place.rates(8) == {"detr": 1.0}  # of equals the default
    place.result(grid[0]).write_text(json.dumps({"best": {"ap": 0.9}}))
    assert place.rates(8) == {"detr": 1.0}
    assert json.loads((tmp_path / "rates.json").read_text())["detr"]["tried"] == {"0.5": 0.2, "1": 0.3, "2": 0.3}


def test_a_folder_has_one_set_of_settings(tmp_path):
    place = Place(tmp_path)
    place.claim_settings({"epochs": 6, "settings": []})
    place.claim_settings({"epochs": 6, "settings": []})
    with pytest.raises(SystemExit, match="begun with epochs 6, and this is 8"):
        place.claim_settings({"epochs": 8, "settings": []})


def test_another_process_is_left_alone(tmp_path):
    place = Place(tmp_path)
    arm = arms.Arm("detr", 2, 1.0, 0)
    hold = (
        "import sys; from pathlib import Path\n"
        "from benchmarks.accuracy.convergence.place import Place\n"
        "from benchmarks.accuracy.convergence.arms import Arm\n"
        "with Place(Path(sys.argv[1])).alone_with(Arm('detr', 2, 1.0, 0)) as alone:\n"
        "    print(alone, flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "True\n"
        with place.alone_with(arm) as alone:
            assert not alone
        with place.alone_with(arm._replace(seed=1)) as alone:
            assert alone
        os.kill(other.pid, signal.SIGKILL)  # a process that is gone holds nothing
        other.wait()
        with place.alone_with(arm) as alone:
            assert alone
            assert str(os.getpid()) in (tmp_path / "locks" / arm.name / ".lock").read_text()
    finally:
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()


@pytest.mark.slow
def test_a_stopped_stage_goes_on_to_the_same_end(tmp_path, capsys, monkeypatch):
    whole, stopped = (begin(tmp_path / name) for name in ("whole", "stopped"))
    run.main(command("pilot", whole))
    assert last_line(capsys) == {"stage": "pilot", "finished": 2, "left": []}
    results = {one["arm"]: one for one in Place(whole).results()}
    assert results.keys() == {"two_stage_1_x1_s0", "detr_2_x1_s0"}
    detr = results["detr_2_x1_s0"]
    assert [row["epoch"] for row in detr["rows"]] == [1, 2]
    assert 0 < detr["rows"][0]["cpu_seconds"] < detr["rows"][1]["cpu_seconds"] < 100
    assert set(detr["best"]["ap50_per_class"]) == {"disc", "triangle", "cross"}
    assert detr["best"]["by_size"]["ap_small"] == -1  # none of them is small
    assert detr["config"]["model.backbone_weights"] == "none"
    assert not list((whole / "runs" / "detr_2_x1_s0").glob("last*"))

    # Stopped after every third step.
    count = 0

    def soon(self, stage, done, total, details=""):
        nonlocal count
        count += 1
        if count % 3 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "update", soon)
    for _ in range(40):
        run.main(command("pilot", stopped))
        if not last_line(capsys)["left"]:
            break
    else:
        pytest.fail("it does not end")
    assert count > 6
    for one in Place(stopped).results():
        same = results[one["arm"]]
        assert [(row["ap"], row["loss"]) for row in one["rows"]] == [(row["ap"], row["loss"]) for row in same["rows"]]
        for folder in ("detections",):
            name = f"{one['arm']}.json.gz"
            assert (whole / folder / name).read_bytes() == (stopped / folder / name).read_bytes()
    before = {path.name: path.stat().st_mtime_ns for path in (whole / "results").iterdir()}
    run.main(command("pilot", whole))
    assert {path.name: path.stat().st_mtime_ns for path in (whole / "results").iterdir()} == before
    with pytest.raises(SystemExit, match="begun with"):
        run.main(command("pilot", whole, "--epochs", "8"))


@pytest.mark.slow
def test_all_stages_and_their_analysis(tmp_path, capsys, monkeypatch):
    # A few of all: every further one takes seconds and nothing new.
    monkeypatch.setattr(arms, "FACTORS", (1.0, 2.0))
    monkeypatch.setattr(arms, "TABLE_2", ("inputs_k4", "full_k1", "base"))
    monkeypatch.setattr(analysis, "TABLE_2", arms.TABLE_2)
    few = [("detr", 2), ("base", 5), ("dino", 10), ("detr_focal", 1)]
    every = arms._others
    monkeypatch.setattr(
        arms,
        "_others",
        lambda stage, seed: (
            [(family, divisor, seed) for family, divisor in few] if stage == "curves" else every(stage, seed)
        ),
    )
    folder = begin(tmp_path)
    with pytest.raises(SystemExit, match="run the stage grid first"):
        run.main(command("curves", folder))
    with pytest.raises(SystemExit, match="no finished arm"):
        analysis.main(["--folder", str(folder)])
    for stage in ("grid", "curves", "table2", "yardstick"):
        run.main(command(stage, folder, "--seeds", "1"))
        assert last_line(capsys)["left"] == []
    assert json.loads((folder / "rates.json").read_text()).keys() == {"detr", "deformable", "faster_rcnn"}
    analysis.main(["--folder", str(folder), "--replicates", "20"])
    line = last_line(capsys)
    labels = [one["label"] for one in line["cells"]]
    assert len(labels) == len(set(labels))
    assert {"DETR, 6 epochs", "Deformable DETR, 1 epoch", "DINO, 1 epoch", "Faster R-CNN, 3 epochs"} <= set(labels)
    assert [one["family"] for one in line["table2"]] == ["inputs_k4", "base", "full_k1"]
    assert line["threshold"]["family"] == "detr"
    assert len(line["images"]) == len(labels)
    table = (folder / "table.md").read_text()
    assert all(f"| {label} |" in table for label in labels)
    assert "DETR's best: " in table
    assert all((folder / name).stat().st_size > 10_000 for name in ("epochs.png", "seconds.png"))


@pytest.mark.slow
def test_sigterm_stops_it_and_the_plan_adds_up(tmp_path, capsys):
    folder = begin(tmp_path)
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.accuracy.convergence.run", *command("pilot", folder), "run.log_every=1"],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    metrics = folder / "runs" / "detr_2_x1_s0" / "metrics.jsonl"
    for _ in range(1200):
        if metrics.exists() or child.poll() is not None:
            break
        time.sleep(0.05)
    child.terminate()
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert json.loads(out.splitlines()[-1])["stage"] == "pilot"
    run.main(command("plan", folder, "--steps", "1"))
    line = last_line(capsys)
    assert set(line["costs"]) == {*arms.FAMILIES, arms.FASTER_RCNN}
    assert all(cost["step"] > 0 and cost["picture"] > 0 for cost in line["costs"].values())
    grid = arms.arms_of("grid", 6, 5, {})
    steps = {family: 2 * cost["step"] + 3 * cost["picture"] for family, cost in line["costs"].items()}
    expected = sum(arm.epochs * steps[arm.family] for arm in grid) / 3600
    assert line["stages"]["grid"]["core_hours"] == pytest.approx(expected)
    # Arms of the curves that the ablation has, too, are trained once.
    rates = dict.fromkeys(arms.TUNED, 1.0)
    curves, ablation = (arms.arms_of(stage, 6, 5, rates) for stage in ("curves", "table2"))
    assert line["stages"]["curves"]["arms"] == len(curves)
    assert line["stages"]["table2"]["arms"] == len(set(ablation) - set(curves)) < len(ablation)
