"""Small networks with attention to read, and what a forward pass of them records."""

import torch

from deformable_detr.models import MODELS, DeformableDETRConfig, DETRConfig, DINOConfig
from deformable_detr.models.layers.recording import recording

_SMALL = {
    "num_classes": 5,
    "backbone": "test_resnet",
    "backbone_weights": "none",
    "frozen_stages": 0,
    "frozen_batch_norm": False,
    "hidden_dim": 32,
    "num_heads": 2,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "ffn_dim": 48,
    "num_queries": 11,
}
_POINTS = {"num_levels": 3, "encoder_points": 2, "decoder_points": 3}
DEFORMABLE = {
    "base": DeformableDETRConfig(**_SMALL, **_POINTS),
    "refine": DeformableDETRConfig(variant="refine", **_SMALL, **_POINTS),
    "two_stage": DeformableDETRConfig(variant="two_stage", proposals="distinct", **_SMALL, **_POINTS),
    "dino": DINOConfig(**_SMALL, **_POINTS),
}
"""Settings of networks with sampling points, by name."""
ALL = {**DEFORMABLE, "detr": DETRConfig(**_SMALL)}
"""Settings of all networks, by name."""


def network_of(name, dtype=torch.float32):
    """Network in evaluation mode; its weights are shaken, so that no head and no offset starts at zero or alike."""
    torch.manual_seed(3)
    network = MODELS.build(ALL[name]).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return network.to(dtype)


def images_of(dtype=torch.float32, padded=True):
    """Two images of 96 x 128 pixels with their padding mask: the first is whole, the second may be padded."""
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    if padded:
        mask[1, 70:], mask[1, :, 90:] = True, True
        images[1] = images[1].masked_fill(mask[1], 0.0)
    return images, mask


def recorded(name, dtype=torch.float32):
    """Network, its output and its recording for one image without padding."""
    network = network_of(name, dtype)
    images, mask = images_of(dtype, padded=False)
    with torch.no_grad(), recording(network) as record:
        output = network(images[:1], mask[:1])
    return network, output, record
