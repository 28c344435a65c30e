import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats.csv import find_splits
from deformable_detr.data.open import list_splits, open_dataset, recognise


@pytest.fixture
def table(tmp_path: Path, photo: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a table beside a.png (50 x 30) and b.png (20 x 40)."""

    def write(text: str | bytes, name: str = "boxes.csv") -> Path:
        photo(tmp_path / "a.png", (50, 30))
        photo(tmp_path / "b.png", (20, 40))
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return tmp_path

    return write


def boxes_of(dataset: DetectionDataset) -> dict[str, list[tuple[str, list[float]]]]:
    return {
        sample.path.name: [
            (dataset.classes[class_id], box)
            for class_id, box in zip(sample.class_ids.tolist(), sample.boxes_xyxy.tolist(), strict=True)
        ]
        for sample in dataset.samples
    }


EXPECTED = {"a.png": [("cat", [1, 2, 11, 22]), ("dog", [4, 4.5, 7, 6])], "b.png": [("cat", [0, 0, 20, 40])]}


@pytest.mark.parametrize(
    "text",
    [
        # TensorFlow and Roboflow
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,50,30,cat,1,2,11,22\na.png,50,30,dog,4,4.5,7,6\n"
        "b.png,20,40,cat,0,0,20,40\n",
        # VoTT, with a byte order mark and lines of Windows
        '\ufeff"image","xmin","ymin","xmax","ymax","label"\r\n"a.png",1,2,11,22,"cat"\r\n"a.png",4,4.5,7,6,"dog"\r\n'
        '"b.png",0,0,20,40,"cat"\r\n',
        # keras-retinanet, without a header
        "photos/a.png,1,2,11,22,cat\nphotos/a.png,4,4.5,7,6,dog\nphotos/b.png,0,0,20,40,cat\n",
        # makesense.ai, without a header
        "cat,1,2,10,20,a.png,50,30\ndog,4,4.5,3,1.5,a.png,50,30\ncat,0,0,20,40,b.png,20,40\n",
        # semicolons, decimal commas, names in another order and case, columns of no meaning
        "X_Max;Y_Max;X_Min;Y_Min;Image Name;Class Name;id\n11;22;1;2;a.png;cat;1\n7;6;4;4,5;a.png;dog;2\n"
        "20;40;0;0;b.png;cat;3\n",
        # German traffic signs
        "Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId;Path\n50;30;1;2;11;22;cat;./a.png\n50;30;4;4,5;7;6;dog;a.png\n"
        "20;40;0;0;20;40;cat;b.png\n",
        # tabs; boxes by their corner and size, images by theirs
        "label_name\tbbox_x\tbbox_y\tbbox_width\tbbox_height\timage_name\timage_width\timage_height\n"
        "cat\t1\t2\t10\t20\ta.png\t50\t30\ndog\t4\t4.5\t3\t1.5\ta.png\t50\t30\ncat\t0\t0\t20\t40\tb.png\t20\t40\n",
        # by the center
        "path,x_center,y_center,width,height,label\na.png,6,12,10,20,cat\na.png,5.5,5.25,3,1.5,dog\n"
        "b.png,10,20,20,40,cat\n",
        # x0 and x1; the name of the image without its ending
        "image_id,x0,y0,x1,y1,category\na,1,2,11,22,cat\na,4,4.5,7,6,dog\nb,0,0,20,40,cat\n",
        # names that mostly mean the left top corner, which nothing speaks against
        "image,x,y,w,h,class\na.png,1,2,10,20,cat\na.png,4,4.5,3,1.5,dog\nb.png,0,0,20,40,cat\n",
        # all four in a column
        'image,bbox_xyxy,class\na.png,"[1, 2, 11, 22]",cat\na.png,"(4 4.5 7 6)",dog\nb.png,"[0,0,20,40]",cat\n',
        'image,bbox_xywh,class\na.png,"[1, 2, 10, 20]",cat\na.png,"4;4.5;3;1.5",dog\nb.png,"[0,0,20,40]",cat\n',
    ],
)
def test_tables_of_many_kinds(text: str, table: Callable[..., Path]) -> None:
    folder = table(text)
    assert recognise(folder).format == "csv"
    dataset = open_dataset(folder)
    assert boxes_of(dataset) == EXPECTED
    assert dataset.problems == ()
    assert boxes_of(open_dataset(folder / "boxes.csv")) == EXPECTED


@pytest.mark.parametrize(
    ("texts", "box"),
    [
        (("[4, 5, 30, 20]", "[30, 20, 50, 30]"), [4, 5, 30, 20]),  # As sizes, the second would reach 50 too far.
        (("[4, 5, 30, 20]", "[30, 20, 10, 5]"), [4, 5, 34, 25]),  # As corners, the second would be negative.
    ],
)
def test_a_column_of_boxes_is_read_as_they_fit(
    texts: tuple[str, str], box: list[float], table: Callable[..., Path]
) -> None:
    dataset = open_dataset(table("image,bbox,class\n" + "".join(f'a.png,"{text}",cat\n' for text in texts)))
    assert dataset.samples[0].boxes_xyxy[0].tolist() == box


def test_shares_are_told_from_pixels(table: Callable[..., Path]) -> None:
    dataset = open_dataset(table("image,label,xmin,ymin,xmax,ymax\na.png,cat,0.1,0.5,0.2,1\nb.png,dog,0,0,1,1\n"))
    assert boxes_of(dataset) == {"a.png": [("cat", [5, 15, 10, 30])], "b.png": [("dog", [0, 0, 20, 40])]}
    (remark,) = dataset.problems
    assert "shares of the width and height" in remark.message


def test_utf_16_as_spreadsheets_write_it(table: Callable[..., Path]) -> None:
    text = "image\tlabel\txmin\tymin\txmax\tymax\na.png\tété\t1\t2\t3\t4\n"
    assert boxes_of(open_dataset(table(text.encode("utf-16")))) == {"a.png": [("été", [1, 2, 3, 4])]}


def test_global_wheat_of_kaggle(table: Callable[..., Path]) -> None:
    folder = table('image_id,width,height,bbox,source\na,50,30,"[3.0, 2.0, 16.0, 11.0]",x\nb,20,40,"[1, 2, 8, 9]",y\n')
    dataset = open_dataset(folder)
    assert boxes_of(dataset) == {"a.png": [("object", [3, 2, 19, 13])], "b.png": [("object", [1, 2, 9, 11])]}
    assert [problem.message for problem in dataset.problems] == [
        "nothing names the class of an object: all are of the one class 'object'"
    ]


def test_images_without_objects(table: Callable[..., Path]) -> None:
    for text in (
        "a.png,1,2,3,4,cat\nb.png,,,,,\n",
        "image_id,class_name,class_id,x_min,y_min,x_max,y_max\na.png,cat,0,1,2,3,4\nb.png,No finding,14,,,,\n",
    ):
        dataset = open_dataset(table(text))
        assert boxes_of(dataset) == {"a.png": [("cat", [1, 2, 3, 4])], "b.png": []}
        assert dataset.problems == ()


def test_crowds_and_the_split_of_a_row(table: Callable[..., Path]) -> None:
    folder = table(
        "image,label,xmin,ymin,xmax,ymax,iscrowd,split\na.png,cat,1,2,3,4,1,Train\nb.png,dog,1,2,3,4,0,validation\n"
        "a.png,cat,5,6,7,8,0,train\n"
    )
    assert list_splits(folder) == ("train", "val")
    train = open_dataset(folder)
    assert train.samples[0].is_crowd.tolist() == [True, False]
    assert train.classes == open_dataset(folder, split="val").classes == ("cat", "dog")
    assert boxes_of(open_dataset(folder, split="val")) == {"b.png": [("dog", [1, 2, 3, 4])]}


def test_class_list_of_keras_retinanet(table: Callable[..., Path]) -> None:
    folder = table("a.png,1,2,3,4,cat\nb.png,1,2,3,4,cow\n", "train_annotations.csv")
    (folder / "class_map.csv").write_text("dog,0\ncat,1\n")
    assert list_splits(folder) == ("train",)
    dataset = open_dataset(folder, strict=False)
    assert dataset.classes == ("dog", "cat")
    (unknown,) = dataset.problems
    assert unknown.where.endswith("train_annotations.csv:2")
    assert unknown.message == f"'cow' is not among the 2 classes of {folder}/class_map.csv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # width and height of the images, and no box
        (
            "image,x,y,width,height,class\na.png,9,8,50,30,cat\nb.png,3,4,20,40,dog\n",
            "width and height are those of",
        ),
        # centers under names that mean corners
        (
            "image,x,y,w,h,class\na.png,45,15,10,20,cat\nb.png,10,20,20,40,dog\n",
            "not certain .*: 2 as left, top",
        ),
        # fits either way
        (
            'image,bbox,class\na.png,"[1, 2, 3, 4]",cat\n',
            "not certain .*: 0 as left, top, width, height, 0 as left",
        ),
        (
            "image,class,label,xmin,ymin,xmax,ymax\na.png,1,cat,1,2,3,4\n",
            "which column is the class.*'class', 'label'",
        ),
        ("image,species,site,xmin,ymin,xmax,ymax\na.png,1,cat,1,2,3,4\n", "class.* It could be 'species', 'site';"),
        ('image,class,xmin,ymin,xmax,ymax\n"a.png,cat,1,2,3,4\n', "not a table: unexpected end of data"),
        ("image,class,xmin,ymin,xmax,ymax\na.png,,1,2,3,4\n", r"boxes.csv:2: the class name must be text, not ''"),
        ("image,class,xmin,ymin,xmax,ymax\na.png,cat,1,2,3\n", r"boxes.csv:2: 5 columns, and 6 are expected"),
        ("image,class,xmin,ymin,xmax,ymax\na.png,cat,1,,3,4\n", r"boxes.csv:2: each number of a box must be a number"),
        ("image,class,xmin,ymin,xmax,ymax\na.png,cat,1,2,1e999,4\n", "not a finite number"),
        ("image,class,bbox_xyxy\na.png,cat,1 2 3\n", r"a box has four numbers, as in \[1, 2, 30, 40\], not '1 2 3'"),
        (
            "image,class,xmin,ymin,xmax,ymax\nc.png,cat,1,2,3,4\n",
            "none of its 1 images is there, the first being 'c",
        ),
        (
            "image,width,height,class,xmin,ymin,xmax,ymax\na.png,50,30,cat,1,2,3,4\na.png,30,50,cat,1,2,3,4\n",
            r"boxes.csv:3: the image 'a.png' is \(30, 50\) here and \(50, 30\) in an earlier row",
        ),
    ],
)
def test_what_is_uncertain_or_wrong_is_refused(text: str, message: str, table: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(table(text))


@pytest.mark.parametrize(
    "text",
    [
        "epoch,train/box_loss,metrics/mAP50(B),lr/pg0\n1,2.5,0.1,0.01\n",
        "cat,0\ndog,1\n",
        "filename,cat,dog\na.png,0,1\n",
        "image_id,PredictionString\na.png,0.9 1 2 3 4\n",
        "x,y,width,height\n1,2,3,4\n",
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded\na,xclick,/m/01,1,0.1,0.2,0.3,0.4,0\n",
        "image,x1,y1,x2,y2,x3,y3,x4,y4,class\na.png,1,1,5,1,5,5,1,5,cat\n",
        "",
        "\0\0",
    ],
)
def test_other_tables_are_no_data_set(text: str, table: Callable[..., Path]) -> None:
    path = table(text)
    assert find_splits(path) == find_splits(path.parent) == {}


@pytest.mark.parametrize(
    ("tables", "images"),
    [
        (("train/_annotations.csv", "valid/_annotations.csv"), ("train", "valid")),
        (("train_labels.csv", "val_labels.csv"), ("images/train", "images/val")),
        (("images/train_labels.csv", "images/val_labels.csv"), ("images/train", "images/val")),
        (("annotations/train.csv", "annotations/validation.csv"), ("Images", "Images")),
        (("train/labels/boxes.csv", "val/labels/boxes.csv"), ("train/images", "val/images")),
    ],
)
def test_layouts(tables: tuple[str, str], images: tuple[str, str], tmp_path: Path, photo: Callable[..., Path]) -> None:
    for table, folder in zip(tables, images, strict=True):
        photo(tmp_path / folder / "a.png")
        (tmp_path / table).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / table).write_text("image,class,xmin,ymin,xmax,ymax\na.png,cat,1,2,3,4\n")
    assert list_splits(tmp_path) == ("train", "val")
    for split, folder in zip(("train", "val"), images, strict=True):
        assert open_dataset(tmp_path, split=split).samples[0].path == tmp_path / folder / "a.png"


def test_a_column_of_one_split_in_two_files_loses_neither(tmp_path: Path, photo: Callable[..., Path]) -> None:
    for split in ("train", "val"):
        photo(tmp_path / split / f"{split}.png")
        (tmp_path / split / "boxes.csv").write_text(
            f"image,class,xmin,ymin,xmax,ymax,split\n{split}.png,cat,1,2,3,4,train\n"
        )
    assert len(list_splits(tmp_path)) == 2


def test_masks_beside_the_images_are_not_taken_for_them(tmp_path: Path, photo: Callable[..., Path]) -> None:
    for shade, folder in enumerate(("train_images", "train_masks")):
        photo(tmp_path / folder / "a.png", shade=shade)
    (tmp_path / "train_labels.csv").write_text("image,class,xmin,ymin,xmax,ymax\na.png,cat,1,2,3,4\n")
    assert open_dataset(tmp_path).samples[0].path == tmp_path / "train_images/a.png"


def test_shares_without_confidence_are_those_of_open_images(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "train/a.jpg")
    header = "ImageID,LabelName,XMin,XMax,YMin,YMax"
    (tmp_path / "train-annotations-bbox.csv").write_text(f"{header}\na,/m/01,0.1,0.2,0.3,0.4\n")
    assert recognise(tmp_path).format == "openimages"


@pytest.mark.parametrize(
    ("name", "text", "box"),
    [
        ("x.csv", "ImageID,LabelName,XMin,XMax,YMin,YMax\na.jpg,cat,10,30,5,25\n", [10, 5, 30, 25]),
        ("x.csv", "ImageID,LabelName,XMin,XMax,YMin,YMax\na.jpg,cat,0,1,0,1\na.jpg,cat,1,2,3,4\n", [1, 3, 2, 4]),
        ("x.csv", "ImageID;LabelName;XMin;XMax;YMin;YMax\na.jpg;cat;0,2;0,6;0,25;0,75\n", [10, 7.5, 30, 22.5]),
        ("x.tsv", "ImageID\tLabelName\tXMin\tXMax\tYMin\tYMax\na.jpg\tcat\t10\t30\t5\t25\n", [10, 5, 30, 25]),
        (
            "x.tsv",
            "ImageID\tLabelName\tConfidence\tXMin\tXMax\tYMin\tYMax\na\tcat\t1\t.2\t.6\t.1\t.5\n",
            [10, 3, 30, 15],
        ),
    ],
)
def test_columns_of_open_images_in_a_table_that_is_not_its(
    name: str, text: str, box: list[float], tmp_path: Path, photo: Callable[..., Path]
) -> None:
    """Open Images has shares, in files with commas that end with .csv."""
    photo(tmp_path / "a.jpg", (50, 30))
    (tmp_path / name).write_text(text)
    assert recognise(tmp_path).format == "csv"
    assert boxes_of(open_dataset(tmp_path))["a.jpg"][-1] == ("cat", pytest.approx(box))


def test_a_table_with_tabs_in_a_zip(
    tmp_path: Path, photo: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFORMABLE_DETR_CACHE", str(tmp_path / "cache"))
    text = "image\tclass\txmin\tymin\txmax\tymax\na.png\tcat\t1\t2\t3\t4\n"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.write(photo(tmp_path / "a.png"), "a.png")
        file.writestr("boxes.tsv", text)
    assert open_dataset(tmp_path / "x.zip").num_objects == 1
