"""Names of the annotation formats that are read and written; `data/open.py` has the reader of each."""

from typing import Literal

FormatName = Literal[
    "coco",
    "yolo",
    "voc",
    "csv",
    "labelme",
    "cvat",
    "via",
    "createml",
    "labelstudio",
    "datumaro",
    "visdrone",
    "kitti",
    "openimages",
    "dota",
    "huggingface",
    "supervisely",
]
"""Name of an annotation format."""

TargetName = Literal["coco", "yolo", "voc"]
"""Name of a format that data sets can be written in."""
