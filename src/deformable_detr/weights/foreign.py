"""Whose weights are these? Told by parameter names that only one kind of model has."""

import re
from collections.abc import Iterable

# The first whose name is there counts, so the closest relatives stand first.
_KINDS = (
    (r"detr\.|mask_head\.|bbox_attention\.", "a DETR with a segmentation head; there is none here"),
    (r"backbone\.1\.(row|col)_embed", "Deformable DETR with learned position embeddings; only those of sines are here"),
    (r"bbox_head\.|rpn_head\.|roi_head\.", "a model of mmdetection; mmdetection reads it"),
    (r"label_enc\.|transformer\.tgt_embed\.|tgt_embed\.", "DINO or DN-DETR; IDEA-Research's code reads it"),
    (r"transformer\.decoder\.ref_point_head\.", "DAB-DETR or a relative; IDEA-Research's code reads it"),
    (r"transformer\..*\.attentions\.\d+\.|neck\.convs\.", "a model of detrex; detrex reads it"),
    (r"model\.(encoder|decoder)\.layers\.", "a model of transformers; keep config.json beside it and name the folder"),
    (r"class_embed\.(weight|bias)", "DETR with attention that is not deformable; facebookresearch/detr reads it"),
    (r"roi_heads\.|proposal_generator\.|backbone\.bottom_up\.", "a model of detectron2; detectron2 reads it"),
    (r"model\.\d+\.", "a YOLO of ultralytics; ultralytics reads it"),
    (r"layer1\.0\.conv1\.weight", "a ResNet alone; train with --backbone-weights FILE to start from it"),
)


def whose(names: Iterable[str]) -> str | None:
    """What model parameters of these names look like, and what reads them; None if nothing is known of them."""
    known = list(names)
    for pattern, kind in _KINDS:
        start = re.compile(pattern)
        if any(start.match(name) for name in known):
            return kind
    return None
