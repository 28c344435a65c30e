"""Recorded evaluations: ground truth, detections, and the numbers they must give."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deformable_detr.core.detections import Detections
from deformable_detr.data.dataset import DetectionDataset, Sample
from deformable_detr.evaluation.coco_metrics import coco_metrics, metrics_from_coco

RECORDED = Path(__file__).resolve().parents[2].parent / "shared" / "checks" / "evaluator"
CASES = ("basic", "crowd", "over_100_dets", "no_detections")

pytestmark = pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded evaluations are not here")


def read(case: str) -> tuple[dict, list[dict], dict]:
    ground_truth, results, expected = (
        json.loads((RECORDED / name).read_text()) for name in (f"{case}_gt.json", f"{case}_dt.json", "expected.json")
    )
    return ground_truth, results, expected[case]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("through_tensors", [False, True])
def test_recorded_numbers(case, through_tensors):
    ground_truth, results, expected = read(case)
    metrics = (
        coco_metrics(detections_of(ground_truth, results), dataset_of(ground_truth))
        if through_tensors
        else metrics_from_coco(ground_truth, results)
    )
    # Without any detection pycocotools stops with an error; nothing was recorded then.
    twelve = expected["stats"] or [0.0] * 12
    np.testing.assert_allclose(list(metrics.twelve().values()), twelve, rtol=0, atol=1e-9)
    for category_id, numbers in expected.get("per_category", {}).items():
        name = next(c["name"] for c in ground_truth["categories"] if c["id"] == int(category_id))
        own = [numbers[key] for key in ("AP", "AP50", "AP75", "AR")]
        np.testing.assert_allclose(metrics.per_class[name], own, rtol=0, atol=1e-9)


def dataset_of(ground_truth: dict) -> DetectionDataset:
    category_ids = tuple(category["id"] for category in ground_truth["categories"])
    samples = []
    for image in ground_truth["images"]:
        own = [a for a in ground_truth["annotations"] if a["image_id"] == image["id"]]
        samples.append(
            Sample(
                path=Path(image["file_name"]),
                size_wh=(image["width"], image["height"]),
                boxes_xyxy=corners(own),
                class_ids=np.array([category_ids.index(a["category_id"]) for a in own], dtype=np.int64),
                is_crowd=np.array([a["iscrowd"] for a in own], dtype=bool),
                areas=np.array([a["area"] for a in own], dtype=np.float64),
                image_id=image["id"],
                object_ids=tuple(a["id"] for a in own),
            )
        )
    classes = tuple(category["name"] for category in ground_truth["categories"])
    return DetectionDataset(classes=classes, category_ids=category_ids, samples=samples)


def detections_of(ground_truth: dict, results: list[dict]) -> list[Detections]:
    """In double precision, in which the recorded boxes were compared."""
    category_ids = [category["id"] for category in ground_truth["categories"]]
    detections = []
    for image in ground_truth["images"]:
        own = [r for r in results if r["image_id"] == image["id"]]
        detections.append(
            Detections(
                torch.from_numpy(corners(own)),
                torch.tensor([r["score"] for r in own], dtype=torch.float64),
                torch.tensor([category_ids.index(r["category_id"]) for r in own], dtype=torch.int64),
            )
        )
    return detections


def corners(entries: list[dict]) -> np.ndarray:
    boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes
