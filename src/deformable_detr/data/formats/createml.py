"""CreateML format: a json of a list of images; boxes have their center and size in pixels.

    [{"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": {"x": 9, "y": 7, "width": 4, "height": 2}}]}]

Roboflow writes it as `_annotations.createml.json` beside the images of each split. Older files say `imagefilename` and
`annotation`.
"""

from functools import partial
from pathlib import Path
from typing import Any

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import Problem
from deformable_detr.data.formats.json_kinds import JsonStarts, start_of_json
from deformable_detr.data.formats.parsing import class_text, name_text, read_json, real_number, shown
from deformable_detr.data.formats.records import ImageRecord, ObjectRecord, RecordPart, part_loaders
from deformable_detr.data.formats.shapes import Box
from deformable_detr.data.formats.split_files import image_folders, split_files
from deformable_detr.data.formats.split_names import SplitLoaders

LOOKED_FOR = (
    "CreateML: a json that lists images with annotations of label and coordinates, such as _annotations.createml.json, "
    "in the folder or in train/, val/, test/"
)
_IMAGE_KEYS = ("image", "imagefilename", "imageURL")


def find_splits(path: Path, starts: JsonStarts = start_of_json) -> SplitLoaders:
    """CreateML splits of a folder or of one json file; empty if there are none."""
    found = split_files(path, (".json",), lambda file: starts(file).kind == "createml")
    parts = [
        RecordPart(split, str(file), image_folders(file, split), partial(_read_images, file)) for split, file in found
    ]
    return part_loaders(parts, "CreateML")


def _read_images(file: Path, _: list[Problem]) -> list[ImageRecord]:
    return parse_images(read_json(file), str(file))


def parse_images(document: object, where: str) -> list[ImageRecord]:
    """Images and objects of a CreateML document.

    Raises:
        DataError: it is something else, or an object lacks its label or a coordinate.
    """
    if not isinstance(document, list):
        raise DataError(f"{where}: not CreateML annotations: expected a list of images, found {shown(document)}")
    records = []
    for position, item in enumerate(document):
        place = f"{where}: image {position + 1}"
        if not isinstance(item, dict):
            raise DataError(f"{place} is {shown(item)}, not an object")
        key = next((key for key in _IMAGE_KEYS if key in item), _IMAGE_KEYS[0])
        name = name_text(item.get(key), place, f"the name of the image ({key})")
        found = item.get("annotations", item.get("annotation"))
        if not isinstance(found, list):
            raise DataError(f"{place} ({shown(name)}): its annotations must be a list, not {shown(found)}")
        objects = [_parse_object(one, f"{place}, object {number + 1}") for number, one in enumerate(found)]
        records.append(ImageRecord(name, place, objects))
    return records


def _parse_object(item: Any, where: str) -> ObjectRecord:
    coordinates = item.get("coordinates") if isinstance(item, dict) else None
    if not isinstance(coordinates, dict):
        raise DataError(f"{where}: expected a label and coordinates of x, y, width and height, found {shown(item)}")
    x, y, width, height = (real_number(coordinates.get(key), where, key) for key in ("x", "y", "width", "height"))
    box: Box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return ObjectRecord(class_text(item.get("label"), where, "the label"), box, where)
