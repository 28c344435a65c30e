"""Meaning of the columns of a table of boxes, by the names in its first row.

The four numbers of a box have many names. What a name leaves open (`x, y, width, height`: of the box or of the image,
from its corner or its center) is left open here, for the reader to decide with all rows, or to refuse.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

BoxMeaning = Literal["corners", "size", "center", "size or center", "size or corners"]
"""Meaning of the four numbers of a box.

Left and top are followed by right and bottom (corners) or by width and height (size); or they are the center, width and
height; or one of two of these.
"""


class Columns(NamedTuple):
    """Positions of the columns of a table, from 0."""

    image: int
    """Name of the image."""
    box: tuple[int, ...]
    """Four numbers of the box, in the order of their meaning; or one column that holds all four."""
    meaning: BoxMeaning
    """Meaning of the four numbers."""
    class_names: tuple[int, ...]
    """Columns that may be the class: several if their names do not tell, none if there is none."""
    size_wh: tuple[int, int] | None = None
    """Width and height of the image."""
    split: int | None = None
    """Split that the image belongs to."""
    crowd: int | None = None
    """Mark of a region of many objects."""
    unknown: tuple[int, ...] = ()
    """Columns whose name says nothing."""


# fmt: off
_PREFIX = re.compile(r"(boundingbox|bndbox|bbox|box|roi|rect)(?=.)")
_LEFT = ("xmin", "minx", "left", "xleft", "leftx", "xtl", "tlx", "topleftx", "xtopleft", "upperleftcornerx",
         "upperleftx", "startx", "xstart", "x1")
_RIGHT = ("xmax", "maxx", "right", "xright", "rightx", "xbr", "brx", "bottomrightx", "xbottomright",
          "lowerrightcornerx", "lowerrightx", "endx", "xend", "x2")
_TOP = ("ymin", "miny", "top", "ytop", "topy", "ytl", "tly", "toplefty", "ytopleft", "upperleftcornery", "upperlefty",
        "starty", "ystart", "y1")
_BOTTOM = ("ymax", "maxy", "bottom", "ybottom", "bottomy", "ybr", "bry", "bottomrighty", "ybottomright",
           "lowerrightcornery", "lowerrighty", "endy", "yend", "y2")
_CENTER_X = ("xcenter", "centerx", "xcentre", "centrex", "xc", "cx", "xmid", "midx", "xctr", "ctrx")
_CENTER_Y = tuple(name.replace("x", "y") for name in _CENTER_X)
_WIDTH, _HEIGHT = ("w", "bw", "width"), ("h", "bh", "height")
_SHAPES: tuple[tuple[BoxMeaning, tuple[tuple[str, ...], ...]], ...] = (
    ("corners", (_LEFT, _TOP, _RIGHT, _BOTTOM)),
    ("center", (_CENTER_X, _CENTER_Y, _WIDTH, _HEIGHT)),
    ("size", (_LEFT, _TOP, _WIDTH, _HEIGHT)),
    ("size or center", (("x",), ("y",), _WIDTH, _HEIGHT)),
)
_IN_ONE_COLUMN: dict[str, BoxMeaning] = {
    "": "size or corners",
    **dict.fromkeys(("xywh", "ltwh", "coco", "xywidthheight", "xminyminwidthheight"), "size"),
    **dict.fromkeys(("xyxy", "ltrb", "voc", "pascalvoc", "x1y1x2y2", "xminyminxmaxymax"), "corners"),
    **dict.fromkeys(("cxcywh", "xcycwh"), "center"),
}
_IMAGES = ("filename", "imagename", "imagefilename", "imagefile", "imgname", "imgfile", "filepath", "imagepath",
           "imgpath", "file", "path", "image", "img", "imageid", "imgid", "photo", "picture", "name")
_CLASSES = (
    ("class", "classname", "label", "labelname", "category", "categoryname", "classlabel"),
    ("object", "objectname", "objectclass", "name", "type", "tag", "annotationtag", "target"),
    ("classid", "labelid", "categoryid"),
)
_IMAGE_WIDTHS = ("imagewidth", "imgwidth", "imagew", "imgw", "imwidth", "imw", "origwidth", "originalwidth", "width")
_IMAGE_HEIGHTS = ("imageheight", "imgheight", "imageh", "imgh", "imheight", "imh", "origheight", "originalheight",
                  "height")
_SPLITS = ("split", "subset", "set", "partition", "datasplit")
_CROWDS = ("iscrowd", "crowd", "isgroupof")
# Known to say nothing about the class, so that a table without a class column may have them.
_NO_CLASSES = frozenset({
    "", "id", "index", "idx", "unnamed0", "row", "rowid", "annotationid", "annid", "objectid", "bboxid", "boxid",
    "source", "area", "bboxarea", "confidence", "conf", "score", "difficult", "truncated", "occluded", "depth",
    "channels", "url", "imageurl", "path", "filepath", "imagepath", "imageid",
})
# fmt: on


def columns_of(header: Sequence[str]) -> Columns | None:
    """Columns of a table of boxes; None if the names are not those of an image and a box, or one appears twice."""
    names = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in header]
    at = {name: position for position, name in enumerate(names) if name}
    if len(at) < sum(map(bool, names)):
        return None
    found = _box_in_columns(at) or _box_in_one_column(at)
    used = set(found[1]) if found else set()
    image = next((at[name] for name in _IMAGES if name in at and at[name] not in used), None)
    if found is None or image is None:
        return None
    meaning, box = found
    used.add(image)
    size_wh = _free(at, _IMAGE_WIDTHS, used), _free(at, _IMAGE_HEIGHTS, used)
    split, crowd = _free(at, _SPLITS, used), _free(at, _CROWDS, used)
    tiers = [tuple(at[name] for name in tier if name in at and at[name] not in used) for tier in _CLASSES]
    classes = next(filter(None, tiers), ())
    used.update(position for position in (*size_wh, split, crowd, *classes) if position is not None)
    unknown = tuple(position for position, name in enumerate(names) if position not in used and name not in _NO_CLASSES)
    whole = (size_wh[0], size_wh[1]) if size_wh[0] is not None and size_wh[1] is not None else None
    return Columns(image, box, meaning, classes, whole, split, crowd, unknown)


def _box_in_columns(at: Mapping[str, int]) -> tuple[BoxMeaning, tuple[int, ...]] | None:
    """Meaning and columns of a box whose numbers have a column each.

    Where some names begin with `bbox_` and others do not, as in `bbox_width` beside `width`, those that do are meant.
    """
    if {"x3", "y3"} & at.keys():
        return None  # a quadrangle
    with_prefix = {_PREFIX.sub("", name, count=1): place for name, place in at.items() if _PREFIX.match(name)}
    for pool in (with_prefix, at, {**at, **with_prefix}):
        pool = _from_one(pool)
        for meaning, roles in _SHAPES:
            places = [next((pool[name] for name in role if name in pool), None) for role in roles]
            if None not in places:
                return meaning, tuple(place for place in places if place is not None)
    return None


def _from_one(pool: Mapping[str, int]) -> dict[str, int]:
    """Columns with x0 and x1 called x1 and x2."""
    if not {"x0", "y0", "x1", "y1"} <= pool.keys() or {"x2", "y2"} & pool.keys():
        return dict(pool)
    renamed = {"x0": "x1", "y0": "y1", "x1": "x2", "y1": "y2"}
    return {renamed.get(name, name): place for name, place in pool.items()}


def _box_in_one_column(at: Mapping[str, int]) -> tuple[BoxMeaning, tuple[int, ...]] | None:
    for name, place in at.items():
        match = re.fullmatch(r"(?:bboxes|bbox|boundingbox|box)(.*)", name)
        if match and match[1] in _IN_ONE_COLUMN:
            return _IN_ONE_COLUMN[match[1]], (place,)
    return None


def _free(at: Mapping[str, int], names: Sequence[str], used: set[int]) -> int | None:
    return next((at[name] for name in names if name in at and at[name] not in used), None)
