"""Detection in many image files, with annotated pictures and a COCO file of the detections if wanted."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from deformable_detr.core.errors import DataError, OutputError, listed
from deformable_detr.core.files import write_atomically, write_json
from deformable_detr.core.progress import Reporter, Silence
from deformable_detr.data.formats.coco_document import document, image_record, object_record
from deformable_detr.data.images import list_images, list_unread, load_image
from deformable_detr.inference.detector import DEFAULT_THRESHOLD, Detector
from deformable_detr.inference.file_names import FreeStems
from deformable_detr.inference.image_results import ImageResult, PredictionSettings
from deformable_detr.inference.processes import NumProcesses, check_processes, results_of
from deformable_detr.inference.tta import TTA

# Pixels of the longest side that a JPEG file can have.
_LONGEST_JPEG = 65_500


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Paths of image files, each once, in the order of `patterns`; those of one folder or pattern sorted by name.

    Args:
        patterns: files, folders, which are searched with all their subfolders, and patterns such as "photos/*.jpg".

    Raises:
        DataError: a pattern fits no file, or a folder holds no image.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        if not pattern.strip() or "\0" in pattern:
            raise DataError(f"no such image: {pattern!r}")
        # The functions of os.path answer for names that no file can have, too.
        path = Path(os.path.expanduser(pattern))
        if os.path.isdir(path):
            paths = list_images(path)
            if not paths:
                unread = list_unread(path)
                only = f", only {_numbers_of(unread)}" if unread else ""
                raise DataError(f"no images in the folder {pattern}{only}")
        elif os.path.exists(path):
            paths = [path]
        else:
            matches = (Path(match) for match in sorted(glob.glob(str(path), recursive=True)))
            paths = [match for match in matches if os.path.isfile(match)]
            if not paths:
                raise DataError(f"no such image: {pattern}")
        found.update(dict.fromkeys(paths))
    return list(found)


def passed_over(patterns: Sequence[str]) -> str:
    """Sentence on the pictures in the folders among `patterns` whose formats are not read; empty if there are none."""
    folders = (Path(os.path.expanduser(pattern)) for pattern in patterns)
    unread = [path for folder in folders if os.path.isdir(folder) for path in list_unread(folder)]
    return f"left out: {_numbers_of(unread)}" if unread else ""


def _numbers_of(unread: Sequence[Path]) -> str:
    what = "a picture" if len(unread) == 1 else f"{len(unread)} pictures"
    return f"{what} of formats that are not read ({listed([path.name for path in unread])})"


def predict_files(
    detector: Detector,
    paths: Sequence[Path],
    *,
    output: Path | None = None,
    threshold: float = DEFAULT_THRESHOLD,
    max_detections: int | None = None,
    batch_size: int = 1,
    skip_bad_images: bool = False,
    processes: NumProcesses = 1,
    reporter: Reporter | None = None,
    tta: TTA | bool = False,
) -> Iterator[ImageResult]:
    """Results of image files, one at a time, in the order of `paths`; files that cannot be read come last.

    Args:
        detector: the detector.
        paths: image files.
        output: folder for annotated pictures and, at the end, detections.json, a COCO file whose annotations have
            scores; None writes nothing.
        threshold: lowest score that is kept, in 0..1.
        max_detections: largest number of detections per image; `Detector.max_detections` if left out.
        batch_size: largest number of consecutive images of equal size that go through the network together.
        skip_bad_images: report a file that cannot be read as a result with an `error`, instead of raising.
        processes: number of processes, on a CPU only. Each has one thread and a copy of the detector. "auto" measures
            on the first images whether one process for each core is faster than one with many threads. A program that
            asks for several must start under `if __name__ == "__main__"`.
        reporter: is told what "auto" has chosen.
        tta: test-time augmentation, as for `Detector.predict`.

    Raises:
        DataError: a file cannot be read, and `skip_bad_images` is False.
        ConfigError: a view of test-time augmentation would be larger than any image may be.
        OutputError: the folder cannot be written, or it holds the images themselves.
        ConfigError: the number of processes is out of range, there are several on another device than the CPU, or the
            detector cannot be copied to them.
    """
    if output is not None and os.path.realpath(output) in {os.path.dirname(os.path.realpath(path)) for path in paths}:
        raise OutputError(f"{output} holds the images themselves, which would be replaced; name another folder")
    check_processes(processes, detector.device)
    pictures = None if output is None else _PictureFolder(output, detector, threshold)
    settings = PredictionSettings(threshold, max_detections, batch_size, skip_bad_images, tta)
    for result, image in results_of(detector, paths, settings, processes, reporter or Silence()):
        if pictures is not None and result.error is None:
            pictures.add(result, load_image(result.path) if image is None else image)
        yield result
    if pictures is not None:
        pictures.finish()


class _PictureFolder:
    """Output folder with annotated pictures and the COCO file of their detections."""

    def __init__(self, path: Path, detector: Detector, threshold: float) -> None:
        self._path, self._detector, self._threshold = path, detector, threshold
        self._stems = FreeStems()
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

        drawn = draw_detections(
            image,
            result.detections,
            self._detector.classes,
            threshold=self._threshold,
            scale=min(1.0, _LONGEST_JPEG / max(image.size)),
        )
        target = self._path / f"{self._stems.take(result.path.stem)}.jpg"
        write_atomically(target, lambda place: drawn.save(place, "JPEG", quality=92), durable=False)
        image_id = len(self._images) + 1
        self._images.append(image_record(image_id, str(result.path), image.size))
        for found in result.detections:
            category_id, number = self._detector.category_ids[found.class_id], len(self._annotations) + 1

            self._annotations.append(object_record(number, image_id, category_id, found.box_xyxy, score=found.score))

    def finish(self) -> None:
        classes, category_ids = self._detector.classes, self._detector.category_ids
        write_json(self._path / "detections.json", document(self._images, self._annotations, classes, category_ids))
