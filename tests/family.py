"""The models of the package, each as small as it can be: what one of them can do, all of them can.

A new model is one line in `FAMILY`, and one in `LAYOUTS` if files of others hold it.
"""

from deformable_detr.models import DeformableDETRConfig, DETRConfig, DINOConfig, ModelConfig

_BACKBONE = {
    "backbone": "test_resnet",
    "backbone_weights": "none",
    "frozen_stages": 0,
    "frozen_batch_norm": False,
}
_LAYERS = {"hidden_dim": 32, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 48, "num_queries": 11}
FAMILY: dict[str, ModelConfig] = {
    "deformable_detr": DeformableDETRConfig(
        variant="refine", num_levels=2, encoder_points=2, decoder_points=3, **_BACKBONE, **_LAYERS
    ),
    "detr": DETRConfig(**_BACKBONE, **_LAYERS),
    "dino": DINOConfig(num_levels=2, encoder_points=2, decoder_points=3, denoising_queries=4, **_BACKBONE, **_LAYERS),
}
"""Settings of the smallest network of each model, by the model's name; the backbone has random weights that learn."""
LAYOUTS: dict[str, tuple[str, ...]] = {
    "deformable_detr": ("transformers",),
    "detr": ("transformers",),
    "dino": (),
}
"""Published layouts that can hold such a small network; official files know the backbones of the authors alone."""
