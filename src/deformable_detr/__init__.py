"""Deformable DETR: train, evaluate and run the detector on your own photos.

Names load what they need when they are first used; importing the package loads nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deformable_detr.core.version import __version__

if TYPE_CHECKING:
    from deformable_detr.core.detections import Detections
    from deformable_detr.core.errors import DeformableDetrError
    from deformable_detr.data import DetectionDataset, Sample, open_dataset
    from deformable_detr.evaluation.evaluate import EvaluationReport, evaluate
    from deformable_detr.inference.detector import Detector
    from deformable_detr.report import write_report
    from deformable_detr.runs.config import TrainConfig
    from deformable_detr.runs.recipes import (
        RECIPES,
        finetune,
        paper_r50,
        paper_r50_refine,
        paper_r50_single_scale,
        paper_r50_single_scale_dc5,
        paper_r50_two_stage,
        small,
    )
    from deformable_detr.training.train import Run, resume, train

    load = Detector.load

_HOMES = {
    "DeformableDetrError": "core.errors",
    "Detections": "core.detections",
    "DetectionDataset": "data.dataset",
    "Detector": "inference.detector",
    "EvaluationReport": "evaluation.evaluate",
    "RECIPES": "runs.recipes",
    "Run": "training.train",
    "Sample": "data.dataset",
    "TrainConfig": "runs.config",
    "paper_r50": "runs.recipes",
    "paper_r50_refine": "runs.recipes",
    "paper_r50_single_scale": "runs.recipes",
    "paper_r50_single_scale_dc5": "runs.recipes",
    "paper_r50_two_stage": "runs.recipes",
    "evaluate": "evaluation.evaluate",
    "finetune": "runs.recipes",
    "load": "inference.detector",
    "open_dataset": "data.open",
    "resume": "training.train",
    "small": "runs.recipes",
    "train": "training.train",
    "write_report": "report.write",
}

__all__ = [
    "RECIPES",
    "DeformableDetrError",
    "DetectionDataset",
    "Detections",
    "Detector",
    "EvaluationReport",
    "Run",
    "Sample",
    "TrainConfig",
    "__version__",
    "evaluate",
    "finetune",
    "load",
    "open_dataset",
    "paper_r50",
    "paper_r50_refine",
    "paper_r50_single_scale",
    "paper_r50_single_scale_dc5",
    "paper_r50_two_stage",
    "resume",
    "small",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOMES[name]}")
    return home.Detector.load if name == "load" else getattr(home, name)


def __dir__() -> list[str]:
    return list(__all__)
