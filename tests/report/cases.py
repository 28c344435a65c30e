"""Detections and truth made by hand or by chance, for the tests of this folder."""

from pathlib import Path

import numpy as np
import torch

from deformable_detr.core.detections import Detections
from deformable_detr.data.dataset import DetectionDataset, Sample


def sample(boxes, class_ids, *, is_crowd=None, image_id=1, size_wh=(300, 200), path="image.jpg", first_id=1):
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Sample(
        path=Path(path),
        size_wh=size_wh,
        boxes_xyxy=boxes,
        class_ids=np.array(class_ids, dtype=np.int64),
        is_crowd=np.array(is_crowd if is_crowd is not None else [0] * len(boxes), dtype=bool),
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).astype(np.float64),
        image_id=image_id,
        object_ids=tuple(range(first_id, first_id + len(boxes))),
    )


def dataset(*samples, classes=("cat", "dog", "emu"), category_ids=(7, 3, 5)):
    """Category ids are not in the order of classes."""
    return DetectionDataset(classes=classes, category_ids=category_ids, samples=list(samples), source="by hand")


def detections(boxes, scores, class_ids):
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(class_ids, dtype=torch.int64),
    )


def random_case(seed, num_classes=3, num_images=5, crowd_share=0.2):
    """Detections near the truth and far from it, crowds, an image without objects and one without detections."""
    rng = np.random.default_rng(seed)
    samples, found, next_id = [], [], 1
    for image in range(num_images):
        count = 0 if image == 1 else int(rng.integers(1, 8))
        corners = rng.uniform(0, 150, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(8, 120, (count, 2))], axis=1)
        classes = rng.integers(0, num_classes, count)
        crowd = rng.random(count) < crowd_share
        samples.append(sample(boxes, classes, is_crowd=crowd, image_id=10 - image, first_id=next_id))
        next_id += count
        which = rng.integers(0, max(1, count), 12 if count else 0)
        near = boxes[which] + rng.normal(0, 6, (len(which), 4))
        corners = rng.uniform(0, 150, (4, 2))
        far = np.concatenate([corners, corners + rng.uniform(8, 60, (4, 2))], axis=1)
        every = np.concatenate([near, far])[: 0 if image == 3 else None]
        every[:, 2:] = np.maximum(every[:, 2:], every[:, :2] + 1)
        scores = np.sort(rng.permutation(1000)[: len(every)] / 1000)[::-1]
        labels = rng.integers(0, num_classes, len(every))
        right = rng.random(len(which)) < 0.5
        labels[: len(which)][right[: len(every)]] = classes[which][right] if len(every) else []
        found.append(detections(every.tolist(), scores.tolist(), labels.tolist()))
    names = tuple(f"class {i}" for i in range(num_classes))
    ids = tuple(int(i) for i in rng.permutation(num_classes * 2)[:num_classes] + 1)
    return found, dataset(*samples, classes=names, category_ids=ids)
