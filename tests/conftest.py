"""What every test shares: one thread each, and the recorded figures where they lie beside the checkout."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deformable_detr.data.augmentation.settings import Augmentation
from deformable_detr.data.synthetic import SceneStyle, draw_scenes
from deformable_detr.inference.detector import Detector
from deformable_detr.models import DeformableDETRConfig, build
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.recipes import with_image_size

torch.set_num_threads(1)
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder of recorded figures and data sets; the test is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip("no recorded figures beside this checkout")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def _signals_of_a_shell() -> Iterator[None]:
    """Signals as a command has them in the foreground, also where the tests run in the background or under nohup."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if hasattr(signal, "SIGHUP"):
        usual[signal.SIGHUP] = signal.SIG_DFL
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Same random numbers for every test, and one thread, which no test may leave otherwise: sums would differ."""
    torch.manual_seed(0)
    yield
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert threads == 1, "a test has left another number of threads"


@pytest.fixture(scope="session")
def tiny_config() -> TrainConfig:
    """A run of seconds: a backbone of timm's own tests, two levels, pictures of 48 pixels, all in this process."""
    model = DeformableDETRConfig(
        variant="two_stage",
        backbone="test_resnet",
        backbone_weights="none",
        frozen_stages=0,
        frozen_batch_norm=False,
        num_levels=2,
        hidden_dim=32,
        num_heads=2,
        encoder_layers=1,
        decoder_layers=2,
        encoder_points=2,
        decoder_points=3,
        ffn_dim=48,
        num_queries=11,
        dropout=0.1,
    )
    config = TrainConfig(name="tiny", model=model).with_settings(epochs=2, batch_size=3, num_workers=0, log_every=1)
    return with_image_size(replace(config, augmentation=Augmentation(crop_probability=0.0)), 48)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn data set of three classes: 8 pictures to train on, 3 to judge by. Not to be written to."""
    style = SceneStyle(size_wh=(90, 60), classes=("disc", "square", "star"), most_objects=3)
    return draw_scenes(tmp_path_factory.mktemp("scenes"), 8, 3, seed=3, style=style)


@pytest.fixture
def detector(tiny_config: TrainConfig) -> Detector:
    """An untrained one of three classes with category ids of their own, on the CPU."""
    model = build(replace(tiny_config.model, num_classes=3))
    return Detector(model, ("disc", "square", "star"), (1, 2, 3), tiny_config.preprocessing, device="cpu")
