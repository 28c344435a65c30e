"""Detection in many image files, with annotated pictures and a COCO file of the detections if wanted."""

import glob
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from deformable_detr.core.detections import Detections
from deformable_detr.core.errors import DataError, OutputError
from deformable_detr.core.files import write_json
from deformable_detr.data.formats.coco_document import document, image_record, object_record
from deformable_detr.data.images import list_images, load_image
from deformable_detr.inference.detector import DEFAULT_THRESHOLD, Detector


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


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Paths of image files, each once, in the order of `patterns`; those of one folder or pattern sorted by name.

    Args:
        patterns: files, folders, which are searched with all their subfolders, and patterns such as "photos/*.jpg".

    Raises:
        DataError: a pattern fits no file, or a folder holds no image.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            paths = list_images(path)
            if not paths:
                raise DataError(f"no images in the folder {pattern}")
        elif path.exists():
            paths = [path]
        else:
            matches = (Path(match) for match in sorted(glob.glob(str(path), recursive=True)))
            paths = [match for match in matches if match.is_file()]
            if not paths:
                raise DataError(f"no such image: {pattern}")
        found.update(dict.fromkeys(paths))
    return list(found)


def predict_files(
    detector: Detector,
    paths: Sequence[Path],
    *,
    output: Path | None = None,
    threshold: float = DEFAULT_THRESHOLD,
    max_detections: int = 100,
    batch_size: int = 1,
    skip_bad_images: bool = False,
) -> Iterator[ImageResult]:
    """Results of image files, one at a time, in the order of `paths`; files that cannot be read come last.

    Args:
        detector: the detector.
        paths: image files.
        output: folder for annotated pictures and, at the end, detections.json, a COCO file whose annotations have
            scores; None writes nothing.
        threshold: lowest score that is kept, in 0..1.
        max_detections: largest number of detections per image.
        batch_size: largest number of consecutive images of equal size that go through the network together.
        skip_bad_images: report a file that cannot be read as a result with an `error`, instead of raising.

    Raises:
        DataError: a file cannot be read, and `skip_bad_images` is False.
        OutputError: the folder cannot be written, or it holds the images themselves.
    """
    if output is not None and output.resolve() in {path.resolve().parent for path in paths}:
        raise OutputError(f"{output} holds the images themselves, which would be replaced; name another folder")
    pictures = None if output is None else _PictureFolder(output, detector, threshold)
    # The detector reads ahead by one batch: `waiting` holds the images whose detections have not come yet.
    waiting: deque[tuple[Path, Image.Image]] = deque()
    bad: list[ImageResult] = []

    def read() -> Iterator[Image.Image]:
        for path in paths:
            try:
                image = load_image(path)
            except DataError as error:
                if not skip_bad_images:
                    raise
                bad.append(ImageResult(path=path, error=str(error)))
                continue
            waiting.append((path, image))
            yield image

    found = detector.predict_each(read(), threshold=threshold, batch_size=batch_size, max_detections=max_detections)
    for detections in found:
        path, image = waiting.popleft()
        result = ImageResult(path=path, size_wh=image.size, detections=detections)
        if pictures is not None:
            pictures.add(result, image)
        yield result
    yield from bad
    if pictures is not None:
        pictures.finish()


class _PictureFolder:
    """Output folder with annotated pictures and the COCO file of their detections."""

    def __init__(self, path: Path, detector: Detector, threshold: float) -> None:
        self._path, self._detector, self._threshold = path, detector, threshold
        self._names: set[str] = set()
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write to the output folder {path}: {error.strerror}") from error

    def add(self, result: ImageResult, image: Image.Image) -> None:
        assert result.detections is not None
        # Only who asks for pictures needs what draws them.
        from deformable_detr.inference.drawing import draw_detections

        name = self._free_name(result.path.stem)
        drawn = draw_detections(image, result.detections, self._detector.classes, threshold=self._threshold)
        try:
            drawn.save(self._path / name, quality=92)
        except OSError as error:
            raise OutputError(f"cannot write {self._path / name}: {error.strerror or error}") from error
        image_id = len(self._images) + 1
        self._images.append(image_record(image_id, str(result.path), image.size))
        for found in result.detections:
            category_id, number = self._detector.category_ids[found.class_id], len(self._annotations) + 1

            self._annotations.append(object_record(number, image_id, category_id, found.box_xyxy, score=found.score))

    def finish(self) -> None:
        classes, category_ids = self._detector.classes, self._detector.category_ids
        write_json(self._path / "detections.json", document(self._images, self._annotations, classes, category_ids))

    def _free_name(self, stem: str) -> str:
        """File name that is not used yet: images of different folders may have equal names."""
        name, number = f"{stem}.jpg", 1
        while name in self._names:
            number += 1
            name = f"{stem}-{number}.jpg"
        self._names.add(name)
        return name
