"""One tiny model of random weights for each family of transformers that does multi-scale deformable attention."""

import copy
import functools
from typing import Any, NamedTuple

import pytest
import torch

TEXT_LENGTH = 5


class Family(NamedTuple):
    """A model, what it is called with, and the names of its attention modules as `accelerate` reports them."""

    model: torch.nn.Module
    inputs: dict[str, Any]
    attentions: tuple[str, ...]


def resnet(T):
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    return T.ResNetConfig(**sizes, out_features=["stage2", "stage3", "stage4"])


def rt_resnet(T):
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    return T.RTDetrResNetConfig(**sizes, out_features=["stage2", "stage3", "stage4"])


def hgnet(T, first_stage=2):
    return T.HGNetV2Config(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 12, 16],
        stage_mid_channels=[4, 4, 6, 8],
        stage_out_channels=[8, 12, 16, 20],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        out_features=[f"stage{stage}" for stage in range(first_stage, 5)],
    )


def swin(T, first_stage):
    stages = [f"stage{stage}" for stage in range(first_stage, 5)]
    sizes = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 3}
    return T.SwinConfig(image_size=64, **sizes, out_features=stages)


def vit(config, patch, side, **more):
    return config(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=patch,
        out_features=["stage1", "stage2"],
        **more,
    )


# d_model over heads is a power of two everywhere, since the models warn if it is not.
DETR = {
    "d_model": 96,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 28,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "num_queries": 11,
    "num_feature_levels": 4,
    "encoder_n_points": 2,
    "decoder_n_points": 5,
}
RT_DETR = {
    "d_model": 24,
    "encoder_hidden_dim": 24,
    "encoder_in_channels": [12, 16, 20],
    "decoder_in_channels": [24, 24, 24],
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 28,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 3,
    "num_queries": 11,
}
LW_DETR = {
    "d_model": 24,
    "decoder_layers": 2,
    "decoder_ffn_dim": 28,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 3,
    "decoder_n_points": 2,
    "num_queries": 11,
    "group_detr": 2,
    "c2f_num_blocks": 1,
}
MASKS = {
    "hidden_dim": 96,
    "encoder_feedforward_dim": 20,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 3,
    "dim_feedforward": 28,
    "num_queries": 11,
}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}


def deformable_detr(T, **changes):
    return T.DeformableDetrForObjectDetection(T.DeformableDetrConfig(backbone_config=resnet(T), **DETR, **changes))


def deformable_detr_two_stage(T):
    return deformable_detr(T, with_box_refine=True, two_stage=True, two_stage_num_proposals=11)


def rt_detr(T):
    return T.RTDetrForObjectDetection(T.RTDetrConfig(backbone_config=rt_resnet(T), decoder_n_points=5, **RT_DETR))


def rt_detr_v2(T, **changes):
    config = T.RTDetrV2Config(backbone_config=rt_resnet(T), decoder_n_points=5, **RT_DETR, **changes)
    return T.RTDetrV2ForObjectDetection(config)


def d_fine(T, **changes):
    config = T.DFineConfig(backbone_config=hgnet(T), decoder_n_points=[3, 6, 2], lqe_hidden_dim=8, **RT_DETR, **changes)
    return T.DFineForObjectDetection(config)


def deimv2(T):
    config = T.Deimv2Config(backbone_config=hgnet(T), decoder_n_points=[3, 6, 2], lqe_hidden_dim=8, **RT_DETR)
    return T.Deimv2ForObjectDetection(config)


def rf_detr(T):
    backbone = vit(T.RfDetrDinov2Config, 14, 112, num_windows=2)
    return T.RfDetrForObjectDetection(T.RfDetrConfig(backbone_config=backbone, **LW_DETR))


def lw_detr(T):
    backbone = vit(T.LwDetrViTConfig, 16, 128, pretrain_image_size=64, window_block_indices=[0], num_windows=4)
    config = T.LwDetrConfig(backbone_config=backbone, projector_scale_factors=[2.0, 0.5], **LW_DETR)
    return T.LwDetrForObjectDetection(config)


def grounding(T, name):
    text = T.BertConfig(vocab_size=1100, max_position_embeddings=64, **TEXT)
    config = getattr(T, f"{name}Config")(backbone_config=swin(T, 2), text_config=text, max_text_len=16, **DETR)
    return getattr(T, f"{name}ForObjectDetection")(config)


def omdet_turbo(T):
    text = T.CLIPTextConfig(
        vocab_size=99,
        max_position_embeddings=16,
        projection_dim=16,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        **TEXT,
    )
    config = T.OmDetTurboConfig(
        backbone_config=swin(T, 2),
        text_config=text,
        apply_layernorm_after_vision_backbone=False,
        image_size=64,
        text_projection_in_dim=16,
        text_projection_out_dim=16,
        task_encoder_hidden_dim=16,
        class_embed_dim=16,
        num_queries=11,
        encoder_hidden_dim=24,
        vision_features_channels=[24, 24, 24],
        encoder_in_channels=[16, 32, 64],
        encoder_attention_heads=2,
        encoder_dim_feedforward=20,
        decoder_hidden_dim=24,
        decoder_num_heads=3,
        decoder_num_layers=2,
        decoder_dim_feedforward=28,
        decoder_num_points=5,
    )
    return T.OmDetTurboForObjectDetection(config)


def pp_doclayout_v2(T):
    reading = {
        "hidden_size": 24,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "num_hidden_layers": 1,
        "coordinate_size": 4,
        "shape_size": 4,
        "relation_bias_embed_dim": 4,
        "global_pointer_head_size": 8,
    }
    config = T.PPDocLayoutV2Config(
        backbone_config=hgnet(T),
        decoder_n_points=5,
        reading_order_config=reading,
        num_labels=4,
        class_thresholds=[0.4, 0.5, 0.6, 0.5],
        class_order=[0, 2, 1, 3],
        **RT_DETR,
    )
    return T.PPDocLayoutV2ForObjectDetection(config)


def pp_doclayout_v3(T):
    sizes = {"x4_feat_dim": 8, "mask_feature_channels": [8, 8], "num_prototypes": 8, "decoder_n_points": 5}
    return T.PPDocLayoutV3ForObjectDetection(
        T.PPDocLayoutV3Config(backbone_config=hgnet(T, first_stage=1), **sizes, **RT_DETR)
    )


def pp_doclayout_v4(T):
    config = T.PPDocLayoutV4Config(backbone_config=hgnet(T), decoder_n_points=5, hidden_size=24, **RT_DETR)
    return T.PPDocLayoutV4ForObjectDetection(config)


def mask2former(T):
    config = T.Mask2FormerConfig(backbone_config=swin(T, 1), feature_size=96, mask_feature_size=96, **MASKS)
    return T.Mask2FormerForUniversalSegmentation(config)


def oneformer(T):
    text = {
        "text_encoder_width": 16,
        "text_encoder_context_length": 8,
        "text_encoder_num_layers": 1,
        "text_encoder_vocab_size": 50,
        "text_encoder_n_ctx": 2,
        "task_seq_len": 8,
    }
    config = T.OneFormerConfig(backbone_config=swin(T, 1), conv_dim=96, mask_dim=96, **text, **MASKS)
    return T.OneFormerForUniversalSegmentation(config)


ENCODER, DECODER = ["model.encoder.layers.0.self_attn"], [f"model.decoder.layers.{n}.encoder_attn" for n in range(2)]
SHARED_DETR = [f"{name}.attn" for name in ENCODER + DECODER]
SHARED_RT = [f"{name}.attn" for name in DECODER]
SHARED_GROUNDING = ["model.encoder.layers.0.deformable_layer.self_attn.attn", *SHARED_RT]
SHARED_CROSS = [f"decoder.layers.{n}.cross_attn.attn" for n in range(2)]
PIXELS = [f"model.pixel_level_module.decoder.encoder.layers.{n}.self_attn" for n in range(2)]

# How to build it, (height, width) of its pictures, its attention modules.
FAMILIES = {
    "deformable_detr": (deformable_detr, (97, 75), SHARED_DETR),
    "deformable_detr_two_stage": (deformable_detr_two_stage, (97, 75), SHARED_DETR),
    "rt_detr": (rt_detr, (96, 64), SHARED_RT),
    "rt_detr_v2": (rt_detr_v2, (96, 64), DECODER),
    "d_fine": (d_fine, (96, 64), DECODER),
    "deimv2": (deimv2, (96, 64), DECODER),
    "rf_detr": (rf_detr, (112, 84), [f"model.{name}" for name in SHARED_CROSS]),
    "lw_detr": (lw_detr, (128, 96), [f"model.{name}" for name in SHARED_CROSS]),
    "grounding_dino": (lambda T: grounding(T, "GroundingDino"), (97, 75), SHARED_GROUNDING),
    "mm_grounding_dino": (lambda T: grounding(T, "MMGroundingDino"), (97, 75), SHARED_GROUNDING),
    "omdet_turbo": (omdet_turbo, (96, 64), SHARED_CROSS),
    "pp_doclayout_v2": (pp_doclayout_v2, (96, 64), SHARED_RT),
    "pp_doclayout_v3": (pp_doclayout_v3, (96, 64), SHARED_RT),
    "pp_doclayout_v4": (pp_doclayout_v4, (96, 64), SHARED_RT),
    "mask2former": (mask2former, (97, 75), PIXELS),
    "oneformer": (oneformer, (97, 75), PIXELS),
}


def inputs_of(name, size_hw):
    """Two pictures, the second with padding, and words where the model reads any."""
    height, width = size_hw
    inputs = {"pixel_values": torch.randn(2, 3, height, width)}
    if name == "omdet_turbo":
        words = {"classes": 3, "tasks": 2}
        for what, count in words.items():
            inputs[f"{what}_input_ids"] = torch.randint(3, 99, (count, TEXT_LENGTH))
            inputs[f"{what}_attention_mask"] = torch.ones(count, TEXT_LENGTH, dtype=torch.long)
        return inputs | {"classes_structure": torch.tensor([2, 1])}
    inputs["pixel_mask"] = torch.ones(2, height, width, dtype=torch.long)
    inputs["pixel_mask"][1, int(0.8 * height) :] = 0
    inputs["pixel_mask"][1, :, int(0.7 * width) :] = 0
    if "grounding" in name:
        inputs["input_ids"] = torch.tensor([[101, 7, 1012, 102], [101, 8, 1012, 102]])
    if name == "oneformer":
        inputs["task_inputs"] = torch.randint(0, 50, (2, 8)).float()
    return inputs


def make(name, **changes):
    """The family of that name, the same every time."""
    return copy.deepcopy(built(name, **changes))


@functools.cache
def built(name, **changes):
    """Its weights are such that the attention looks around and what it sees matters."""
    transformers = pytest.importorskip("transformers")
    build, size_hw, attentions = FAMILIES[name]
    torch.manual_seed(0)
    model = build(transformers, **changes).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 10
            spread = 4 if "sampling_offsets" in key else 1
            parameter.normal_(std=spread * fan_in**-0.5).add_(1.0 if key.endswith("norm.weight") else 0.0)
    return Family(model, inputs_of(name, size_hw), tuple(attentions))


@pytest.fixture(params=FAMILIES)
def family(request):
    """Each family in turn."""
    return make(request.param)


@pytest.fixture
def make_family():
    """The families by name, for tests of one."""
    return make
