from dataclasses import replace

import numpy as np

from deformable_detr.data.formats.coco_document import document, image_record, object_record, to_document


def test_boxes_have_width_and_height_and_an_area_of_their_own_or_theirs():
    one = object_record(7, 3, 90, [1.5, 2.0, 5.0, 10.0])
    assert one == {"id": 7, "image_id": 3, "category_id": 90, "bbox": [1.5, 2.0, 3.5, 8.0], "area": 28.0, "iscrowd": 0}
    other = object_record(7, 3, 90, [1.5, 2.0, 5.0, 10.0], area=11.0, is_crowd=True, score=0.25)
    assert other == one | {"area": 11.0, "iscrowd": 1, "score": 0.25}


def test_a_document():
    image = image_record(3, "a.jpg", (50, 30))
    assert image == {"id": 3, "file_name": "a.jpg", "width": 50, "height": 30}
    found = document([image], [], ["cat", "dog"], [17, 18])
    assert found["images"] == [image]
    assert [(one["id"], one["name"]) for one in found["categories"]] == [(17, "cat"), (18, "dog")]


def test_a_data_set_keeps_its_ids(drawn):
    first = replace(drawn.samples[0], is_crowd=np.ones_like(drawn.samples[0].is_crowd))
    dataset = replace(drawn, samples=[first, *drawn.samples[1:]])
    found = to_document(dataset, [str(number) for number in range(len(dataset))])
    assert [one["id"] for one in found["images"]] == [sample.image_id for sample in dataset.samples]
    assert [one["id"] for one in found["annotations"]] == [i for sample in dataset.samples for i in sample.object_ids]
    of_first = [one for one in found["annotations"] if one["image_id"] == first.image_id]
    assert [one["iscrowd"] for one in of_first] == [1] * len(first.class_ids)
    assert [one["area"] for one in of_first] == first.areas.tolist()
