"""Data sets in the formats that have no writer in the package, in the layout that their tools write.

Each function writes one split, images and all, and returns the folder to open. What a format cannot hold (crowd marks
in all but the table, areas of their own) is left out.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, SubElement, tostring

from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats.writing import place_image, unique_names


class Placed(NamedTuple):
    """An image in the folder, with its objects."""

    name: str
    path: Path
    size_wh: tuple[int, int]
    objects: list[tuple[str, tuple[float, float, float, float], bool]]
    """Class name, corners and crowd mark of each."""


def placed(dataset: DetectionDataset, folder: Path) -> Iterator[Placed]:
    folder.mkdir(parents=True, exist_ok=True)
    for sample, name in zip(dataset.samples, unique_names(dataset.samples), strict=True):
        place_image(sample.path, folder / name, "copy")
        columns = (sample.class_ids.tolist(), sample.boxes_xyxy.tolist(), sample.is_crowd.tolist())
        objects = [
            (dataset.classes[class_id], tuple(box), crowd) for class_id, box, crowd in zip(*columns, strict=True)
        ]
        yield Placed(name, folder / name, sample.size_wh, objects)


def write_csv(dataset: DetectionDataset, folder: Path) -> Path:
    """`_annotations.csv` with the columns of TensorFlow and Roboflow, and one for crowds."""
    with_header = [["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax", "iscrowd"]]
    rows: list[list[Any]] = []
    for image in placed(dataset, folder):
        rows += [[image.name, *image.size_wh, name, *box, int(crowd)] for name, box, crowd in image.objects]
        if not image.objects:
            rows.append([image.name, *image.size_wh, "", "", "", "", "", ""])
    with open(folder / "_annotations.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(with_header + rows)
    return folder


def write_labelme(dataset: DetectionDataset, folder: Path) -> Path:
    """A json beside each image, every other box as a polygon."""
    for image in placed(dataset, folder):
        shapes = []
        for number, (name, (left, top, right, bottom), _) in enumerate(image.objects):
            points = [[left, top], [right, bottom]]
            if number % 2:
                points = [[left, top], [right, top], [right, bottom], [left, bottom]]
            kind = "polygon" if number % 2 else "rectangle"
            shapes.append({"label": name, "points": points, "group_id": None, "shape_type": kind, "flags": {}})
        document = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image.name, "imageData": None,
                    "imageHeight": image.size_wh[1], "imageWidth": image.size_wh[0]}  # fmt: skip
        write_json(folder / f"{Path(image.name).stem}.json", document)
    return folder


def write_cvat(dataset: DetectionDataset, folder: Path) -> Path:
    """`annotations.xml` ("CVAT for images 1.1") above `images/`."""
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    labels = SubElement(SubElement(SubElement(root, "meta"), "task"), "labels")
    for name in dataset.classes:
        SubElement(SubElement(labels, "label"), "name").text = name
    for number, image in enumerate(placed(dataset, folder / "images")):
        width, height = map(str, image.size_wh)
        element = SubElement(root, "image", id=str(number), name=image.name, width=width, height=height)
        for name, corners, _ in image.objects:
            sides = {side: repr(value) for side, value in zip(("xtl", "ytl", "xbr", "ybr"), corners, strict=True)}
            SubElement(element, "box", label=name, source="manual", occluded="0", z_order="0", **sides)
    (folder / "annotations.xml").write_bytes(tostring(root, encoding="utf-8", xml_declaration=True))
    return folder


def write_via(dataset: DetectionDataset, folder: Path) -> Path:
    """`via_region_data.json` beside the images, every other box as a polygon."""
    document = {}
    for image in placed(dataset, folder):
        regions = []
        for number, (name, (left, top, right, bottom), _) in enumerate(image.objects):
            shape: dict[str, Any] = {"name": "rect", "x": left, "y": top, "width": right - left, "height": bottom - top}
            if number % 2:
                x, y = [left, right, right, left], [top, top, bottom, bottom]
                shape = {"name": "polygon", "all_points_x": x, "all_points_y": y}
            regions.append({"shape_attributes": shape, "region_attributes": {"class": name}})
        size = image.path.stat().st_size
        item = {"filename": image.name, "size": size, "regions": regions, "file_attributes": {}}
        document[f"{image.name}{size}"] = item
    write_json(folder / "via_region_data.json", document)
    return folder


def write_createml(dataset: DetectionDataset, folder: Path) -> Path:
    """`_annotations.createml.json` beside the images."""
    document = []
    for image in placed(dataset, folder):
        annotations = []
        for name, (left, top, right, bottom), _ in image.objects:
            center = {"x": (left + right) / 2, "y": (top + bottom) / 2}
            coordinates = {**center, "width": right - left, "height": bottom - top}
            annotations.append({"label": name, "coordinates": coordinates})
        document.append({"image": image.name, "annotations": annotations})
    write_json(folder / "_annotations.createml.json", document)
    return folder


def write_labelstudio(dataset: DetectionDataset, folder: Path) -> Path:
    """The json export of a project, with the images as they were uploaded in `images/`."""
    tasks = []
    for number, image in enumerate(placed(dataset, folder / "images"), start=1):
        width, height = image.size_wh
        results = []
        for region, (name, (left, top, right, bottom), _) in enumerate(image.objects):
            value = {"x": 100 * left / width, "y": 100 * top / height, "width": 100 * (right - left) / width,
                     "height": 100 * (bottom - top) / height, "rotation": 0, "rectanglelabels": [name]}  # fmt: skip
            results.append({"id": f"r{region}", "type": "rectanglelabels", "from_name": "label", "to_name": "image",
                            "original_width": width, "original_height": height, "value": value})  # fmt: skip
        annotation = {"id": number, "was_cancelled": False, "result": results, "created_at": "2024-05-01T10:00:00Z"}
        data = {"image": f"/data/upload/1/{image.name}"}
        tasks.append({"id": number, "data": data, "annotations": [annotation], "predictions": []})
    write_json(folder / "project-1.json", tasks)
    return folder


def write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
