"""Darknet's layout of YOLO labels: a data file names the class list and lists of images; labels are beside these.

CVAT's "YOLO 1.1" is this layout:

    obj.data                classes = 2, train = data/train.txt, names = data/obj.names
    obj.names               one class on each line
    train.txt               data/obj_train_data/a.jpg, one image on each line
    obj_train_data          a.jpg and a.txt

Paths are relative to the folder that darknet is started in, which is not known: they are looked for in the folder of
the file and in the one above, by ever shorter ends.
"""

from pathlib import Path

from deformable_detr.core.errors import DataError
from deformable_detr.data.formats.parsing import name_text, read_text, shown, whole_number
from deformable_detr.data.formats.yolo_layouts import ClassList, YoloPart, class_list, resolve

_FOLDERS = (".", "data", "cfg")
_SPLIT_KEYS = ("train", "valid", "val", "test")


def find_data_file(path: Path) -> Path | None:
    """Darknet's data file: the path itself, or one in the folder, in `data` or in `cfg`; None if there is none."""
    if path.is_file():
        return path if path.suffix.lower() == ".data" else None
    files = [file for name in _FOLDERS for file in sorted((path / name).glob("*.data"))]
    for file in sorted(files, key=lambda file: file.name != "obj.data"):
        try:
            settings = _settings(file)
        except DataError:
            continue  # Other programs have files of this ending, too.
        if "names" in settings and any(key in settings for key in _SPLIT_KEYS):
            return file
    return None


def parts_of_data_file(file: Path) -> list[YoloPart]:
    """Splits that a data file names.

    Raises:
        DataError: it cannot be read, or lacks the class list or the lists of images.
    """
    settings = _settings(file)
    if "names" not in settings or not any(key in settings for key in _SPLIT_KEYS):
        raise DataError(f"{file}: not a data file of darknet: expected names = and train =, each with a file")
    bases = [file.parent, file.parent.parent]
    keys = [key for key in _SPLIT_KEYS if key in settings]
    places = resolve([settings["names"], *(settings[key] for key in keys)], bases)

    def classes() -> ClassList:
        found = class_list(places[settings["names"]])
        count = settings.get("classes")
        if count is not None and whole_number(count, str(file), "classes") != len(found.names):
            raise DataError(f"{file}: classes is {shown(count)} but {found.source} lists {len(found.names)}")
        return found

    return [YoloPart(key, [places[settings[key]]], f"{file} ({key})", classes, bases) for key in keys]


def _settings(file: Path) -> dict[str, str]:
    """Values of the lines `key = value`."""
    settings: dict[str, str] = {}
    for line, text in enumerate(read_text(file, most=1 << 20).splitlines(), start=1):
        content = text.partition("#")[0].strip()
        if not content:
            continue
        key, sign, value = (part.strip() for part in content.partition("="))
        if not sign:
            raise DataError(f"{file}, line {line}: expected key = value, not {shown(content)}")
        if value:
            settings[key] = name_text(value, f"{file}, line {line}", key)
    return settings
