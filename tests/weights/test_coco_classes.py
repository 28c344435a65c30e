"""COCO's ids, by the pairs everybody knows."""

from deformable_detr.weights.coco_classes import COCO_CLASSES, UNUSED


def test_channels_are_category_ids():
    known = {1: "person", 17: "cat", 44: "bottle", 63: "couch", 67: "dining table", 75: "remote", 90: "toothbrush"}
    assert {number: COCO_CLASSES[number] for number in known} == known
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == 91


def test_eleven_channels_belong_to_nothing():
    unused = [number for number, name in enumerate(COCO_CLASSES) if name.startswith(UNUSED)]
    assert unused == [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert [COCO_CLASSES[number] for number in unused] == [f"{UNUSED}{number}" for number in unused]
