"""Names as they stand in the files of other models."""

import pytest
import torch
import torchvision

from deformable_detr.models import DeformableDETRConfig, build
from deformable_detr.weights.foreign import whose
from deformable_detr.weights.huggingface.keys import to_transformers_keys
from deformable_detr.weights.official.keys import to_official_keys

RESNET = ["backbone.0.body.conv1.weight", "backbone.0.body.layer1.0.conv1.weight"]
NAMES = {
    "DETR with attention that is not": [
        "transformer.encoder.layers.0.self_attn.in_proj_weight",
        "transformer.decoder.norm.weight",
        "class_embed.weight",
        "bbox_embed.layers.0.weight",
        "input_proj.weight",
        *RESNET,
    ],
    "segmentation head": ["detr.transformer.level_embed", "detr.class_embed.0.bias", "mask_head.lay1.weight"],
    "learned position": ["transformer.level_embed", "class_embed.0.bias", "backbone.1.row_embed.weight", *RESNET],
    "DINO": [
        "transformer.level_embed",
        "transformer.tgt_embed.weight",
        "transformer.decoder.ref_point_head.layers.0.weight",
        "class_embed.0.weight",
        "label_enc.weight",
    ],
    "DAB-DETR": ["transformer.decoder.ref_point_head.layers.0.weight", "refpoint_embed.weight", "class_embed.weight"],
    "detrex": ["backbone.stem.conv1.weight", "neck.convs.0.conv.weight", "transformer.level_embeds"],
    "mmdetection": ["backbone.layer1.0.conv1.weight", "neck.convs.0.conv.weight", "bbox_head.cls_branches.0.weight"],
    "detectron2": ["backbone.bottom_up.stem.conv1.weight", "proposal_generator.rpn_head.conv.weight"],
    "YOLO": ["model.0.conv.weight", "model.22.cv2.0.0.conv.weight"],
}


@pytest.mark.parametrize("kind", NAMES)
def test_relatives_are_known(kind):
    assert kind in whose(NAMES[kind])


def test_a_resnet_alone_is_what_torchvision_has():
    with torch.device("meta"):
        names = torchvision.models.resnet50(weights=None).state_dict()
    assert whose(names) == "a ResNet alone; train with --backbone-weights FILE to start from it"


def test_this_model_is_nobody_elses():
    for variant in ("base", "refine", "two_stage"):
        config = DeformableDETRConfig(variant=variant)
        with torch.device("meta"):
            own = build(config, load_backbone_weights=False).state_dict()
        assert whose(to_official_keys(own, config)) is None
        assert "a model of transformers" in whose(to_transformers_keys(own, config))
    assert whose([]) is None
    assert whose(["fc.weight"]) is None
