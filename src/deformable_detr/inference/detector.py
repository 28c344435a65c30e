"""Detector: a trained network with its classes and preprocessing, from images to detections."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deformable_detr.core.detections import Detections
from deformable_detr.core.devices import choose_device, has_bfloat16
from deformable_detr.core.errors import BackendError, CheckpointError
from deformable_detr.core.memory import check_fits
from deformable_detr.core.progress import Reporter
from deformable_detr.core.types import Predictions
from deformable_detr.data.augmentation.geometry import resized_wh
from deformable_detr.data.preprocessing import Preprocessing, to_model_input
from deformable_detr.inference.pictures import ImageLike, picture_of
from deformable_detr.inference.prepare import InferencePrecision, prepare
from deformable_detr.inference.tta import MOST_PER_VIEW, TTA, chosen, detect_views, flips_of, merged, sizes_of
from deformable_detr.models.interface import class_scores_of, num_queries_of
from deformable_detr.models.postprocess import to_detections
from deformable_detr.weights import read
from deformable_detr.weights.checkpoint import build_model

# Even a small network needs more than this for each pixel; fewer pixels than these fit anywhere.
_BYTES_PER_PIXEL = 100
_MANY_PIXELS = 4_000_000
FEWEST_DETECTIONS = 100
"""Number of detections per image that are kept, however few queries a model has: a query may find several classes."""
DEFAULT_THRESHOLD = 0.5
"""Default of the lowest score that is kept, in 0..1."""


class _Prepared(NamedTuple):
    """Preprocessed image, ready for a batch."""

    images: tuple[Tensor, ...]
    """The image in each size it is looked at."""
    size_wh: tuple[int, int]
    """Width and height of the original image, in pixels."""

    def fits(self, other: "_Prepared") -> bool:
        return all(one.shape == two.shape for one, two in zip(self.images, other.images, strict=True))


class Detector:
    """Detector of objects in images. The detections in an image never depend on the other images of a call.

    Args:
        model: the network; it is moved to `device` and put into evaluation mode.
        classes: class names by class id.
        category_ids: category ids of the training data, by class id.
        preprocessing: preprocessing that the network was trained with.
        device: "cpu", "cuda", "cuda:1" and so on; "auto" is a CUDA device if there is one, else the CPU.
        precision: "float32", or "bfloat16" for the backbone and the encoder of Deformable DETR: faster where the
            device has instructions for it. Heads and coordinates stay in float32. On a GPU, and of other networks, all
            layers before the heads are in bfloat16.
        as_it_is: compute with `model` itself. Else, on a CPU, a faster form of it does the work (see `prepare`), equal
            to it up to the order of sums; it is made when it is first needed, and again when the weights have changed,
            unless that went through `.data`.

    Raises:
        BackendError: this machine does not have the device, or no instructions for this precision.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        category_ids: Sequence[int],
        preprocessing: Preprocessing,
        *,
        device: str | torch.device = "auto",
        precision: InferencePrecision = "float32",
        as_it_is: bool = False,
    ) -> None:
        self.device = choose_device(device) if isinstance(device, str) else device
        if precision == "bfloat16" and self.device.type == "cpu" and not has_bfloat16():
            raise BackendError(
                "precision is bfloat16, but this CPU has no instructions for it and would take several times as long; "
                "use float32"
            )
        self.precision = precision
        self.as_it_is = as_it_is
        self.model = model.to(self.device).eval()
        self.classes = tuple(classes)
        self.category_ids = tuple(category_ids)
        self.preprocessing = preprocessing
        self._prepared: tuple[int, nn.Module] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles: without the prepared network, whose packed weights can be neither."""
        return {**self.__dict__, "_prepared": None}

    @property
    def max_detections(self) -> int:
        """Largest number of detections per image if nobody says another: the number of queries, but at least 100.

        A model can find an object with each of its queries, and none of these is to be cut off.
        """
        return max(FEWEST_DETECTIONS, num_queries_of(self.model) or 0)

    def around(self, model: nn.Module, *, as_it_is: bool | None = None) -> "Detector":
        """Detector with another network, for instance one with averaged weights, and everything else of this one.

        Args:
            model: the network.
            as_it_is: whether to compute with it itself; as this detector does if left out.
        """
        return Detector(
            model,
            self.classes,
            self.category_ids,
            self.preprocessing,
            device=self.device,
            precision=self.precision,
            as_it_is=self.as_it_is if as_it_is is None else as_it_is,
        )

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        model: nn.Module | None = None,
        device: str = "auto",
        precision: InferencePrecision = "float32",
        sha256: str | None = None,
        reporter: Reporter | None = None,
    ) -> "Detector":
        """Detector from a checkpoint, published ones included, with its network, classes and preprocessing.

        Args:
            source: path of a .safetensors file or a run folder of this package, of an official .pth file, or of a
                folder of transformers; or an https address; or a name on huggingface.co, such as
                "SenseTime/deformable-detr".
            model: network that receives the weights; needed only if its class is your own, not of this package.
            device: "cpu", "cuda", "cuda:1" and so on; "auto" is a CUDA device if there is one, else the CPU.
            precision: "float32", or "bfloat16" for the backbone and the encoder; see `Detector`.
            sha256: SHA-256 that the weights file must have, in hexadecimal digits.
            reporter: receives the progress of a download.

        Raises:
            CheckpointError: the source is missing, cannot be downloaded, is damaged, or is no checkpoint of this model.
            OutputError: a download cannot be stored; the disk may be full.
            BackendError: this machine does not have the device, or no instructions for this precision.
        """
        device = str(choose_device(device))  # to read the weights and to build the network takes seconds
        loaded = read(source, sha256=sha256, reporter=reporter)
        return cls(
            build_model(loaded, source, model),
            loaded.classes,
            loaded.category_ids,
            loaded.preprocessing,
            device=device,
            precision=precision,
        )

    @overload  # a str is also a sequence of str, but means one path
    def predict(  # type: ignore[overload-overlap]
        self,
        images: ImageLike,
        *,
        threshold: float = ...,
        batch_size: int = ...,
        max_detections: int | None = ...,
        tta: TTA | bool = ...,
    ) -> Detections: ...
    @overload  # not Iterable: an array is one, too, and type checkers could not tell the overloads apart
    def predict(
        self,
        images: Sequence[ImageLike] | Iterator[ImageLike],
        *,
        threshold: float = ...,
        batch_size: int = ...,
        max_detections: int | None = ...,
        tta: TTA | bool = ...,
    ) -> list[Detections]: ...
    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        threshold: float = DEFAULT_THRESHOLD,
        batch_size: int = 1,
        max_detections: int | None = None,
        tta: TTA | bool = False,
    ) -> Detections | list[Detections]:
        """Detections of one image, or a list with the detections of several images.

        Args:
            images: one image, or a list or another iterable of images of any kinds and sizes: paths, Pillow images,
                arrays, tensors (see `ImageLike`). An array or a tensor is always one image.
            threshold: lowest score that is kept, in 0..1; 0 keeps everything.
            batch_size: largest number of consecutive images of equal size that go through the network together.
            max_detections: largest number of detections per image; `Detector.max_detections` if left out.
            tta: test-time augmentation: whether, or with which settings, mirrored and resized views of each image are
                looked at, too, and their detections merged. Their `query_ids` are then -1.

        Returns:
            `Detections` for one image, else a list of them in the order of the images. They are on the CPU, best score
            first, with boxes xyxy in pixels of each image as it is displayed.

        Raises:
            DataError: an image cannot be read.
            ConfigError: a view would be larger than any image may be.
            ValueError: an array or a tensor is not one image, for instance a batch; or something is no image at all.
        """
        if isinstance(images, ImageLike):
            return next(self._each([images], threshold, batch_size, max_detections, tta))
        return list(self._each(images, threshold, batch_size, max_detections, tta))

    def predict_each(
        self,
        images: Iterable[ImageLike],
        *,
        threshold: float = DEFAULT_THRESHOLD,
        batch_size: int = 1,
        max_detections: int | None = None,
        tta: TTA | bool = False,
    ) -> Iterator[Detections]:
        """Detections of several images, one image at a time, also for more images than fit into memory.

        Args:
            images: an iterable of images (see `ImageLike`); it is read ahead by one batch at most.
            threshold: as for `predict`.
            batch_size: as for `predict`.
            max_detections: as for `predict`.
            tta: as for `predict`.

        Raises:
            DataError: an image cannot be read.
            ConfigError: a view would be larger than any image may be.
            ValueError: `images` is a single image, or something in it is no image.
        """
        if isinstance(images, ImageLike):
            raise ValueError(f"predict_each takes several images, not a {type(images).__name__}; predict takes one")
        return self._each(images, threshold, batch_size, max_detections, tta)

    def _each(
        self,
        images: Iterable[ImageLike],
        threshold: float,
        batch_size: int,
        max_detections: int | None,
        tta: TTA | bool,
    ) -> Iterator[Detections]:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        most = self.max_detections if max_detections is None else max_detections
        views = chosen(tta)
        sizes = sizes_of(views, self.preprocessing)
        largest = max(sizes, key=lambda size: size.short_side)
        waiting: list[_Prepared] = []
        for image in images:
            picture = picture_of(image)
            self._check_fits(picture.size, batch_size, largest, views)
            prepared = _Prepared(tuple(to_model_input(picture, size) for size in sizes), picture.size)
            if waiting and (len(waiting) == batch_size or not waiting[0].fits(prepared)):
                yield from self._run(waiting, threshold, most, views)
                waiting = []
            waiting.append(prepared)
        if waiting:
            yield from self._run(waiting, threshold, most, views)

    def _check_fits(
        self, size_wh: tuple[int, int], batch_size: int, preprocessing: Preprocessing, tta: TTA | None
    ) -> None:
        width, height = resized_wh(size_wh, preprocessing.short_side, preprocessing.max_side)
        way_out = "use weights of a smaller image size"
        if tta is not None and preprocessing.short_side > self.preprocessing.short_side:
            way_out = f"leave {max(tta.scales):g} out of tta.scales"
        way_out += ", or a smaller batch size" if batch_size > 1 else ""
        what = f"{batch_size} images of {width} x {height} pixels" if batch_size > 1 else f"{width} x {height} pixels"
        if batch_size * width * height > _MANY_PIXELS:
            check_fits(batch_size * width * height, _BYTES_PER_PIXEL, self.device, what, way_out)

    def _run(self, batch: list[_Prepared], threshold: float, max_detections: int, tta: TTA | None) -> list[Detections]:
        sizes_wh = [one.size_wh for one in batch]
        # What views find is merged before the threshold: a score is then that of all of them.
        least, most = (threshold, max_detections) if tta is None else (0.0, max(max_detections, MOST_PER_VIEW))

        def detect(images: Tensor) -> list[Detections]:
            return self.detect(images, sizes_wh, threshold=least, max_detections=most)

        in_each_size = [
            detect_views(detect, torch.stack(images), sizes_wh, flips_of(tta))
            for images in zip(*(one.images for one in batch), strict=True)
        ]
        of_each_image = [[one for views in sizes for one in views] for sizes in zip(*in_each_size, strict=True)]
        if tta is None:
            return [only for (only,) in of_each_image]
        return [merged(views, tta, max_detections=max_detections, threshold=threshold) for views in of_each_image]

    @torch.no_grad()
    def detect(
        self,
        images: Float[Tensor, "batch 3 height width"],
        sizes_wh: Sequence[tuple[int, int]],
        *,
        threshold: float = 0.0,
        max_detections: int | None = None,
    ) -> list[Detections]:
        """Detections of a batch of preprocessed images of equal size; the network is put into evaluation mode.

        Args:
            images: preprocessed images, without padding.
            sizes_wh: width and height of each original image, in pixels.
            threshold: lowest score that is kept, in 0..1.
            max_detections: as for `predict`.

        Returns:
            One `Detections` per image, on the CPU, best score first, with boxes xyxy in pixels of the originals.

        Raises:
            CheckpointError: the network's predictions are no numbers.
        """
        if any(module.training for module in self.model.modules()):  # a part alone, too, would drop at random
            self.model.eval()
        images = images.to(self.device)
        no_padding = images.new_zeros((len(images), *images.shape[2:]), dtype=torch.bool)
        network = self._network()
        # A prepared network keeps to its precision by itself.
        wanted = self.precision == "bfloat16" and network is self.model
        with torch.autocast(self.device.type, torch.bfloat16, enabled=wanted):
            final = network(images, no_padding).final
        check_numbers(final)
        found = to_detections(
            final,
            sizes_wh,
            max_detections=self.max_detections if max_detections is None else max_detections,
            threshold=threshold,
            class_scores=class_scores_of(self.model),
        )
        return [one.cpu().with_classes(self.classes, self.category_ids) for one in found]

    def _network(self) -> nn.Module:
        """Network that computes: on a CPU the prepared form of the model, as long as its weights are those of then."""
        state = None if self.as_it_is or self.device.type != "cpu" else _state_of(self.model)
        if state is None:
            return self.model
        if self._prepared is None or self._prepared[0] != state:
            self._prepared = state, prepare(self.model, precision=self.precision)
        return self._prepared[1]


def check_numbers(final: Predictions) -> None:
    """Refuse predictions that are no numbers: no score would reach the threshold, as if the picture were empty.

    Raises:
        CheckpointError: a logit or a box is NaN.
    """
    if final.logits.isnan().any() or final.boxes.isnan().any():
        raise CheckpointError(
            "the predictions are no numbers: the weights are damaged or too large to compute with, "
            "so take an earlier checkpoint"
        )


def _state_of(model: nn.Module) -> int | None:
    """Number that changes when a weight or a hook of the network does; None for weights that do not tell.

    Those are weights made in PyTorch's inference mode. A write through `.data` is not seen, either.
    """
    tensors = (*model.parameters(), *model.buffers())
    if any(one.is_inference() for one in tensors):
        return None
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    return hash((hooks, *((one.data_ptr(), one._version) for one in tensors)))
