import json

import numpy as np
import pytest
from PIL import Image

from deformable_detr.core.errors import ConfigError, OutputError
from deformable_detr.data.images import read_image
from deformable_detr.data.open import list_splits, open_dataset
from deformable_detr.data.synthetic import SHAPES, SceneStyle, draw_scene, draw_scenes

STYLE = SceneStyle(size_wh=(96, 64))


def scenes(number, style=STYLE):
    return [draw_scene(np.random.default_rng((5, i)), style) for i in range(number)]


def test_a_data_set_on_disk_opens_without_complaint(tmp_path):
    folder = draw_scenes(tmp_path / "new" / "scenes", 3, 2, seed=4, style=STYLE)
    assert list_splits(folder) == ("train", "val")
    for split, number in (("train", 3), ("val", 2)):
        dataset = open_dataset(folder, split=split)
        assert dataset.classes == SHAPES
        assert len(dataset) == number
        assert not dataset.fatal_problems
        for sample in dataset.samples:
            assert read_image(sample).size == sample.size_wh
            assert (sample.areas < (sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]).prod(1) + 1e-9).all()


def test_one_seed_one_data_set_and_more_images_only_add(tmp_path):
    for name, number, seed in (("a", 2, 1), ("again", 2, 1), ("longer", 3, 1), ("other", 2, 2)):
        draw_scenes(tmp_path / name, number, 1, seed=seed, style=STYLE)

    def files(name, split="train"):
        return [path.read_bytes() for path in sorted((tmp_path / name / split).glob("*.jpg"))]

    assert files("a") == files("again") == files("longer")[:2]
    assert files("a") != files("other")
    assert files("a")[0] != files("a", "val")[0]
    annotations = [(tmp_path / name / "train" / "_annotations.coco.json").read_bytes() for name in ("a", "again")]
    assert annotations[0] == annotations[1]


def test_pictures_and_boxes_vary_and_make_sense():
    drawn = scenes(40)
    sizes = {scene.image.size for scene in drawn}
    assert len(sizes) > 20
    assert any(width < height for width, height in sizes)
    assert any(width > height for width, height in sizes)
    assert {class_id for scene in drawn for class_id in scene.class_ids.tolist()} == set(range(6))
    sides = []
    for scene in drawn:
        assert 1 <= len(scene.class_ids) <= 6
        width, height = scene.image.size
        boxes = scene.boxes_xyxy
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= [width, height]).all()
        extent = boxes[:, 2:] - boxes[:, :2]
        assert (extent >= 4).all()
        assert (scene.areas <= extent.prod(1)).all()
        sides += extent.max(1).tolist()
    assert max(sides) > 3.5 * min(sides)


def test_a_box_is_tight_around_what_was_drawn():
    """One object on a plain ground: its box is where the picture is colourful."""
    style = SceneStyle(size_wh=(120, 90), most_objects=1, classes=("square",), smallest=0.4)
    for scene in scenes(10, style):
        pixels = np.asarray(scene.image, dtype=int)
        colourful = pixels.max(2) - pixels.min(2) > 75
        rows, columns = np.nonzero(colourful)
        assert len(rows) > 50
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(found - scene.boxes_xyxy[0]).max() <= 4  # the dark rim


@pytest.mark.parametrize("shape", SHAPES)
def test_the_area_is_the_shape_s(shape):
    style = SceneStyle(size_wh=(200, 150), most_objects=1, classes=(shape,), smallest=0.5, largest=0.5)
    shares = {"disc": 0.785, "square": 0.5, "triangle": 0.325, "ring": 0.548, "star": 0.315, "cross": 0.512}
    whole = max(draw_scene(np.random.default_rng(i), style).areas[0] / 75**2 for i in range(6))
    # Pictures are 0.8 to 1 of the full size and shapes stretched by 0.82 to 1.
    assert 0.6 * shares[shape] < whole < 1.03 * shares[shape]


def test_colours_of_their_own_or_any():
    def hues(style):
        found = []
        for scene in scenes(12, style):
            left, top, right, bottom = scene.boxes_xyxy[0].astype(int)
            patch = scene.image.crop((left, top, right, bottom)).convert("HSV")
            values = np.asarray(patch).reshape(-1, 3)
            found += values[values[:, 1] > 150, 0].tolist()
        return np.array(found)

    one = {"size_wh": (80, 60), "most_objects": 1, "classes": ("square",), "smallest": 0.4}
    own, free = hues(SceneStyle(**one)), hues(SceneStyle(**one, own_colors=False))
    assert len(set((own // 32).tolist())) < len(set((free // 32).tolist()))


def test_all_of_one_size():
    drawn = scenes(12, SceneStyle(size_wh=(96, 64), same_size=True))
    assert {scene.image.size for scene in drawn} == {(96, 64)}
    sides = [side for scene in drawn for side in (scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2]).max(1)]
    assert max(sides) > 3 * min(sides)


def test_a_plain_background_is_of_one_colour():
    def spread(style):
        """Of the means of small patches, for the most even of the pictures' corners."""
        found = []
        for scene in scenes(8, style):
            pixels = np.asarray(scene.image, dtype=float)
            patches = pixels.reshape(8, 8, 8, 12, 3).mean((1, 3)).reshape(-1, 3)
            middle = np.median(patches, axis=0)
            found.append(np.median(np.abs(patches - middle).max(1)))
        return np.mean(found)

    one = {"size_wh": (96, 64), "same_size": True, "most_objects": 1, "largest": 0.2}
    assert spread(SceneStyle(**one, plain_background=True)) < 2 < 6 < spread(SceneStyle(**one))


def test_a_third_split_changes_nothing_in_the_others(tmp_path):
    for name, num_test in (("two", 0), ("three", 2)):
        draw_scenes(tmp_path / name, 1, 2, num_test=num_test, style=STYLE)
    assert list_splits(tmp_path / "two") == ("train", "val")
    assert list_splits(tmp_path / "three") == ("train", "val", "test")
    assert len(open_dataset(tmp_path / "three", split="test")) == 2

    def pictures(name, split):
        return [path.read_bytes() for path in sorted((tmp_path / name / split).glob("*.jpg"))]

    assert pictures("two", "val") == pictures("three", "val")
    assert not {*pictures("three", "test")} & {*pictures("three", "val"), *pictures("three", "train")}


def test_no_images_is_a_data_set_too(tmp_path):
    folder = draw_scenes(tmp_path, 0, 1, style=STYLE)
    assert json.loads((folder / "train" / "_annotations.coco.json").read_text())["images"] == []
    with Image.open(next((folder / "val").glob("*.jpg"))) as image:
        assert image.mode == "RGB"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write the scenes"):
        draw_scenes(tmp_path / "file", 1, 1)


@pytest.mark.parametrize(
    "settings",
    [{"classes": ("disc", "moon")}, {"classes": ()}, {"size_wh": (8, 90)}, {"smallest": 0.7}, {"most_objects": 0}],
)
def test_impossible_styles(settings):
    with pytest.raises(ConfigError, match="scenes"):
        SceneStyle(**settings)
