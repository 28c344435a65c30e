"""The published weights on one photograph of COCO, against the values their converter was released with.

They come from the hub, the photograph from COCO's server: `pytest -m network tests/parity/test_golden.py`. The official
`.pth` files have to be fetched by a person; `DEFORMABLE_DETR_OFFICIAL_PTH=FOLDER` adds all in that folder.
"""

import io
import os
import urllib.request
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from deformable_detr import weights
from deformable_detr.data.preprocessing import Preprocessing, to_model_input
from deformable_detr.models import DeformableDETRConfig, build
from deformable_detr.models.postprocess import to_detections
from deformable_detr.weights.checkpoint import Checkpoint, build_model
from deformable_detr.weights.coco_classes import COCO_CLASSES

PHOTOGRAPH = "http://images.cocodataset.org/val2017/000000039769.jpg"
TOLERANCE = 2e-4


class Golden(NamedTuple):
    """Of the first three queries: logits of the first three channels; cx, cy and w of the box."""

    name: str
    config: DeformableDETRConfig
    logits: list[list[float]]
    boxes: list[list[float]]


GOLDEN = [
    Golden(
        "SenseTime/deformable-detr",
        DeformableDETRConfig(),
        [[-9.6645, -4.3449, -5.8705], [-9.7035, -3.8504, -5.0724], [-10.5634, -5.3379, -7.5116]],
        [[0.8693, 0.2289, 0.2492], [0.3150, 0.5489, 0.5845], [0.5563, 0.7580, 0.8518]],
    ),
    Golden(
        "SenseTime/deformable-detr-single-scale",
        DeformableDETRConfig(num_levels=1),
        [[-9.9051, -4.2541, -6.4852], [-9.6947, -4.0854, -6.8033], [-10.0665, -5.8470, -7.7003]],
        [[0.7292, 0.4991, 0.5532], [0.7959, 0.2426, 0.4236], [0.7582, 0.3518, 0.4451]],
    ),
    Golden(
        "SenseTime/deformable-detr-single-scale-dc5",
        DeformableDETRConfig(num_levels=1, dilation=True),
        [[-8.9652, -4.1074, -5.6635], [-9.0596, -4.9447, -6.6075], [-10.1178, -4.5275, -6.2671]],
        [[0.7665, 0.4130, 0.4769], [0.8364, 0.1841, 0.3391], [0.6261, 0.3895, 0.7978]],
    ),
    Golden(
        "SenseTime/deformable-detr-with-box-refine",
        DeformableDETRConfig(variant="refine"),
        [[-8.8895, -5.4187, -6.8153], [-8.4706, -6.1668, -7.6184], [-9.0042, -5.5359, -6.9141]],
        [[0.7828, 0.2208, 0.4323], [0.0892, 0.5996, 0.1319], [0.5524, 0.6389, 0.8914]],
    ),
    Golden(
        "SenseTime/deformable-detr-with-box-refine-two-stage",
        DeformableDETRConfig(variant="two_stage"),
        [[-6.7108, -4.3213, -6.3777], [-8.9014, -6.1799, -6.7240], [-6.9315, -4.4735, -6.2298]],
        [[0.2583, 0.5499, 0.4683], [0.7652, 0.9068, 0.4882], [0.5490, 0.2763, 0.0564]],
    ),
]
# Of the base model, at a threshold of 0.3.
SCORES = [0.7999, 0.7895, 0.6332, 0.4719, 0.4382]
NAMES = ["cat", "cat", "remote", "remote", "couch"]
FIRST_BOX = [16.4960, 52.8387, 318.2565, 470.7831]

FOLDER = os.environ.get("DEFORMABLE_DETR_OFFICIAL_PTH")
OFFICIAL = sorted(Path(FOLDER).glob("*.pth")) if FOLDER else []


@pytest.fixture(scope="module")
def photograph():
    with urllib.request.urlopen(PHOTOGRAPH, timeout=60) as answer:
        image = Image.open(io.BytesIO(answer.read())).convert("RGB")
    assert image.size == (640, 480)
    return image


def predict(source, golden, photograph):
    checkpoint = weights.read(source)
    found = checkpoint.model
    expected = golden.config
    assert (found.variant, found.num_levels, found.dilation) == (
        expected.variant,
        expected.num_levels,
        expected.dilation,
    )
    assert checkpoint.preprocessing == Preprocessing()
    model = build_model(checkpoint, Path(source)).eval()
    image = to_model_input(photograph, checkpoint.preprocessing)[None]
    assert image.shape == (1, 3, 800, 1066)
    with torch.no_grad():
        return checkpoint, model(image, torch.zeros(1, 800, 1066, dtype=torch.bool)).final


def check_values(final, golden):
    torch.testing.assert_close(final.logits[0, :3, :3], torch.tensor(golden.logits), rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(final.boxes[0, :3, :3], torch.tensor(golden.boxes), rtol=TOLERANCE, atol=TOLERANCE)


def check_detections(checkpoint, final, size_wh):
    found = to_detections(final, [size_wh], threshold=0.3)[0]
    assert [checkpoint.classes[number] for number in found.class_ids] == NAMES
    torch.testing.assert_close(found.scores, torch.tensor(SCORES), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(found.boxes_xyxy[0], torch.tensor(FIRST_BOX), rtol=TOLERANCE, atol=0)


def check(source, golden, photograph):
    checkpoint, final = predict(source, golden, photograph)
    check_values(final, golden)
    if golden is GOLDEN[0]:
        check_detections(checkpoint, final, photograph.size)


@pytest.mark.network
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.name)
def test_published_weights_from_the_hub(golden, photograph):
    check(golden.name, golden, photograph)


@pytest.mark.network
@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.name)
def test_published_official_files(path, photograph):
    config = weights.read(path).model
    [golden] = [golden for golden in GOLDEN if golden.config == config]
    check(path, golden, photograph)


@pytest.mark.slow
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.name)
def test_the_comparison_runs_and_can_fail(golden, monkeypatch):
    """Without a network: random weights get as far as the values, and there they differ."""
    random = Checkpoint(
        weights=build(golden.config, load_backbone_weights=False).state_dict(),
        model=golden.config,
        classes=COCO_CLASSES,
        category_ids=tuple(range(91)),
        preprocessing=Preprocessing(),
    )
    monkeypatch.setattr(weights, "read", lambda source: random)
    noise = Image.effect_noise((640, 480), 80).convert("RGB")
    checkpoint, final = predict(golden.name, golden, noise)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check_values(final, golden)
    check_values(final, golden._replace(logits=final.logits[0, :3, :3].tolist(), boxes=final.boxes[0, :3, :3].tolist()))
    with pytest.raises(AssertionError):
        check_detections(checkpoint, final, noise.size)
