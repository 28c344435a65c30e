"""Whatever the layout, the same checkpoint comes out."""

import pytest

from deformable_detr.errors import CheckpointError
from deformable_detr.weights import read


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no such checkpoint file: .*gone.safetensors"):
        read(tmp_path / "gone.safetensors")
