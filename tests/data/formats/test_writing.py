from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deformable_detr.core.errors import OutputError
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats import coco, voc, yolo
from deformable_detr.data.formats.writing import place_image, unique_names, write_in
from deformable_detr.data.open import open_dataset


def test_coco_yolo_voc_coco(drawn: DetectionDataset, tmp_path: Path) -> None:
    samples = [replace(sample, is_crowd=np.zeros_like(sample.is_crowd)) for sample in drawn.samples]
    first = replace(drawn, samples=samples)
    current = first
    for number, module in enumerate((coco, yolo, voc, coco)):
        folder = tmp_path / str(number)
        assert module.save(current, folder, split="test", images="link") == ()
        current = open_dataset(folder, split="test")
        assert current.classes == first.classes
        assert current.problems == ()
        for before, after in zip(samples, current.samples, strict=True):
            assert before.size_wh == after.size_wh
            assert before.path.read_bytes() == after.path.read_bytes()
            np.testing.assert_allclose(before.boxes_xyxy, after.boxes_xyxy, atol=1e-6)
            np.testing.assert_allclose(before.areas, after.areas, rtol=1e-9)
            np.testing.assert_array_equal(before.class_ids, after.class_ids)
            np.testing.assert_array_equal(before.is_crowd, after.is_crowd)


def test_recorded_data_is_the_same_in_every_form(shared: Path) -> None:
    folder = shared / "data" / "bccd"
    for split, dropped in (("train", 1), ("val", 1), ("test", 0)):
        from_json = open_dataset(folder, split=split)
        from_xml = open_dataset(folder, split=split, format="voc")
        assert "COCO" in from_json.source
        assert "also holds VOC" in from_json.source
        assert "also holds COCO" in from_xml.source
        assert [problem.kind for problem in from_xml.problems] == ["degenerate_box"] * dropped
        assert set(from_json.classes) == set(from_xml.classes)
        xml_samples = {sample.path: sample for sample in from_xml.samples}
        assert set(xml_samples) == {sample.path for sample in from_json.samples}
        for sample in from_json.samples:
            other = xml_samples[sample.path]
            assert sample.size_wh == other.size_wh
            np.testing.assert_array_equal(sample.boxes_xyxy, other.boxes_xyxy)
            assert [from_json.classes[i] for i in sample.class_ids] == [from_xml.classes[i] for i in other.class_ids]


def test_names_are_unique_printable_and_keep_their_endings(drawn: DetectionDataset) -> None:
    names = ["a.jpg", "A.png", "a.jpg", "b\n.jpg", ".x.png", "#y.png", "no ending", "a_2.gif"]
    samples = [replace(drawn.samples[0], path=Path("somewhere") / name) for name in names]
    unique = unique_names(samples, ["b_"])
    assert unique == ["a.jpg", "A_2.png", "a_3.jpg", "b__2.jpg", "_.x.png", "_#y.png", "no ending.jpg", "a_2_2.gif"]


def test_what_cannot_be_written(tmp_path: Path, photo: Callable[..., Path]) -> None:
    with pytest.raises(OutputError, match="not valid Unicode"):
        write_in(tmp_path, "a.txt", "\ud800")
    with pytest.raises(OutputError, match="cannot write"):
        place_image(tmp_path / "missing.png", tmp_path / "b.png", "copy")
    assert list(tmp_path.iterdir()) == []
    image = photo(tmp_path / "c.png")
    place_image(image, image, "link")
    assert not image.is_symlink()
