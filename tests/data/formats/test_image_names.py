import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.formats.image_names import (
    FoundImages,
    find_images,
    folders_like,
    folders_within,
    parts_of,
    usual_folders,
)


def found(folder: Path, *names: str, folders: tuple[str, ...] = ("", "images"), **options: object) -> FoundImages:
    places = [folder / name for name in folders]
    return find_images(names, places, lambda position: f"x.json: images[{position}]", "x.json", **options)


def messages(result: FoundImages) -> list[str]:
    return [f"{problem.where}: {problem.message}" for problem in result.problems if problem.fatal]


def test_the_folder_with_most_of_the_images_wins(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "a.png", shade=9)
    for name in ("a.png", "b.png", "c.png"):
        photo(tmp_path / "images" / name)
    result = found(tmp_path, "a.png", "b.png", "c.png", "d.png")
    assert result.paths == [*(tmp_path / "images" / f"{name}.png" for name in "abc"), None]
    assert messages(result) == [
        f"x.json: images[3]: the image 'd.png' is missing; expected it at {tmp_path}/images/d.png"
    ]
    (none,) = found(tmp_path, "q.png", "r.png").problems
    assert none.message.startswith("none of its 2 images is there, the first being 'q.png'")
    assert found(tmp_path) == FoundImages([], [])


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (("cam1/1.png", "cam2/1.png"), ("images/cam1/1.png", "images/cam2/1.png")),
        (("cam1\\1.png", "cam2\\1.png"), ("cam1/1.png", "cam2/1.png")),
        (("C:\\data\\cam1\\1.png", "C:\\data\\cam2\\1.png"), ("images/cam1/1.png", "images/cam2/1.png")),
        (("/elsewhere/cam1/1.png", "/elsewhere/cam2/1.png"), ("cam1/1.png", "cam2/1.png")),
        (("../../upload/1/a.png", "../../upload/1/b.png"), ("images/a.png", "images/b.png")),
        (("./x/a.png", "x//b.png"), ("x/a.png", "x/b.png")),
        (("up/a.png", "b.png"), ("images/a.png", "images/b.png")),
    ],
)
def test_as_many_folders_of_the_names_count_as_can(
    names: tuple[str, ...], files: tuple[str, ...], tmp_path: Path, photo: Callable[..., Path]
) -> None:
    for number, name in enumerate(("1.png", "images/1.png", *files)):
        photo(tmp_path / name, shade=number)
    result = found(tmp_path, *names)
    assert [os.path.normpath(str(path)) for path in result.paths] == [str(tmp_path / name) for name in files]
    assert result.problems == []


def test_a_back_slash_that_unpacking_left_in_a_name(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "cam1\\1.png")
    assert found(tmp_path, "cam1\\1.png").paths == [tmp_path / "cam1\\1.png"]


def test_no_name_falls_on_a_picture_that_only_lies_nearer(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "images/cam1/1.png")
    photo(tmp_path / "images/2.png")
    photo(tmp_path / "images/cam1/3.png")
    result = found(tmp_path, "cam1/1.png", "cam2/2.png", "cam1/3.png")
    assert [path is None for path in result.paths] == [False, True, False]
    assert messages(result) == [
        f"x.json: images[1]: the image 'cam2/2.png' is missing; expected it at {tmp_path}/images/cam2/2.png"
    ]


def test_two_names_on_one_file_stop(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "images/1.png")
    result = found(tmp_path, "cam1/1.png", "cam2/1.png", "cam1/1.png")
    assert messages(result) == [
        f"x.json: images[1]: the names 'cam1/1.png', 'cam2/1.png' both fall on {tmp_path}/images/1.png; their folders "
        "are not there, or one image is missing"
    ]
    (twice,) = [problem for problem in result.problems if not problem.fatal]
    assert twice.message == "the image 'cam1/1.png' is listed more than once: kept"


def test_two_folders_of_the_same_names(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "1.png", (50, 30))
    photo(tmp_path / "images/1.png", (50, 30))
    assert found(tmp_path, "1.png").paths == [tmp_path / "1.png"]  # equal to the last byte
    photo(tmp_path / "images/1.png", (60, 40))
    with pytest.raises(DataError, match=r"x\.json: the image '1\.png' is at .*/1\.png and, another one, at .*/images"):
        found(tmp_path, "1.png")
    for size_wh, folder in (((60, 40), "images"), ((40, 60), "images"), ((50, 30), "")):
        assert found(tmp_path, "1.png", sizes_wh=[size_wh]).paths == [tmp_path / folder / "1.png"]


def test_letters_with_marks_in_either_form(tmp_path: Path, photo: Callable[..., Path]) -> None:
    composed, apart = (unicodedata.normalize(form, "übung.png") for form in ("NFC", "NFD"))
    assert composed != apart
    photo(tmp_path / "images" / apart)
    assert found(tmp_path, composed).paths == [tmp_path / "images" / apart]
    photo(tmp_path / "images" / composed, shade=3)
    assert found(tmp_path, composed, apart).paths == [tmp_path / "images" / composed, tmp_path / "images" / apart]


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "a\0.png", "/", "\\", "..", "."])
def test_names_that_no_file_has(name: str, tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "images/a.png")
    assert found(tmp_path, "a.png", "a.png", name).paths[2] is None


def test_names_without_an_ending(tmp_path: Path, photo: Callable[..., Path]) -> None:
    for name in ("a.jpg", "b.v2.png", "c.png", "c.jpg", "cam/d.PNG", "übung.png"):
        photo(tmp_path / "images" / name)
    (tmp_path / "images/a.txt").write_text("no image")
    apart = unicodedata.normalize("NFD", "übung")
    result = found(tmp_path, "a", "b.v2", "c", "cam/d", "e", apart)
    assert [path and path.name for path in result.paths] == ["a.jpg", "b.v2.png", None, "d.PNG", None, "übung.png"]
    folder = tmp_path / "images"
    assert messages(result) == [
        f"x.json: images[2]: the image 'c' could be any of 'c.jpg', 'c.png' in {folder}",
        f"x.json: images[4]: the image 'e' is missing; expected it at {folder}/e",
    ]
    # A name that has an ending is not another one's.
    assert found(tmp_path, "a.jpg", "a.png").paths == [folder / "a.jpg", None]


def test_parts_of_names() -> None:
    assert parts_of("C:\\a\\b.png") == parts_of("/a//b.png") == parts_of("./a/b.png") == ["a", "b.png"]
    assert parts_of("b.png") == ["b.png"]
    assert parts_of("/") == ["/"]


def test_usual_folders() -> None:
    folders = usual_folders(Path("/data/annotations/instances_val2017.json"), "val2017")
    assert folders[0] == Path("/data/annotations")
    for name in ("val2017", "images/val", "valid/images", "images", "JPEGImages"):
        assert Path("/data") / name in folders


def test_folders_within(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "b/x.png")
    photo(tmp_path / "a/c/x.png")
    photo(tmp_path / ".hidden/x.png")
    assert folders_within([tmp_path, tmp_path / "none", tmp_path / "a", tmp_path]) == [
        tmp_path / "a", tmp_path / "b", tmp_path / "a/c",
    ]  # fmt: skip
    photo(tmp_path / "Train_Masks/x.png")
    photo(tmp_path / "labeled/x.png")
    assert folders_within([tmp_path]) == [tmp_path / "a", tmp_path / "b"]
    assert folders_within([tmp_path], of_labels=True) == [tmp_path / "Train_Masks", tmp_path / "labeled"]


@pytest.mark.parametrize("split", ["train", "custom_train", "train_annotations", "train2017"])
@pytest.mark.parametrize("folder", ["train", "train_images", "images/my-train", "custom_train/images", "data"])
def test_folders_that_belong_to_a_split(split: str, folder: str, tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / folder / "a.png")
    for number, other in enumerate(("val_images", "train_masks", "images/val")):
        photo(tmp_path / other / "a.png", shade=number + 1)
    file = tmp_path / "annotations" / f"{split}.json"
    file.parent.mkdir()
    result = find_images(["a.png"], usual_folders(file, split), str, str(file), fallback=folders_like(file, split))
    assert result.paths == [tmp_path / folder / "a.png"]


def test_folders_with_almost_the_name_count_only_if_the_usual_ones_have_nothing(
    tmp_path: Path, photo: Callable[..., Path]
) -> None:
    file = tmp_path / "train.json"
    photo(tmp_path / "train/a.png")
    photo(tmp_path / "train_small/a.png", shade=9)
    photo(tmp_path / "train_small/b.png", shade=9)
    options = {"fallback": folders_like(file, "train")}
    found_there = find_images(["a.png", "b.png"], usual_folders(file, "train"), str, "train.json", **options)
    assert found_there.paths == [tmp_path / "train/a.png", None]
    assert folders_like(file, "default") == [tmp_path / "data", tmp_path.parent / "data"]
