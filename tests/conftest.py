"""What every test shares: one thread each, and the recorded figures where they lie beside the checkout."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder of recorded figures and data sets; the test is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip("no recorded figures beside this checkout")
    return SHARED


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
