"""A trained model with its class names: images in, detections out."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from deformable_detr.core.devices import choose_device
from deformable_detr.core.progress import Reporter
from deformable_detr.core.types import Detections
from deformable_detr.data.images import load_image
from deformable_detr.data.preprocessing import Preprocessing, to_model_input
from deformable_detr.models.postprocess import to_detections
from deformable_detr.weights import read
from deformable_detr.weights.checkpoint import build_model

ImageLike = str | Path | Image.Image | np.ndarray
"""A file, a picture, or pixels as (height, width, 3) RGB or (height, width) gray, 0..255 in uint8."""

DEFAULT_THRESHOLD = 0.5


class _Prepared(NamedTuple):
    image: Tensor
    size_wh: tuple[int, int]
    """Of the original image."""


class Detector:
    """Finds objects in images. What it finds in one image never depends on the images beside it.

    Args:
        model: the network; it is moved to `device` and put into evaluation mode.
        classes: names, by class id.
        category_ids: the training data's own numbers for the classes.
        preprocessing: what the network was trained to see.
        device: "auto" is a CUDA device if there is one, else the CPU.

    Raises:
        BackendError: the device does not exist here.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        category_ids: Sequence[int],
        preprocessing: Preprocessing,
        *,
        device: str = "auto",
    ) -> None:
        self.device = choose_device(device)
        self.model = model.to(self.device).eval()
        self.classes = tuple(classes)
        self.category_ids = tuple(category_ids)
        self.preprocessing = preprocessing

    def around(self, model: nn.Module) -> "Detector":
        """The same with another network, such as one with averaged weights, on the same device."""
        return Detector(model, self.classes, self.category_ids, self.preprocessing, device=str(self.device))

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        model: nn.Module | None = None,
        device: str = "auto",
        sha256: str | None = None,
        reporter: Reporter | None = None,
    ) -> "Detector":
        """The detector in a checkpoint, published ones included; model, classes and preprocessing come from there.

        Args:
            source: a file or run folder of ours, an official .pth, or a folder of transformers; or an https address
                or a name on huggingface.co, such as "SenseTime/deformable-detr".
            model: a network of the class that the weights are of, if that is one of your own.
            device: "auto" is a CUDA device if there is one, else the CPU.
            sha256: what the weights file must hash to, in hex.
            reporter: told how far a download is.

        Raises:
            CheckpointError: missing, not to be fetched, damaged, or not a checkpoint of this model.
            OutputError: a download cannot be kept; the disk may be full.
            BackendError: the device does not exist here.
        """
        loaded = read(source, sha256=sha256, reporter=reporter)
        return cls(
            build_model(loaded, source, model), loaded.classes, loaded.category_ids, loaded.preprocessing, device=device
        )

    def predict(
        self,
        images: Sequence[ImageLike],
        *,
        threshold: float = DEFAULT_THRESHOLD,
        batch_size: int = 1,
        max_detections: int = 100,
    ) -> list[Detections]:
        """What is in each image, best first, in pixels of the image as it is displayed.

        Args:
            images: files, PIL pictures or arrays, in any mix and of any sizes.
            threshold: scores below it are left out; 0 keeps everything.
            batch_size: consecutive images of the same size go through the network together, this many at most.
            max_detections: per image.

        Raises:
            DataError: an image cannot be read.
            ValueError: an array that is not an image.
        """
        return list(
            self.predict_each(images, threshold=threshold, batch_size=batch_size, max_detections=max_detections)
        )

    def predict_each(
        self,
        images: Iterable[ImageLike],
        *,
        threshold: float = DEFAULT_THRESHOLD,
        batch_size: int = 1,
        max_detections: int = 100,
    ) -> Iterator[Detections]:
        """Like `predict`, one image's detections at a time, for more images than memory holds."""
        waiting: list[_Prepared] = []
        for image in images:
            picture = _picture(image)
            prepared = _Prepared(to_model_input(picture, self.preprocessing), picture.size)
            if waiting and (len(waiting) == batch_size or waiting[0].image.shape != prepared.image.shape):
                yield from self._run(waiting, threshold, max_detections)
                waiting = []
            waiting.append(prepared)
        if waiting:
            yield from self._run(waiting, threshold, max_detections)

    def _run(self, batch: list[_Prepared], threshold: float, max_detections: int) -> list[Detections]:
        return self.detect(
            torch.stack([one.image for one in batch]),
            [one.size_wh for one in batch],
            threshold=threshold,
            max_detections=max_detections,
        )

    @torch.no_grad()
    def detect(
        self,
        images: Float[Tensor, "batch 3 height width"],
        sizes_wh: Sequence[tuple[int, int]],
        *,
        threshold: float = 0.0,
        max_detections: int = 100,
    ) -> list[Detections]:
        """Detections, on the CPU, of preprocessed images of one size, in pixels of the originals of `sizes_wh`."""
        images = images.to(self.device)
        no_padding = images.new_zeros((len(images), *images.shape[2:]), dtype=torch.bool)
        final = self.model(images, no_padding).final
        found = to_detections(final, sizes_wh, max_detections=max_detections, threshold=threshold)
        return [Detections(*(part.cpu() for part in one)) for one in found]


def _picture(image: ImageLike) -> Image.Image:
    if isinstance(image, str | Path):
        return load_image(image)
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(
            f"an array must be (height, width, 3) or (height, width) in uint8, not {image.shape} in {image.dtype}"
        )
    return Image.fromarray(image).convert("RGB")
