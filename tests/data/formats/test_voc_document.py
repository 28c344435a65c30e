import math
from xml.etree.ElementTree import fromstring

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.formats.voc_document import Annotation, parse_annotation


def parsed(*shapes: str, root: str = "annotation", before: str = "") -> Annotation:
    objects = "".join(f"<object><name>cat</name>{shape}</object>" for shape in shapes)
    return parse_annotation(fromstring(f"<{root}>{before}{objects}</{root.partition(' ')[0]}>"), "a.xml")


def rotated(x: float, y: float, width: float, height: float, angle: float) -> str:
    return f"<robndbox><cx>{x}</cx><cy>{y}</cy><w>{width}</w><h>{height}</h><angle>{angle}</angle></robndbox>"


BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>22</ymax></bndbox>"
NUMBERED = "<polygon><x1>5</x1><y1>8.5</y1><x2>30</x2><y2>7</y2><x3>21</x3><y3>25</y3></polygon>"
POINTS = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in ((5, 8.5), (30, 7), (21, 25)))
POINTS = f"<polygon><username>x</username>{POINTS}</polygon>"


def test_a_box_goes_before_other_shapes() -> None:
    found = parsed(BOX + NUMBERED + rotated(9, 9, 2, 2, 0))
    assert found.boxes_xyxy == [(1, 2, 11, 22)]
    assert (found.num_rotated, found.num_polygons, found.num_deleted) == (0, 0, 0)


@pytest.mark.parametrize("polygon", [NUMBERED, POINTS])
def test_polygons(polygon: str) -> None:
    found = parsed(BOX, polygon)
    assert found.boxes_xyxy == [(1, 2, 11, 22), (5, 7, 30, 25)]
    assert (found.num_rotated, found.num_polygons) == (0, 1)


@pytest.mark.parametrize(
    ("angle", "half_width", "half_height"),
    [
        (0, 15, 5),
        (math.pi / 2, 5, 15),
        (math.pi, 15, 5),
        (-math.pi / 6, 7.5 * math.sqrt(3) + 2.5, 7.5 + 2.5 * math.sqrt(3)),
        (2.5, 15 * 0.8011436155 + 5 * 0.5984721441, 15 * 0.5984721441 + 5 * 0.8011436155),
    ],
)
def test_rotated_boxes(angle: float, half_width: float, half_height: float) -> None:
    found = parsed(rotated(40, 30, 30, 10, angle))
    assert found.boxes_xyxy[0] == pytest.approx(
        (40 - half_width, 30 - half_height, 40 + half_width, 30 + half_height), abs=1e-8
    )
    assert found.num_rotated == 1


def test_names_may_have_a_namespace() -> None:
    found = parsed(BOX, root='annotation xmlns="http://example.org/voc"', before="<filename>x.jpg</filename>")
    assert found.boxes_xyxy == [(1, 2, 11, 22)]
    assert found.image_name == "x.jpg"


def test_deleted_objects_are_left_out() -> None:
    found = parsed(BOX, f"<deleted>1</deleted>{POINTS}", f"<deleted>0</deleted>{POINTS}")
    assert found.boxes_xyxy == [(1, 2, 11, 22), (5, 7, 30, 25)]
    assert found.num_deleted == 1


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("", "object 1 has no <bndbox>, <robndbox> or <polygon>"),
        ("<bndbox/>", "object 1 has no <xmin> in a <bndbox>"),
        (BOX + BOX, "object 1 has 2 elements <bndbox>; write an object for each"),
        (BOX.replace(">11<", ">5,5<"), "<xmax> must be a number, not '5,5'; write decimals with a point"),
        (BOX.replace(">11<", ">5 5<"), "<xmax> must be a number, not '5 5'$"),
        (rotated(9, 9, 2, 2, 90), "<angle> must be in radians, not 90"),
        ("<robndbox><cx>1</cx></robndbox>", "object 1 has no <cy> in a <robndbox>"),
        ("<polygon><pt><x>5</x><y>5</y></pt></polygon>", "needs 3 points or more, and its <polygon> has 1"),
        ("<polygon/>", "needs 3 points or more, and its <polygon> has 0"),
        (NUMBERED.replace("<y2>7</y2>", ""), "point 2 of its <polygon> lacks its x or y"),
        (NUMBERED.replace(">7<", ">7,5<"), "<y2> must be a number, not '7,5'; write decimals with a point"),
        (POINTS.replace("<x>30</x>", ""), "<x> must be a number, not ''"),
    ],
)
def test_shapes_that_cannot_be_used(shape: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.xml: object 1.*{message}|a\.xml: {message}"):
        parsed(shape)


@pytest.mark.parametrize("shape", [rotated(9, 9, 2, math.inf, 0), NUMBERED.replace(">7<", ">nan<")])
def test_shapes_that_are_not_finite_are_left_to_the_rules_for_boxes(shape: str) -> None:
    assert all(map(math.isnan, parsed(shape).boxes_xyxy[0]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<project/>", "not a VOC annotation: the outer element is <project>"),
        (
            f"<annotation><objects><object>{BOX}</object></objects></annotation>",
            "it has <object>, but no <object>",
        ),
        (f"<annotation><Object>{BOX}</Object></annotation>", "it has <Object>, but no <object> directly within <anno"),
        (f"<annotation><item>{BOX}</item></annotation>", "it has <bndbox>, but no <object> directly"),
    ],
)
def test_other_documents_are_not_without_objects(text: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.xml: {message}"):
        parse_annotation(fromstring(text), "a.xml")
    assert parse_annotation(fromstring("<Annotation/>"), "a.xml").class_names == []
