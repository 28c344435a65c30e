import pytest

from deformable_detr.models import DINOConfig


@pytest.fixture(scope="session")
def small_dino():
    """The backbone is as published, since no other has a published form; the rest is small."""
    return DINOConfig(
        hidden_dim=64,
        num_heads=8,
        encoder_layers=1,
        decoder_layers=2,
        encoder_points=3,
        ffn_dim=48,
        num_queries=11,
        proposals="paper",
    )
