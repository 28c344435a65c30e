"""Detections of one image, as tensors and as single objects."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from deformable_detr.core.errors import ConfigError

_SHOWN = 5

_Selection = slice | Tensor | np.ndarray | Sequence[int] | Sequence[bool]
"""Choice of several objects: a slice, positions, or a mask with one truth value for each object."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One detected object."""

    box_xyxy: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the image as it is displayed; may reach past its border."""
    score: float
    """Confidence, 0..1."""
    class_id: int
    """Position of the class in the detector's `classes`, from 0."""
    class_name: str
    """Name of the class; "class 3" and so on where names are not known."""
    query_id: int
    """Number of the decoder query that found it; -1 where it comes from no decoder."""

    def __str__(self) -> str:
        return _line(self, len(self.class_name))


class Detections:
    """Detections of one image, best score first as the detector returns them.

    `len` counts the objects, iteration and a position give one `Detection` each, and a slice, a mask or several
    positions give `Detections` again. The tensors are shared, not copied, where PyTorch shares them.

    Args:
        boxes_xyxy: left, top, right, bottom in pixels of the image as it is displayed.
        scores: 0..1.
        class_ids: 0, 1, 2, ..., positions in `classes`.
        query_ids: which decoder query found each object; one query may find several. -1 everywhere if left out.
        classes: names by class id; empty where they are not known.
        category_ids: the training data's own numbers by class id, as COCO files have them; as many as `classes`.
    """

    __slots__ = ("boxes_xyxy", "category_ids", "class_ids", "classes", "query_ids", "scores")

    def __init__(
        self,
        boxes_xyxy: Float[Tensor, "objects 4"],
        scores: Float[Tensor, "objects"],
        class_ids: Int[Tensor, "objects"],
        query_ids: Int[Tensor, "objects"] | None = None,
        *,
        classes: tuple[str, ...] = (),
        category_ids: tuple[int, ...] = (),
    ) -> None:
        self.boxes_xyxy = boxes_xyxy
        self.scores = scores
        self.class_ids = class_ids
        self.query_ids = torch.full_like(class_ids, -1) if query_ids is None else query_ids
        self.classes = classes
        self.category_ids = category_ids

    @property
    def class_names(self) -> list[str]:
        """Class name of each object; "class 3" and so on where names are not known."""
        return [self._name(class_id) for class_id in self.class_ids.tolist()]

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        columns = (self.boxes_xyxy, self.scores, self.class_ids, self.query_ids)
        for box, score, class_id, query_id in zip(*(column.tolist() for column in columns), strict=True):
            yield Detection(
                box_xyxy=tuple(box),
                score=score,
                class_id=class_id,
                class_name=self._name(class_id),
                query_id=query_id,
            )

    @overload
    def __getitem__(self, key: int | np.integer) -> Detection: ...
    @overload
    def __getitem__(self, key: _Selection) -> "Detections": ...
    def __getitem__(self, key: int | np.integer | _Selection) -> "Detection | Detections":
        """One object by its position, or several by a slice, a mask or positions."""
        if isinstance(key, int | np.integer):
            position = int(key)
            if not -len(self) <= position < len(self):
                raise IndexError(f"there is no detection {position}: there are {len(self)}")
            return next(iter(self._rows(slice(position, position + 1 or None))))
        return self._rows(_rows_of(key, len(self), self.scores.device))

    def __repr__(self) -> str:
        if len(self) == 0:
            return "no detections"
        best = list(self[self.scores.topk(min(_SHOWN, len(self))).indices])
        width = max(len(one.class_name) for one in best)
        lines = [f"{len(self)} detection{'s' * (len(self) > 1)}", *(f"  {_line(one, width)}" for one in best)]
        if len(self) > len(best):
            lines.append(f"  and {len(self) - len(best)} more with lower scores")
        return "\n".join(lines)

    def with_classes(self, classes: Sequence[str], category_ids: Sequence[int]) -> "Detections":
        """Copy of these detections with class names and category ids, each by class id.

        Raises:
            ValueError: there are not as many names as category ids, or fewer than the class ids need.
        """
        if len(classes) != len(category_ids):
            raise ValueError(f"there are {len(classes)} class names but {len(category_ids)} category ids")
        if len(self) and not 0 <= int(self.class_ids.min()) <= int(self.class_ids.max()) < len(classes):
            raise ValueError(
                f"class ids run from {int(self.class_ids.min())} to {int(self.class_ids.max())}, "
                f"but there are names for {len(classes)} classes"
            )
        return Detections(
            self.boxes_xyxy,
            self.scores,
            self.class_ids,
            self.query_ids,
            classes=tuple(classes),
            category_ids=tuple(category_ids),
        )

    def cpu(self) -> "Detections":
        """Copy of these detections with all tensors on the CPU."""
        return Detections(
            self.boxes_xyxy.cpu(),
            self.scores.cpu(),
            self.class_ids.cpu(),
            self.query_ids.cpu(),
            classes=self.classes,
            category_ids=self.category_ids,
        )

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Entries of a COCO result file: image_id, category_id, bbox as left, top, width, height, and score.

        Numbers are the exact values of the tensors, so that a file written and read again gives the same metrics.

        Raises:
            ValueError: the category ids are not known, because no detector made these; `with_classes` adds them.
        """
        if len(self) and not self.category_ids:
            raise ValueError(f"the category ids of {len(self)} detections are not known; add them with `with_classes`")
        corners = self.boxes_xyxy.detach().cpu().double()
        boxes_xywh = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
        return [
            {"image_id": image_id, "category_id": self.category_ids[class_id], "bbox": box, "score": score}
            for box, score, class_id in zip(
                boxes_xywh.tolist(), self.scores.tolist(), self.class_ids.tolist(), strict=True
            )
        ]

    def to_supervision(self) -> Any:
        """Detections as `supervision.Detections`, with the names as `data["class_name"]`, for its drawing and tracking.

        Raises:
            ConfigError: supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            if error.name != "supervision":  # it is there, and lacks something itself
                raise
            raise ConfigError("supervision is not installed; `pip install supervision` brings it") from error
        return supervision.Detections(
            xyxy=self.boxes_xyxy.detach().cpu().numpy(),
            confidence=self.scores.detach().cpu().numpy(),
            class_id=self.class_ids.cpu().numpy(),
            data={"class_name": np.array(self.class_names, dtype=np.str_)},
        )

    def _name(self, class_id: int) -> str:
        return self.classes[class_id] if self.classes else f"class {class_id}"

    def _rows(self, rows: slice | Tensor) -> "Detections":
        return Detections(
            self.boxes_xyxy[rows],
            self.scores[rows],
            self.class_ids[rows],
            self.query_ids[rows],
            classes=self.classes,
            category_ids=self.category_ids,
        )


def _rows_of(key: Any, count: int, device: torch.device) -> slice | Tensor:
    """Rows in a form that PyTorch accepts: it knows no negative steps, and takes bytes for truth values."""
    if isinstance(key, slice):
        start, stop, step = key.indices(count)
        return slice(start, stop, step) if step > 0 else torch.arange(start, stop, step, device=device)
    rows = torch.as_tensor(key, device=device)
    if rows.ndim != 1 or (rows.is_floating_point() and rows.numel()):
        raise TypeError(
            "detections are chosen by one int, a slice, or a list, array or tensor of one axis with truth values or "
            f"positions, not by {tuple(rows.shape)} in {rows.dtype}"
        )
    if rows.dtype == torch.bool:
        if len(rows) != count:
            raise IndexError(f"a mask of {len(rows)} truth values for {count} detections")
        return rows
    rows = rows.long()
    if rows.numel() and not -count <= int(rows.min()) <= int(rows.max()) < count:
        raise IndexError(f"positions from {int(rows.min())} to {int(rows.max())} of {count} detections")
    return rows


def _line(one: Detection, width: int) -> str:
    corners = ", ".join(f"{side:.0f}" for side in one.box_xyxy)
    return f"{one.class_name:{width}}  {one.score:.2f}  ({corners})"
