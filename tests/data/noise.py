"""Pictures of noise with boxes that say nothing: for what only counts and compares files."""

from pathlib import Path

import numpy as np
from PIL import Image

from deformable_detr.data.dataset import DetectionDataset, Sample
from deformable_detr.data.formats import coco

SIZE_WH = (200, 150)


def dataset_of(folder: Path, *images: list[tuple[int, tuple[float, float, float, float]]]) -> DetectionDataset:
    """Pictures of noise with (class id, box) each."""
    folder.mkdir(parents=True)
    samples = []
    for index, objects in enumerate(images):
        path = folder / f"{index}.png"
        pixels = np.random.default_rng([index, len(folder.name)]).integers(
            0, 255, (SIZE_WH[1], SIZE_WH[0], 3), dtype=np.uint8
        )
        Image.fromarray(pixels).save(path)
        boxes = np.array([box for _, box in objects], dtype=np.float64).reshape(-1, 4)
        samples.append(
            Sample(
                path=path,
                size_wh=SIZE_WH,
                boxes_xyxy=boxes,
                class_ids=np.array([class_id for class_id, _ in objects], dtype=np.int64),
                is_crowd=np.zeros(len(objects), dtype=bool),
                areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
                image_id=index + 1,
                object_ids=tuple(range(100 * index + 1, 100 * index + 1 + len(objects))),
            )
        )
    return DetectionDataset(classes=("cat", "dog"), category_ids=(1, 2), samples=samples)


SMALL, MEDIUM, LARGE = (0, 0, 31, 32), (0, 0, 32, 32), (0, 0, 96, 96)


def noise_in_two_splits(folder: Path) -> Path:
    """A COCO data set of three training images and one to judge by."""
    train = dataset_of(folder / "a", [(0, SMALL), (0, MEDIUM), (1, LARGE)], [], [(1, LARGE)])
    val = dataset_of(folder / "bb", [(1, SMALL), (1, MEDIUM)])
    coco.save(train, folder / "data", split="train")
    coco.save(val, folder / "data", split="val")
    return folder / "data"
