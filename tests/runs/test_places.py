import json
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.core.errors import ConfigError
from deformable_detr.runs.places import DataPlaces, read_places


def test_there_and_back(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    for places in (DataPlaces(), DataPlaces("/photos", "more", "yolo", ("a.jpg", "b/c.jpg"))):
        file.write_text(json.dumps(places.record()))
        assert read_places(file) == places
    file.write_text("{}")
    assert read_places(file) == DataPlaces()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *(("path", value, "path must be a path or null") for value in (5, "", True, [], 10**30, "a\0", "x" * 5000)),
        *(("val_path", value, "val_path must be a path or null") for value in (0, [], {"a": 1})),
        *(("format", value, "format must be null or one of coco, yolo, voc") for value in ("x", "", 1, [], {}, True)),
        *(("held_out", value, "held_out must be a list of texts") for value in ("x", 1, [1], [None], {"a": 1})),
    ],
)
def test_strange_values(name: str, value: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps({"path": "/photos", name: value}))
    with pytest.raises(ConfigError, match=rf"data\.json: {message}"):
        read_places(file)
