"""A trained model with its class names: images in, detections out."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deformable_detr.core.detections import Detections
from deformable_detr.core.devices import choose_device
from deformable_detr.core.progress import Reporter
from deformable_detr.data.preprocessing import Preprocessing, to_model_input
from deformable_detr.inference.pictures import ImageLike, picture_of
from deformable_detr.models.postprocess import to_detections
from deformable_detr.weights import read
from deformable_detr.weights.checkpoint import build_model

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
        device = str(choose_device(device))  # to build the network takes seconds
        return cls(
            build_model(loaded, source, model), loaded.classes, loaded.category_ids, loaded.preprocessing, device=device
        )

    @overload  # a str could be several, too, of one letter each, but is one
    def predict(  # type: ignore[overload-overlap]
        self, images: ImageLike, *, threshold: float = ..., batch_size: int = ..., max_detections: int = ...
    ) -> Detections: ...
    @overload  # not any iterable: type checkers take an array for one, and would not know which of the two is meant
    def predict(
        self,
        images: Sequence[ImageLike] | Iterator[ImageLike],
        *,
        threshold: float = ...,
        batch_size: int = ...,
        max_detections: int = ...,
    ) -> list[Detections]: ...
    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        threshold: float = DEFAULT_THRESHOLD,
        batch_size: int = 1,
        max_detections: int = 100,
    ) -> Detections | list[Detections]:
        """Detections of one image, or a list of those of several; boxes in pixels of each image as it is displayed.

        An array or a tensor is always one image; several are a list, in any mix of kinds and sizes.

        Args:
            images: one or several of `ImageLike`: paths, Pillow images, arrays, tensors.
            threshold: scores below it are left out; 0 keeps everything.
            batch_size: consecutive images of the same size go through the network together, this many at most.
            max_detections: per image.

        Raises:
            DataError: an image cannot be read.
            ValueError: an array or a tensor that is not one image, such as a batch; no image at all.
        """
        if isinstance(images, ImageLike):
            return next(self._each([images], threshold, batch_size, max_detections))
        return list(self._each(images, threshold, batch_size, max_detections))

    def predict_each(
        self,
        images: Iterable[ImageLike],
        *,
        threshold: float = DEFAULT_THRESHOLD,
        batch_size: int = 1,
        max_detections: int = 100,
    ) -> Iterator[Detections]:
        """Detections of several images, one image at a time, for more than memory holds.

        Args:
            images: anything that gives one of `ImageLike` after another; no more are taken than a batch needs.
            threshold: as for `predict`.
            batch_size: as for `predict`.
            max_detections: as for `predict`.

        Raises:
            DataError: an image cannot be read.
            ValueError: `images` is a single image, or one of them is none.
        """
        if isinstance(images, ImageLike):
            raise ValueError(f"predict_each takes several images, not a {type(images).__name__}; predict takes one")
        return self._each(images, threshold, batch_size, max_detections)

    def _each(
        self, images: Iterable[ImageLike], threshold: float, batch_size: int, max_detections: int
    ) -> Iterator[Detections]:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        waiting: list[_Prepared] = []
        for image in images:
            picture = picture_of(image)
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
        """Detections, on the CPU, of preprocessed images of one size, in pixels of the originals of `sizes_wh`.

        The network is put into evaluation mode, and stays in it.
        """
        if self.model.training:
            self.model.eval()
        images = images.to(self.device)
        no_padding = images.new_zeros((len(images), *images.shape[2:]), dtype=torch.bool)
        final = self.model(images, no_padding).final
        found = to_detections(final, sizes_wh, max_detections=max_detections, threshold=threshold)
        return [one.cpu().with_classes(self.classes, self.category_ids) for one in found]
