import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset, Sample, align_classes
from deformable_detr.data.formats import coco
from deformable_detr.data.open import open_dataset
from deformable_detr.data.splits import (
    check_has_training_split,
    open_for_evaluation,
    open_training_data,
    pair,
    read_splits,
)

OPTIONS = {"val_share": 0.1, "seed": 0, "skip_bad_images": False}


def dataset(tmp_path, count, classes=("a", "b"), labels=(0, 1)):
    samples = [
        Sample(
            path=tmp_path / f"{number}.png",
            size_wh=(30, 20),
            boxes_xyxy=np.array([[1.0, 2.0, 9.0, 8.0]] * len(labels)).reshape(-1, 4),
            class_ids=np.array(labels, dtype=np.int64),
            is_crowd=np.zeros(len(labels), dtype=np.bool_),
            areas=np.full(len(labels), 48.0),
            image_id=number,
            object_ids=tuple(range(10 * number, 10 * number + len(labels))),
        )
        for number in range(count)
    ]
    ids = tuple(range(5, 5 + len(classes)))
    return DetectionDataset(classes=classes, category_ids=ids, samples=samples, source=f"made of {count}")


def paths(data):
    return {sample.path for sample in data.samples}


def test_a_validation_split_is_used_as_it_is(scenes):
    data = open_training_data(scenes, **OPTIONS)
    assert (len(data.train), len(data.val)) == (8, 3)
    assert data.origin == "the validation split, 3 images"


def test_without_one_a_share_is_held_out_that_the_seed_decides(tmp_path):
    whole = dataset(tmp_path, 30)
    data = pair(whole, None, val_share=0.1, seed=4)
    assert (len(data.train), len(data.val)) == (27, 3)
    assert paths(data.train) | paths(data.val) == paths(whole)
    assert data.origin == "3 images held out, as there is no validation split"
    assert paths(pair(whole, None, val_share=0.1, seed=4).val) == paths(data.val)
    assert paths(pair(whole, None, val_share=0.1, seed=5).val) != paths(data.val)


def test_images_that_were_held_out_are_held_out_again(tmp_path):
    whole = dataset(tmp_path, 30)
    before = pair(whole, None, val_share=0.1, seed=4)
    assert set(before.held_out) == {path.name for path in paths(before.val)}
    options = {"val_share": 0.1, "seed": 4, "held_out": before.held_out}
    gone = next(index for index, sample in enumerate(whole.samples) if sample.path in paths(before.train))
    fewer = whole.subset([index for index in range(30) if index != gone])
    assert paths(pair(fewer, None, val_share=0.1, seed=4).val) != paths(before.val)  # why names are kept
    after = pair(fewer, None, **options)
    assert (paths(after.val), len(after.train), after.held_out) == (paths(before.val), 26, before.held_out)
    assert after.origin == "3 images held out, as there is no validation split"
    first, *others = sorted(paths(before.val))
    less = pair(whole.subset([i for i, sample in enumerate(whole.samples) if sample.path != first]), None, **options)
    assert (paths(less.val), len(less.train)) == (set(others), 27)
    assert less.origin == "2 images held out, as there is no validation split (1 more are gone)"
    assert less.held_out == before.held_out
    with pytest.raises(DataError, match="of its 5 images none were held out by this run, which began with 3 images"):
        pair(dataset(tmp_path / "other", 5), None, val_share=0.1, seed=4, held_out=("a.png", "b.png", "c.png"))


def test_held_out_images_are_found_where_the_data_set_is_now(tmp_path):
    def frames(root, videos):
        whole = dataset(tmp_path, 4 * len(videos))
        for number, sample in enumerate(whole.samples):
            path = root / videos[number // 4] / "frames" / f"{number % 4}.png"
            whole.samples[number] = replace(sample, path=path)
        return whole

    before = pair(frames(tmp_path / "a", "xyz"), None, val_share=0.3, seed=0)
    options = {"val_share": 0.3, "seed": 0, "held_out": before.held_out}
    kept = {path.relative_to(tmp_path / "a") for path in paths(before.val)}
    moved = pair(frames(tmp_path / "b" / "c", "xyz"), None, **options)
    assert {path.relative_to(tmp_path / "b" / "c") for path in paths(moved.val)} == kept
    (video,) = {path.parts[0] for path in list(kept)[:1]}
    alone = pair(frames(tmp_path / "a", [video]), None, **options)  # names are now below another folder
    assert {path.relative_to(tmp_path / "a") for path in paths(alone.val)} == {
        path for path in kept if path.parts[0] == video
    }


@pytest.mark.parametrize(("count", "train", "val"), [(2, 1, 1), (3, 2, 1), (9, 8, 1), (1, 1, 1)])
def test_at_least_one_image_on_either_side(tmp_path, count, train, val):
    data = pair(dataset(tmp_path, count), None, val_share=0.1, seed=0)
    assert (len(data.train), len(data.val)) == (train, val)
    assert ("no measure of quality" in data.origin) == (count == 1)


def test_a_large_share_leaves_one_image_to_learn_from(tmp_path):
    assert len(pair(dataset(tmp_path, 3), None, val_share=0.99, seed=0).train) == 1


def test_classes_are_matched_by_name(tmp_path):
    val = dataset(tmp_path, 2, classes=("b",), labels=(0, 0))
    data = pair(dataset(tmp_path, 3), val, val_share=0.1, seed=0)
    assert data.val.classes == ("a", "b")
    assert data.val.samples[0].class_ids.tolist() == [1, 1]


SHAPES = ("disc", "square", "star")


def turned(path, split):
    """The split with its classes in another order and other numbers."""
    return align_classes(open_dataset(path, split=split), SHAPES[::-1], (30, 20, 10))


@pytest.mark.parametrize("data_is_open", [False, True], ids=["path", "open data"])
@pytest.mark.parametrize("val_is_open", [False, True, None], ids=["val path", "open val", "no val"])
def test_data_and_what_judges_them_are_paths_or_open(scenes, tmp_path, data_is_open, val_is_open):
    shutil.copytree(scenes / "val", tmp_path / "apart" / "test")  # the only split there is
    data = open_dataset(scenes, split="train") if data_is_open else scenes
    val = {True: lambda: turned(tmp_path / "apart", "test"), False: lambda: str(tmp_path / "apart"), None: lambda: None}
    opened = open_training_data(data, val[val_is_open](), **OPTIONS)
    assert opened.val.classes == opened.train.classes == SHAPES
    assert opened.val.category_ids == opened.train.category_ids
    if val_is_open is None and data_is_open:
        assert (len(opened.train), len(opened.val), len(opened.held_out)) == (7, 1, 1)
        return
    # All images to learn from are learnt from, and those that judge are where they were said to be.
    assert (len(opened.train), len(opened.val), opened.held_out) == (8, 3, ())
    root = scenes / "val" if val_is_open is None else tmp_path / "apart" / "test"
    assert {sample.path.parent for sample in opened.val.samples} == {root}
    expected = open_dataset(scenes, split="val")
    for one, other in zip(opened.val.samples, expected.samples, strict=True):
        assert one.class_ids.tolist() == other.class_ids.tolist()
    assert opened.origin == "the validation split, 3 images"


def test_what_judges_is_its_validation_split_or_the_very_file(scenes, tmp_path):
    assert len(open_training_data(scenes, scenes, **OPTIONS).val) == 3
    file = scenes / "train" / "_annotations.coco.json"
    assert len(open_training_data(scenes, file, **OPTIONS).val) == 8
    for name in ("train", "test"):
        shutil.copytree(scenes / "val", tmp_path / "two" / name)
    with pytest.raises(DataError, match=r"no split val; name one of train, test .* or give the very file of it"):
        open_training_data(scenes, tmp_path / "two", **OPTIONS)


def test_missing_images_of_what_judges_are_counted_too(scenes, tmp_path):
    shutil.copytree(scenes / "val", tmp_path / "val")
    (tmp_path / "val" / "scene_00001.jpg").unlink()
    with pytest.raises(DataError, match="scene_00001"):
        open_training_data(scenes, tmp_path, **OPTIONS)
    data = open_training_data(scenes, tmp_path, **{**OPTIONS, "skip_bad_images": True})
    assert (len(data.val), data.num_bad_images) == (2, 1)


def test_paths_may_begin_at_home(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(scenes / "val", tmp_path / "photos" / "test")
    with pytest.raises(DataError, match="~/photos: no split to train on; there is"):
        open_training_data("~/photos", **OPTIONS)


def test_unknown_classes_in_validation_are_an_error(tmp_path):
    val = dataset(tmp_path, 2, classes=("c", "b"))
    with pytest.raises(DataError, match="'c'"):
        pair(dataset(tmp_path, 3), val, val_share=0.1, seed=0)


def test_nothing_to_learn_is_an_error(tmp_path):
    with pytest.raises(DataError, match="made of 0: there are no images to learn from"):
        pair(dataset(tmp_path, 0), None, val_share=0.1, seed=0)
    with pytest.raises(DataError, match="there are no classes to learn"):
        pair(dataset(tmp_path, 2, classes=(), labels=()), None, val_share=0.1, seed=0)


def test_the_test_split_is_never_trained_on(scenes, tmp_path):
    shutil.copytree(scenes / "val", tmp_path / "test")
    shutil.copytree(scenes / "val", tmp_path / "val")
    with pytest.raises(DataError, match="no split to train on; there is val, test"):
        open_training_data(tmp_path, **OPTIONS)


def test_evaluation_takes_the_split_named_or_val_or_the_only_one(scenes, tmp_path):
    assert len(open_for_evaluation(scenes, None, None, False)) == 3
    assert len(open_for_evaluation(scenes, "train", None, False)) == 8
    shutil.copytree(scenes / "val", tmp_path / "one" / "test")
    assert len(open_for_evaluation(tmp_path / "one", None, None, False)) == 3
    for name in ("train", "test"):
        shutil.copytree(scenes / "val", tmp_path / "two" / name)
    with pytest.raises(DataError, match="name one of train, test with --split"):
        open_for_evaluation(tmp_path / "two", None, None, False)


def test_missing_images_can_be_skipped_and_are_counted_but_bad_boxes_cannot(scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "data")
    (tmp_path / "data" / "train" / "scene_00002.jpg").unlink()
    ways_out = r"scene_00002.*\(`ddetr check-data \S+/data` lists all such images; --skip-bad-images, or"
    with pytest.raises(DataError, match=ways_out):
        open_training_data(tmp_path / "data", **OPTIONS)
    skipping = {**OPTIONS, "skip_bad_images": True}
    data = open_training_data(tmp_path / "data", **skipping)
    assert (len(data.train), data.num_bad_images, data.num_problems) == (7, 1, 1)
    for image in (tmp_path / "data" / "val").glob("*.jpg"):
        image.unlink()
    data = open_training_data(tmp_path / "data", **skipping)
    assert "held out, as the validation split has no image that can be used" in data.origin
    shutil.rmtree(tmp_path / "data" / "val")
    data = open_training_data(tmp_path / "data", **skipping)
    assert (len(data.train), len(data.val), data.num_bad_images) == (6, 1, 1)
    annotations = tmp_path / "data" / "train" / "_annotations.coco.json"
    document = json.loads(annotations.read_text())
    document["annotations"][0]["bbox"][2] = -3
    annotations.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"_annotations\.coco\.json.* negative width") as caught:
        open_training_data(tmp_path / "data", **skipping)
    assert "--skip-bad-images" not in str(caught.value)  # it does not pass over that


def test_splits_are_read_once(scenes, monkeypatch):
    """With their problems, before it is known what is passed over; a path and its splits give the same."""
    read = read_splits(scenes, format="coco")
    assert (read.path, read.format, len(read.train), len(read.val)) == (scenes, "coco", 8, 3)
    assert read_splits(scenes, with_validation=False).val is None
    expected = open_training_data(scenes, **OPTIONS)
    monkeypatch.setattr("deformable_detr.data.splits.recognise", lambda *_, **__: pytest.fail("read again"))
    data = open_training_data(read, **OPTIONS)
    assert paths(data.train) == paths(expected.train)
    assert paths(data.val) == paths(expected.val)
    assert len(open_training_data(read, read.val.subset([0]), **OPTIONS).val) == 1


def test_what_no_setting_passes_over_is_refused_as_soon_as_it_is_read(scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "data")
    (tmp_path / "data" / "val" / "scene_00001.jpg").unlink()
    read = read_splits(tmp_path / "data")
    read.refuse_fatal(skip_bad_images=True)
    with pytest.raises(DataError, match=r"scene_00001\.jpg.*--skip-bad-images"):
        read.refuse_fatal(skip_bad_images=False)
    for image in (tmp_path / "data" / "train").glob("*.jpg"):
        image.unlink()
    with pytest.raises(DataError, match="none of its 8 images is there") as caught:
        read_splits(tmp_path / "data").refuse_fatal(skip_bad_images=False)
    assert "--skip-bad-images" not in str(caught.value)  # nothing would be left
    with pytest.raises(DataError, match="none of its 8 images is there"):
        read_splits(tmp_path / "data").refuse_fatal(skip_bad_images=True)


@pytest.mark.parametrize("suffix", [".yaml", ".zip", ""])
def test_a_data_set_without_training_images_is_not_trained_on(tmp_path, suffix):
    """A yaml and an archive hold a whole data set, and the first split there is may be the one to validate with."""
    path = tmp_path / f"all{suffix}"
    path.write_text("") if suffix else path.mkdir()
    with pytest.raises(DataError, match=r"no split to train on; there is val\. Call one of them train"):
        check_has_training_split(path, ("val",))
    check_has_training_split(path, ("train", "val"))
    (tmp_path / "val.json").write_text("")
    check_has_training_split(tmp_path / "val.json", ("val",))


def test_a_single_file_is_all_there_is(scenes):
    path = scenes / "train" / "_annotations.coco.json"
    assert len(open_dataset(path)) == 8
    data = open_training_data(path, **OPTIONS)
    assert (len(data.train), len(data.val)) in ((7, 1), (8, 3))


CSV = "filename,split,class,xmin,ymin,xmax,ymax\n{0}.png,{1},cat,1,2,11,22\n"
CVAT = (
    '<annotations><image id="0" name="{0}.png" subset="{1}" width="50" height="30"><box label="cat" xtl="1" ytl="2" '
    'xbr="11" ybr="22"/></image></annotations>'
)
YAML, DARKNET = "names: [cat]\n{1}: {0}.png\n", "names = names.txt\n{1} = {0}.png\n"


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize(
    "text", [("boxes.csv", CSV), ("boxes.xml", CVAT), ("boxes.yaml", YAML), ("boxes.data", DARKNET)]
)
def test_a_file_that_names_its_split_is_no_training_data_unless_that_is_train(split, text, tmp_path, photo):
    """Also the only split in it: it is for validation, whoever says so."""
    name, content = text
    folder = tmp_path / "boxes"
    photo(folder / "a.png", (50, 30))
    (folder / "names.txt").write_text("cat\n")
    (folder / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    file = folder / name
    file.write_text(content.format("a", split))
    with pytest.raises(DataError, match=f"no split to train on; there is {split}. Call one of them train"):
        read_splits(file)
    with pytest.raises(DataError, match="no split to train on"):
        read_splits(folder, format=open_dataset(file).source.split()[0].lower())
    file.write_text(content.format("a", "train"))
    assert len(read_splits(file).train) == 1


@pytest.mark.parametrize(
    "name", ["val.json", "instances_val2017.json", "my-test_v2.json", "valid/_annotations.coco.json"]
)
def test_the_very_file_of_a_split_is_training_data(name, tmp_path, photo):
    """Its own name says so, or that of its folder: whoever gives it means it."""
    photo(tmp_path / "valid/a.png", (50, 30))
    coco.save(open_for(tmp_path), tmp_path / "out")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(tmp_path / "out/annotations/train.json", tmp_path / name)
    shutil.copytree(tmp_path / "out/images/train", tmp_path / "images")
    shutil.copytree(tmp_path / "out/images/train", tmp_path / "valid", dirs_exist_ok=True)
    assert len(read_splits(tmp_path / name).train) == 1


@pytest.mark.parametrize("name", ["val.csv", "train/boxes.csv", "val/boxes.csv"])
def test_a_file_of_a_split_may_name_it_once_more(name, tmp_path, photo):
    photo(tmp_path / name.replace(name.rpartition("/")[2], "a.png"), (50, 30))
    (tmp_path / name).write_text(CSV.format("a", "train" if "train" in name else "valid"))
    assert len(read_splits(tmp_path / name).train) == 1


def open_for(folder):
    sample = replace(dataset(folder, 1, labels=(0,)).samples[0], path=folder / "valid/a.png", size_wh=(50, 30))
    return DetectionDataset(classes=("a",), category_ids=(1,), samples=[sample], source="one picture")
