"""Writers of formats that the package only reads, in the layout that their tools write; each returns what to open."""

import base64
import csv
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deformable_detr.data.dataset import DetectionDataset, Sample
from deformable_detr.data.formats.visdrone import CLASSES
from deformable_detr.data.formats.writing import unique_names


def write_datumaro(dataset: DetectionDataset, folder: Path) -> Path:
    """As Datumaro's exporter writes it: `annotations/train.json` and `images/train/`."""
    items = []
    for sample, name in _placed(dataset, folder / "images/train"):
        annotations = []
        for number, (class_name, (left, top, right, bottom), crowd) in enumerate(_objects(dataset, sample), start=1):
            common = {"id": number, "attributes": {"is_crowd": crowd}, "group": number, "z_order": 0}
            common["label_id"] = dataset.classes.index(class_name)
            box = [left, top, right - left, bottom - top]
            annotations.append({**common, "type": "bbox", "bbox": box})
        width, height = sample.size_wh
        image = {"path": name, "size": [height, width]}
        items.append({"id": Path(name).stem, "annotations": annotations, "attr": {"id": 1}, "image": image})
    labels = [{"name": name, "parent": "", "attributes": []} for name in dataset.classes]
    document = {
        "dm_format_version": "1.0",
        "media_type": 2,
        "infos": {},
        "categories": {"label": {"labels": labels, "label_groups": [], "attributes": []}},
        "items": items,
    }
    return _write(folder, "annotations/train.json", json.dumps(document))


def write_visdrone(dataset: DetectionDataset, folder: Path) -> Path:
    """As the benchmark has it: whole pixels, the names of its own classes, score 0 for crowd regions."""
    home = folder / "VisDrone2019-DET-train"
    for sample, name in _placed(dataset, home / "images"):
        lines = []
        for class_name, (left, top, right, bottom), crowd in _objects(dataset, sample):
            corner = round(left), round(top)
            size = max(1, round(right) - corner[0]), max(1, round(bottom) - corner[1])
            category = dataset.classes.index(class_name) % len(CLASSES) + 1
            lines.append(",".join(map(str, (*corner, *size, int(not crowd), category, 0, 0))) + ",\n")
        _write(home, f"annotations/{Path(name).stem}.txt", "".join(lines))
    return folder


def write_kitti(dataset: DetectionDataset, folder: Path) -> Path:
    """As the benchmark has it: `training/image_2` and `training/label_2`, `DontCare` for crowd regions."""
    for sample, name in _placed(dataset, folder / "training/image_2"):
        lines = []
        for class_name, box, crowd in _objects(dataset, sample):
            corners = " ".join(map(repr, box))
            if crowd:
                lines.append(f"DontCare -1 -1 -10 {corners} -1 -1 -1 -1000 -1000 -1000 -10\n")
            else:
                lines.append(f"{class_name} 0.00 0 -1.57 {corners} 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n")
        _write(folder, f"training/label_2/{Path(name).stem}.txt", "".join(lines))
    return folder


def write_openimages(dataset: DetectionDataset, folder: Path) -> Path:
    """As the downloads have it: two csv files, and a folder of images for each split."""
    columns = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction"
    rows = [f"{columns},IsInside".split(",")]
    for sample, name in _placed(dataset, folder / "train"):
        width, height = sample.size_wh
        for class_name, (left, top, right, bottom), crowd in _objects(dataset, sample):
            code = f"/m/0{dataset.classes.index(class_name)}"
            shares = [repr(left / width), repr(right / width), repr(top / height), repr(bottom / height)]
            rows.append([Path(name).stem, "xclick", code, "1", *shares, "0", "0", str(int(crowd)), "0", "0"])
    _write_csv(folder / "oidv6-train-annotations-bbox.csv", rows)
    _write_csv(
        folder / "class-descriptions-boxable.csv", [[f"/m/0{n}", name] for n, name in enumerate(dataset.classes)]
    )
    return folder


def write_dota(dataset: DetectionDataset, folder: Path) -> Path:
    """As the benchmark has it: `train/images`, and `train/labelTxt` with the corners clockwise; no crowd regions."""
    for sample, name in _placed(dataset, folder / "train/images"):
        lines = ["imagesource:GoogleEarth\n", "gsd:0.146343590398\n"]
        for class_name, (left, top, right, bottom), _ in _objects(dataset, sample):
            corners = (left, top, right, top, right, bottom, left, bottom)
            lines.append(" ".join(map(repr, corners)) + f" {class_name} 0\n")
        _write(folder, f"train/labelTxt/{Path(name).stem}.txt", "".join(lines))
    return folder


def write_huggingface(dataset: DetectionDataset, folder: Path) -> Path:
    """As the documentation of `imagefolder` has it: `train/metadata.jsonl`, and a card with the class names."""
    rows = []
    for sample, name in _placed(dataset, folder / "train"):
        objects: dict[str, list[Any]] = {"bbox": [], "categories": [], "iscrowd": []}
        for class_name, (left, top, right, bottom), crowd in _objects(dataset, sample):
            objects["bbox"].append([left, top, right - left, bottom - top])
            objects["categories"].append(dataset.classes.index(class_name))
            objects["iscrowd"].append(int(crowd))
        rows.append(json.dumps({"file_name": name, "objects": objects}) + "\n")
    _write(folder, "train/metadata.jsonl", "".join(rows))
    names = "".join(f"            '{n}': {json.dumps(name)}\n" for n, name in enumerate(dataset.classes))
    card = (
        "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: objects\n    struct:\n"
        "    - name: bbox\n      list:\n        list: float32\n        length: 4\n    - name: categories\n      list:\n"
        f"        class_label:\n          names:\n{names}---\n# A data set\n"
    )
    return _write(folder, "README.md", card)


def write_supervisely(dataset: DetectionDataset, folder: Path) -> Path:
    """As the SDK writes a project: rectangles, and bitmaps for every third object; no crowd regions."""
    classes = [{"title": name, "description": "", "shape": "any", "color": "#8A0F21"} for name in dataset.classes]
    _write(folder, "meta.json", json.dumps({"classes": classes, "tags": []}, indent=4))
    for sample, name in _placed(dataset, folder / "train/img"):
        objects: list[dict[str, Any]] = []
        for number, (class_name, (left, top, right, bottom), _) in enumerate(_objects(dataset, sample)):
            item: dict[str, Any] = {"classTitle": class_name, "description": "", "tags": []}
            if number % 3 == 2:
                corner = [int(left), int(top)]
                item["bitmap"] = {
                    "origin": corner,
                    "data": bitmap_data(int(right) - corner[0], int(bottom) - corner[1]),
                }
                item["geometryType"] = "bitmap"
            else:
                item["points"] = {"exterior": [[left, top], [right, bottom]], "interior": []}
                item["geometryType"] = "rectangle"
            objects.append(item)
        width, height = sample.size_wh
        content = {"description": "", "size": {"height": height, "width": width}, "tags": [], "objects": objects}
        _write(folder, f"train/ann/{name}.json", json.dumps(content, indent=4))
    return folder


WRITERS: dict[str, Callable[[DetectionDataset, Path], Path]] = {
    "datumaro": write_datumaro,
    "visdrone": write_visdrone,
    "kitti": write_kitti,
    "openimages": write_openimages,
    "dota": write_dota,
    "huggingface": write_huggingface,
    "supervisely": write_supervisely,
}


def bitmap_data(width: int, height: int) -> str:
    """Data of a Supervisely bitmap whose pixels are all set: a PNG of one bit, packed once more, as text."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = (b"\0" + b"\xff" * ((width + 7) // 8)) * height
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return base64.b64encode(zlib.compress(png)).decode()


def _placed(dataset: DetectionDataset, folder: Path) -> list[tuple[Sample, str]]:
    """Samples with the names that their images have in the folder, into which they are copied."""
    folder.mkdir(parents=True, exist_ok=True)
    placed = list(zip(dataset.samples, unique_names(dataset.samples), strict=True))
    for sample, name in placed:
        shutil.copyfile(sample.path, folder / name)
    return placed


def _objects(dataset: DetectionDataset, sample: Sample) -> list[tuple[str, list[float], bool]]:
    names = [dataset.classes[int(class_id)] for class_id in sample.class_ids]
    return list(zip(names, sample.boxes_xyxy.tolist(), sample.is_crowd.tolist(), strict=True))


def _write(folder: Path, name: str, text: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def _write_csv(file: Path, rows: list[list[str]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
