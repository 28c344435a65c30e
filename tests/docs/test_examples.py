"""The examples run, with less of everything."""

import importlib.util
import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("operator_alone", "own_model", "own_query_source", "train_and_predict")


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_examples_are_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(NAMES)


def test_operator_alone(capsys):
    assert load("operator_alone").main().shape == (2, 5, 4, 8)
    assert "backend reference: can run" in capsys.readouterr().out


def test_own_query_source(capsys):
    totals = load("own_query_source").main(steps=3)
    assert totals[-1] < totals[0]
    assert "without a gradient: none" in capsys.readouterr().out


def test_train_and_predict(tmp_path, capsys):
    report = load("train_and_predict").main(tmp_path, images=4, epochs=1)
    assert len(report.dataset) == 4
    assert 0 <= report.metrics.ap50 <= 1
    assert (tmp_path / "run" / "best.safetensors").is_file()
    assert "scenes it has not seen" in capsys.readouterr().out


def test_own_model(tmp_path, capsys):
    report = load("own_model").main(tmp_path, images=8, epochs=2)
    assert len(report.dataset) == 4
    assert 0 <= report.metrics.ap50 <= 1
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["model"] == {"name": "given", "class_name": "example_own_model.Cells", "num_classes": 3}
    assert "AP50 on 4 scenes it has not seen" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_every_example_says_how_to_run_it(name):
    assert f"python examples/{name}.py" in load(name).__doc__
