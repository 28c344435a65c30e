"""Detection in image files, one after the other, in this process."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from deformable_detr.core.detections import Detections
from deformable_detr.core.errors import DataError
from deformable_detr.data.images import load_image
from deformable_detr.inference.detector import DEFAULT_THRESHOLD, Detector
from deformable_detr.inference.tta import TTA


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """Result for one image file: its detections, or the reason why it could not be read."""

    path: Path
    """Path of the image file."""
    size_wh: tuple[int, int] | None = None
    """Width and height in pixels of the image as displayed; None if it could not be read."""
    detections: Detections | None = None
    """Objects that were found, best score first; None if the image could not be read."""
    error: str | None = None
    """Reason why the image could not be read; None if it was."""

    def record(self) -> dict[str, Any]:
        """Record as plain data, for JSON: boxes are x1, y1, x2, y2 in pixels of the image as displayed."""
        assert self.size_wh is not None
        assert self.detections is not None
        return {
            "image": str(self.path),
            "width": self.size_wh[0],
            "height": self.size_wh[1],
            "detections": [
                {
                    "class": one.class_name,
                    "class_id": one.class_id,
                    "category_id": self.detections.category_ids[one.class_id],
                    "score": round(one.score, 4),
                    "box_xyxy": [round(side, 2) for side in one.box_xyxy],
                }
                for one in self.detections
            ],
        }


class PredictionSettings(NamedTuple):
    """Settings of the detection in image files; see `predict_files`."""

    threshold: float = DEFAULT_THRESHOLD
    """Lowest score that is kept, in 0..1."""
    max_detections: int | None = None
    """Largest number of detections per image; None is `Detector.max_detections`."""
    batch_size: int = 1
    """Largest number of consecutive images of equal size that go through the network together."""
    skip_bad_images: bool = False
    """Whether a file that cannot be read becomes a result with an `error`, instead of an exception."""
    tta: TTA | bool = False
    """Test-time augmentation, as for `Detector.predict`."""


def results_here(
    detector: Detector, paths: Sequence[Path], settings: PredictionSettings
) -> Iterator[tuple[ImageResult, Image.Image | None]]:
    """Results of image files with the images, in the order of `paths`; files that cannot be read come last.

    Args:
        detector: the detector.
        paths: image files.
        settings: how to detect.

    Raises:
        DataError: a file cannot be read, and the settings do not say that such files are skipped.
    """
    # The detector reads ahead by one batch: `waiting` holds the images whose detections have not come yet.
    waiting: deque[tuple[Path, Image.Image]] = deque()
    bad: list[ImageResult] = []

    def read() -> Iterator[Image.Image]:
        for path in paths:
            try:
                image = load_image(path)
            except DataError as error:
                if not settings.skip_bad_images:
                    raise
                bad.append(ImageResult(path=path, error=str(error)))
                continue
            waiting.append((path, image))
            yield image

    found = detector.predict_each(
        read(),
        threshold=settings.threshold,
        batch_size=settings.batch_size,
        max_detections=settings.max_detections,
        tta=settings.tta,
    )
    for detections in found:
        path, image = waiting.popleft()
        yield ImageResult(path=path, size_wh=image.size, detections=detections), image
    yield from ((result, None) for result in bad)
