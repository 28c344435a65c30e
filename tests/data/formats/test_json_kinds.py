import json
import time
from pathlib import Path

import pytest

from deformable_detr.core.reading import json_value
from deformable_detr.data.formats import json_kinds
from deformable_detr.data.formats.json_kinds import JsonStart, outline_of, start_of_json

LABELME_SHAPE = {"label": "cat", "points": [[1, 2], [3, 4]], "shape_type": "rectangle"}
VIA_IMAGE = {"filename": "a.png", "size": 9, "regions": [], "file_attributes": {}}
REGION = {"original_width": 5, "original_height": 4, "value": {}}


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ({"version": "5.5.0", "flags": {}, "shapes": [LABELME_SHAPE], "imagePath": "a.png"}, "labelme"),
        ({"shapes": [], "imagePath": "a.png"}, "labelme"),
        ({"imageData": "A" * 500_000, "shapes": []}, "labelme"),
        ({"_via_settings": {}, "_via_img_metadata": {}}, "via"),
        ({"a.png9": VIA_IMAGE}, "via"),
        ([{"image": "a.png", "annotations": []}], "createml"),
        ([{"annotation": [], "imagefilename": "a.png"}], "createml"),
        ([{"id": 1, "data": {"image": "a.png"}, "annotations": []}], "labelstudio"),
        ([{"image": "a.png", "id": 1, "box": [REGION], "annotator": 1}], "labelstudio"),
        ([{"image": "a.png", "annotator": 1, "annotation_id": 2}], "labelstudio"),
        ({"images": [{"file_name": "a.png"}], "annotations": [], "categories": []}, None),
        ([{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}], None),
        ({"name": "package", "shapes": "none"}, None),
        ({"a": {"regions": []}, "b": {"filename": "x"}}, None),
        ([], None),
        ("shapes", None),
    ],
)
def test_kinds(document: object, kind: str | None, tmp_path: Path) -> None:
    for indent in (None, 2):
        (tmp_path / "x.json").write_text(json.dumps(document, indent=indent))
        assert start_of_json(tmp_path / "x.json").kind == kind


def test_keys_with_their_places() -> None:
    text = rb'{"a:{": ["b", {"c\"": 1, "d": [[{"e": 2}]]}], "f": "g": 3, "cut'
    assert outline_of(text).keys == {
        ("a:{",), ("a:{", "[]", r"c\""), ("a:{", "[]", "d"), ("a:{", "[]", "d", "[]", "[]", "e"), ("f",), ("g",),
    }  # fmt: skip


def test_values_of_the_outermost_object() -> None:
    text = rb'{"a": [{"b": 1}], "c" :{"d": 2} , "e": "{", "f":' + b"\n-3"
    assert (
        outline_of(text).outer == outline_of(b"\xef\xbb\xbf " + text).outer == {"a": "[", "c": "{", "e": '"', "f": "-"}
    )
    assert outline_of(b"[" + text).outer == outline_of(b"var x = " + text).outer == {}
    begin = b'{"info": "' + b"x" * 65_514 + b'", "images":'
    assert outline_of(begin + b"[").outer == {"info": '"', "images": "["}
    late = begin.replace(b"x", b"xx", 1) + b"["
    assert outline_of(late).keys == {("info",), ("images",)}
    assert outline_of(late).outer == {"info": '"'}


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ('{"images": [], "annotations": []}', (True, True)),
        ('{"images": []}', (False, True)),
        ('{"images": [{"file_name": "a.png"}]}', (True, True)),
        ('{"categories": []}', (False, False)),
        ("[1]", (False, False)),
        ('{"images": [', (True, True)),
        ('{"licenses": [', (False, True)),
    ],
)
def test_a_file_is_parsed_once(
    text: str, answers: tuple[bool, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beginning says both whether it is COCO's, and whether it counts as such where that is expected."""
    parsed = []

    def counted(content: bytes) -> object:
        parsed.append(content)
        return json_value(content)

    monkeypatch.setattr(json_kinds, "json_value", counted)
    (tmp_path / "x.json").write_text(text)
    start = start_of_json(tmp_path / "x.json")
    assert (start.is_coco, start.may_be_coco) == answers
    assert parsed == [text.encode()]


def test_quotes_that_never_end_take_no_time() -> None:
    start = time.monotonic()
    assert outline_of(b'"' + b'\\"' * 120_000 + b"\\") == (frozenset(), {})
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"]]}}", b"[" * 300_000, b'"' * 9, b'{"a' * 99_999])
def test_what_is_no_json(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert start_of_json(tmp_path / "x.json").kind is None
    assert start_of_json(tmp_path / "none.json") == start_of_json(tmp_path) == JsonStart()
