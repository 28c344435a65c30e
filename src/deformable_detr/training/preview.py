"""Preview of training images after augmentation and preprocessing, with boxes and names drawn in."""

import itertools
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from deformable_detr.core.boxes import cxcywh_to_xyxy
from deformable_detr.core.errors import DataError
from deformable_detr.core.files import check_output_file, write_atomically
from deformable_detr.core.format_names import FormatName
from deformable_detr.data.augmentation.geometry import scaled
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.loader import epoch_order, make_loader
from deformable_detr.data.preprocessing import Preprocessing, to_picture
from deformable_detr.data.splits import open_training_data
from deformable_detr.data.torch_dataset import BadImage, Item
from deformable_detr.inference.drawing import contact_sheet, draw_objects
from deformable_detr.runs.config import TrainConfig, settled
from deformable_detr.training.autoconfig import fit_to_data

_COLUMNS = 4
_CELL_PX = 400


def training_pictures(
    dataset: DetectionDataset,
    config: TrainConfig,
    count: int,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Image.Image]:
    """Pictures of the first training images with these settings, in the order in which a training reads them.

    They come from the same loader as in a training, normalised for the network, and are turned back into pictures.

    Args:
        dataset: training images.
        config: settings of the run.
        count: number of pictures; more than there are images continues with the next epoch.
        on_progress: called with the number of finished pictures and the number of all.

    Raises:
        DataError: there are no images, or one of them cannot be read.
    """
    config, _ = fit_to_data(config, dataset)
    preprocessing = settled(config.preprocessing)
    loader = make_loader(
        dataset,
        preprocessing,
        batch_size=1,
        augmentation=settled(config.augmentation),
        seed=config.run.seed,
        epochs=settled(config.schedule.epochs),
    )
    pictures: list[Image.Image] = []
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        before = len(pictures)
        for index in epoch_order(len(dataset), config.run.seed, epoch):
            if len(pictures) == count:
                return pictures
            item = loader.source[index]
            bad_images = (item,) if isinstance(item, BadImage) else item.bad_images
            if bad_images and not config.data.skip_bad_images:
                raise DataError(bad_images[0].message)
            if isinstance(item, Item):
                pictures.append(_drawn(item, dataset.classes, preprocessing))
                if on_progress is not None:
                    on_progress(len(pictures), count)
        if len(pictures) == before:
            raise DataError(f"none of the {len(dataset)} training images could be read")
    raise AssertionError("the epochs never end")


def save_preview(
    output: Path,
    data: str | Path | DetectionDataset,
    config: TrainConfig,
    count: int,
    *,
    format: FormatName | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a sheet with the first training images of a data set, see `training_pictures`.

    Args:
        output: file of the picture: JPEG if its name ends so, else PNG.
        data: path of a data set in any known format, or an open data set.
        config: settings of the run.
        count: number of images on the sheet.
        format: format of the data set; recognised automatically if left out.
        on_progress: called with the number of finished images and the number of all.

    Raises:
        DataError: the data set or an image in it cannot be used.
        OutputError: the picture cannot be written.
    """
    check_output_file(output)
    opened = open_training_data(
        data,
        format=format,
        val_share=config.data.val_share,
        seed=config.run.seed,
        skip_bad_images=config.data.skip_bad_images,
    )
    pictures = training_pictures(opened.train, config, count, on_progress=on_progress)
    sheet = contact_sheet(pictures, _COLUMNS, cell_width=_CELL_PX)
    suffix = output.suffix.lower()
    write_atomically(output, lambda place: sheet.save(place, "JPEG" if suffix in (".jpg", ".jpeg") else "PNG"))


def _drawn(item: Item, classes: tuple[str, ...], preprocessing: Preprocessing) -> Image.Image:
    picture = to_picture(item.image, preprocessing)
    boxes = scaled(cxcywh_to_xyxy(item.target.boxes), float(picture.width), float(picture.height))
    # The picture is scaled to its size on the sheet before lines and letters are drawn: these would shrink with it.
    scale = _CELL_PX / max(picture.size)
    return draw_objects(picture, boxes.tolist(), item.target.labels.tolist(), classes, scale=scale)
