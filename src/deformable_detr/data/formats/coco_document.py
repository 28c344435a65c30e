"""Content of a COCO file: images, categories and annotations."""

from collections.abc import Sequence
from typing import Any

from deformable_detr.data.dataset import DetectionDataset


def image_record(image_id: int, file_name: str, size_wh: tuple[int, int]) -> dict[str, Any]:
    """Entry of "images"."""
    width, height = size_wh
    return {"id": image_id, "file_name": file_name, "width": width, "height": height}


def object_record(
    object_id: int,
    image_id: int,
    category_id: int,
    box_xyxy: Sequence[float],
    *,
    area: float | None = None,
    is_crowd: bool = False,
    score: float | None = None,
) -> dict[str, Any]:
    """Entry of "annotations".

    Args:
        object_id: id of the annotation.
        image_id: id of the image.
        category_id: id of the category.
        box_xyxy: left, top, right and bottom in pixels; the file has width and height in place of the last two.
        area: in square pixels; width x height if left out.
        is_crowd: whether it is a region of many objects.
        score: confidence of a detection, 0..1; left out for an annotated object.
    """
    left, top, right, bottom = box_xyxy
    width, height = right - left, bottom - top
    record: dict[str, Any] = {
        "id": object_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [left, top, width, height],
        "area": width * height if area is None else area,
        "iscrowd": int(is_crowd),
    }
    return record if score is None else {**record, "score": score}


def document(
    images: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    classes: Sequence[str],
    category_ids: Sequence[int],
) -> dict[str, Any]:
    """Content of a whole file; `category_ids` are in the order of `classes`."""
    categories = [
        {"id": category_id, "name": name, "supercategory": ""}
        for category_id, name in zip(category_ids, classes, strict=True)
    ]
    return {
        "info": {},
        "licenses": [],
        "images": list(images),
        "annotations": list(annotations),
        "categories": categories,
    }


def to_document(dataset: DetectionDataset, file_names: Sequence[str]) -> dict[str, Any]:
    """Content of a file for a data set, with the ids of its source; `file_names` has one name per sample."""
    images = []
    annotations = []
    for sample, file_name in zip(dataset.samples, file_names, strict=True):
        images.append(image_record(sample.image_id, file_name, sample.size_wh))
        for position, box in enumerate(sample.boxes_xyxy.tolist()):
            annotations.append(
                object_record(
                    sample.object_ids[position],
                    sample.image_id,
                    dataset.category_ids[int(sample.class_ids[position])],
                    box,
                    area=float(sample.areas[position]),
                    is_crowd=bool(sample.is_crowd[position]),
                )
            )
    return document(images, annotations, dataset.classes, dataset.category_ids)
