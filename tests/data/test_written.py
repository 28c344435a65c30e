from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deformable_detr.data.check import check_dataset
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.open import list_splits, open_dataset, recognise
from deformable_detr.data.splits import open_training_data
from tests.data import written

Writer = Callable[[DetectionDataset, Path], Path]
WRITERS: dict[str, Writer] = {
    "csv": written.write_csv,
    "labelme": written.write_labelme,
    "cvat": written.write_cvat,
    "via": written.write_via,
    "createml": written.write_createml,
    "labelstudio": written.write_labelstudio,
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_read_again(name: str, drawn: DetectionDataset, tmp_path: Path) -> None:
    folder = WRITERS[name](drawn, tmp_path / "out")
    assert recognise(folder).format == name
    assert list_splits(folder) == ("train",)
    dataset = open_dataset(folder)
    assert dataset.problems == ()
    assert set(dataset.classes) == set(drawn.classes)
    found = {sample.path.name: sample for sample in dataset.samples}
    for placed in written.placed(drawn, tmp_path / "again"):
        sample = found.pop(placed.name)
        assert sample.size_wh == placed.size_wh
        names = [dataset.classes[class_id] for class_id in sample.class_ids]
        assert names == [name for name, _, _ in placed.objects]
        boxes = np.array([box for _, box, _ in placed.objects]).reshape(-1, 4)
        np.testing.assert_allclose(sample.boxes_xyxy, boxes, atol=1e-9)
        assert sample.is_crowd.tolist() == [name == "csv" and crowd for _, _, crowd in placed.objects]
    assert found == {}


@pytest.mark.parametrize("name", WRITERS)
def test_it_can_be_checked_and_trained_on(name: str, drawn: DetectionDataset, tmp_path: Path) -> None:
    folder = WRITERS[name](drawn, tmp_path / "out")
    report = check_dataset(folder)
    assert report.ok
    assert (report.format, list(report.splits)) == (name, ["train"])
    assert report.problems == ()
    data = open_training_data(folder, val_share=0.4, seed=0, skip_bad_images=False)
    assert (len(data.train), len(data.val)) == (2, 1)
