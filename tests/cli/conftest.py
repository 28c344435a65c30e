"""The command as the shell calls it, within this process."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from deformable_detr.cli.main import run
from deformable_detr.core.config import to_dict
from deformable_detr.inference.detector import Detector
from deformable_detr.runs.config import TrainConfig
from deformable_detr.weights.checkpoint import Checkpoint, save


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def ddetr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """ddetr("train", "--data", folder) -> exit code, standard output and standard error."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["ddetr", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run()
        code = left.value.code or 0
        assert isinstance(code, int)
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def recipe(tiny_config: TrainConfig, tmp_path: Path) -> Path:
    """The tiny config as a file that `ddetr train` takes."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(to_dict(tiny_config)))
    return path


@pytest.fixture
def weights(detector: Detector, tiny_config: TrainConfig, tmp_path: Path) -> Path:
    """An untrained checkpoint of the classes of `scenes`."""
    path = tmp_path / "weights.safetensors"
    save(
        Checkpoint(
            weights=detector.model.state_dict(),
            model=replace(tiny_config.model, num_classes=3),
            classes=detector.classes,
            category_ids=detector.category_ids,
            preprocessing=detector.preprocessing,
        ),
        path,
    )
    return path


@pytest.fixture
def nan_weights(weights: Path, tmp_path: Path) -> Path:
    """The checkpoint with one weight that is no number."""
    with safe_open(weights, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["encoder.layers.0.ffn.linear1.weight"][3, 5] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors", metadata)
    return tmp_path / "nan.safetensors"
