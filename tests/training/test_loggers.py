import importlib.util
import json
import sys
import types

import pytest

from deformable_detr.core.errors import ConfigError
from deformable_detr.runs.folder import RunFolder
from deformable_detr.training.loggers import chosen_services, open_service

SETTINGS = {"name": "tiny", "model": {"dropout": 0.1}}


class Wandb(types.ModuleType):
    """As much of wandb as is used; remembers everything."""

    def __init__(self):
        super().__init__("wandb")
        self.began, self.logged, self.ended = [], [], []
        self.__spec__ = importlib.util.spec_from_loader("wandb", loader=None)

    def init(self, **arguments):
        self.began.append(arguments)
        return types.SimpleNamespace(
            id=arguments["id"] or "w1",
            log=lambda numbers, step: self.logged.append((step, numbers)),
            finish=lambda exit_code: self.ended.append(exit_code),
        )


class Mlflow(types.ModuleType):
    def __init__(self):
        super().__init__("mlflow")
        self.calls = []
        self.__spec__ = importlib.util.spec_from_loader("mlflow", loader=None)

    def set_experiment(self, name):
        self.calls.append(("experiment", name))

    def start_run(self, run_id=None, run_name=None):
        self.calls.append(("start", run_id, run_name))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "m1"))

    def log_params(self, parameters):
        self.calls.append(("parameters", parameters))

    def log_metrics(self, metrics, step):
        self.calls.append(("metrics", metrics, step))

    def end_run(self, status):
        self.calls.append(("end", status))


@pytest.fixture
def wandb(monkeypatch):
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


@pytest.fixture
def mlflow(monkeypatch):
    module = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return module


def test_tensorboard_is_the_default_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tensorboard" or None)
    assert chosen_services(None) == ("tensorboard",)
    assert chosen_services([]) == ()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert chosen_services(None) == ()


@pytest.mark.parametrize(
    ("name", "title"), [("tensorboard", "TensorBoard"), ("wandb", "Weights & Biases"), ("mlflow", "MLflow")]
)
def test_what_is_wanted_and_missing_shows_before_any_work(monkeypatch, name, title):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"{title} is not installed; `pip install {name}`"):
        chosen_services([name])


def test_an_unknown_service_is_named(wandb, mlflow):
    assert chosen_services(["wandb", "mlflow", "wandb"]) == ("wandb", "mlflow")
    with pytest.raises(ConfigError, match="cannot log to 'wandbb'; there are tensorboard, wandb, mlflow"):
        chosen_services(["wandbb"])


def test_weights_and_biases_gets_figures_settings_and_the_same_run_again(wandb, tmp_path):
    folder = RunFolder(tmp_path / "run-7")
    folder.path.mkdir()
    service = open_service("wandb", folder, SETTINGS, pytest.fail)
    service.log({"epoch/val/ap": 0.5}, 12)
    service.close(failed=False)
    first = wandb.began[0]
    assert (first["project"], first["name"], first["id"]) == ("deformable-detr", "run-7", None)
    assert (first["config"], first["resume"]) == (SETTINGS, "allow")
    assert wandb.logged == [(12, {"epoch/val/ap": 0.5})]
    assert wandb.ended == [0]
    open_service("wandb", folder, SETTINGS, pytest.fail).close(failed=True)
    assert wandb.began[1]["id"] == "w1"
    assert wandb.ended == [0, 1]


def test_mlflow_gets_figures_settings_and_the_same_run_again(wandb, mlflow, tmp_path):
    folder = RunFolder(tmp_path / "run-8")
    folder.path.mkdir()
    open_service("wandb", folder, SETTINGS, pytest.fail)
    service = open_service("mlflow", folder, SETTINGS, pytest.fail)
    service.log({"epoch/val_per_class/a&b: été/ap": 0.5}, 3)
    service.close(failed=False)
    assert mlflow.calls == [
        ("experiment", "deformable-detr"),
        ("start", None, "run-8"),
        ("parameters", {"name": "tiny", "model.dropout": 0.1}),
        ("metrics", {"epoch/val_per_class/a_b_ été/ap": 0.5}, 3),
        ("end", "FINISHED"),
    ]
    assert json.loads(folder.services.read_text()) == {"wandb": "w1", "mlflow": "m1"}
    mlflow.calls.clear()
    open_service("mlflow", folder, SETTINGS, pytest.fail).close(failed=True)
    assert mlflow.calls == [("experiment", "deformable-detr"), ("start", "m1", "run-8"), ("end", "FAILED")]


@pytest.mark.parametrize("moment", ["init", "log", "finish"])
def test_a_service_that_fails_is_said_once_and_left_alone(wandb, tmp_path, monkeypatch, moment):
    calls = []

    def fail(*_, **__):
        calls.append(moment)
        raise RuntimeError("no\nnetwork")

    if moment == "init":
        monkeypatch.setattr(wandb, "init", fail)
    else:
        run = types.SimpleNamespace(id="w1", log=lambda *_, **__: None, finish=lambda **__: None)
        setattr(run, moment, fail)
        monkeypatch.setattr(wandb, "init", lambda **_: run)
    said = []
    service = open_service("wandb", RunFolder(tmp_path), {}, said.append)
    for step in range(3):
        service.log({"loss": 1.0}, step)
    service.close(failed=False)
    assert len(calls) == 1
    (line,) = said
    assert line.startswith("Weights & Biases failed and gets no more metrics (RuntimeError: no network)")


def test_ctrl_c_in_a_service_is_still_ctrl_c(wandb, tmp_path, monkeypatch):
    def stop(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(wandb, "init", stop)
    with pytest.raises(KeyboardInterrupt):
        open_service("wandb", RunFolder(tmp_path), {}, pytest.fail)


def test_tensorboard_writes_nothing_before_there_are_figures(tmp_path):
    pytest.importorskip("tensorboard")
    service = open_service("tensorboard", RunFolder(tmp_path), {}, pytest.fail)
    service.close(failed=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("known", ["w1", "exp 1", "run+a", "größe-1", "x" * 128])
def test_an_id_that_the_service_gave_is_used_again(wandb, tmp_path, known):
    folder, said = RunFolder(tmp_path), []
    folder.services.write_text(json.dumps({"wandb": known}))
    open_service("wandb", folder, SETTINGS, said.append)
    assert (wandb.began[0]["id"], said) == (known, [])


@pytest.mark.parametrize("strange", ["a/b", "a?b", 7, "", "a\nb", "x" * 200, ["w1"], {}])
def test_an_id_of_a_strange_hand_is_not_passed_on(wandb, tmp_path, strange):
    folder, said = RunFolder(tmp_path), []
    folder.services.write_text(json.dumps({"wandb": strange}))
    open_service("wandb", folder, SETTINGS, said.append)
    assert wandb.began == []
    (line,) = said
    assert "services.json: the id at Weights & Biases is " in line
    assert "; take the line out" in line
    assert len(line) < 600
