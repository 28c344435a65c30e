import pytest
import torch

from deformable_detr.models import MODELS, DINOConfig


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


@pytest.fixture(scope="session")
def weights_of():
    """Each parameter another part of the same numbers: none is like another, and a file of all of them is small."""

    def make(config):
        with torch.device("meta"):
            own = MODELS.build(config, load_backbone_weights=False).state_dict()
        largest = max(tensor.numel() for tensor in own.values())
        pool = torch.randn(largest + len(own), generator=torch.Generator().manual_seed(0))
        return {
            name: pool[start : start + tensor.numel()].view(tensor.shape)
            for start, (name, tensor) in enumerate(own.items())
        }

    return make
