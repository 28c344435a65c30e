import json

import pytest

from deformable_detr.runs import recipes
from deformable_detr.training import demo
from deformable_detr.training.demo import NumScenes


@pytest.fixture
def _tiny(monkeypatch, tiny_config):
    monkeypatch.setattr(recipes, "demo", lambda: tiny_config.with_settings(epochs=3))
    original = demo.demo
    few = NumScenes(train=4, val=2, unseen=2)
    monkeypatch.setattr(demo, "demo", lambda *a, **k: original(*a, scenes=few, **k))


@pytest.mark.usefixtures("_tiny")
def test_the_summary_is_for_people_and_the_numbers_for_machines(ddetr, tmp_path):
    result = ddetr("demo", "--output", tmp_path / "demo", "--epochs", 1, "--device", "cpu", "--seed", 5)
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert (record["folder"], len(record["metrics"])) == (str(tmp_path / "demo"), 12)
    assert "# Demonstration" in result.err
    config = json.loads((tmp_path / "demo" / "run" / "config.json").read_text())
    assert (config["run"]["seed"], config["schedule"]["epochs"]) == (5, 1)


def test_ctrl_c_is_code_130(ddetr, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "demo", lambda *a, **k: None)
    result = ddetr("demo", "--output", tmp_path / "demo")
    assert (result.code, "stopped" in result.err) == (130, True)
