import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.formats.createml import parse_images
from deformable_detr.data.open import list_splits, open_dataset, recognise


def item(name: str, *labels: str, **keys: str) -> dict[str, Any]:
    coordinates = {"x": 11, "y": 10.5, "width": 5, "height": 3}
    annotations = [{"label": label, "coordinates": coordinates} for label in labels]
    return {keys.get("image", "image"): name, keys.get("annotations", "annotations"): annotations}


@pytest.mark.parametrize("keys", [{}, {"image": "imagefilename", "annotations": "annotation"}])
def test_boxes_have_their_center(keys: dict[str, str], tmp_path: Path, photo: Callable[..., Path]) -> None:
    for split, labels in (("train", ["vehicle", "plate"]), ("valid", ["plate"])):
        photo(tmp_path / split / "a.png", (50, 30))
        photo(tmp_path / split / "b.png", (50, 30))
        document = [item("a.png", *labels, **keys), item("b.png", **keys)]
        (tmp_path / split / "_annotations.createml.json").write_text(json.dumps(document))
    assert recognise(tmp_path).format == "createml"
    assert list_splits(tmp_path) == ("train", "val")
    train, val = (open_dataset(tmp_path, split=split) for split in ("train", "val"))
    assert train.classes == val.classes == ("plate", "vehicle")
    assert train.samples[0].boxes_xyxy.tolist() == [[8.5, 9, 13.5, 12]] * 2
    assert train.samples[0].class_ids.tolist() == [1, 0]
    assert len(train.samples[1].class_ids) == 0
    assert train.problems == ()
    file = tmp_path / "train/_annotations.createml.json"
    assert open_dataset(file).num_objects == 2
    assert recognise(file).format == "createml"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "x: not CreateML annotations: expected a list of images, found {}"),
        ([3], "x: image 1 is 3, not an object"),
        ([{"annotations": []}], r"x: image 1: the name of the image \(image\) must be text, not None"),
        ([{"image": "a.png", "annotations": {}}], r"x: image 1 \('a.png'\): its annotations must be a list, not {}"),
        ([{"image": "a.png", "annotations": [{"label": "cat"}]}], "x: image 1, object 1: expected a label and coord"),
        (
            [{"image": "a.png", "annotations": [{"label": "cat", "coordinates": {"x": 1, "y": 2, "width": 3}}]}],
            "x: image 1, object 1: height must be a number, not None",
        ),
        ([item("a.png", "")], "x: image 1, object 1: the label must be text, not ''"),
    ],
)
def test_what_is_not_as_it_should_be(document: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_images(document, "x")
