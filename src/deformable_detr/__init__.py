"""Deformable DETR: train, evaluate and run the detector on your own photos.

Names load what they need when they are first used; importing the package loads nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deformable_detr.core.version import __version__

if TYPE_CHECKING:
    from deformable_detr.core.detections import Detection, Detections
    from deformable_detr.core.distributed import Ranks
    from deformable_detr.core.errors import (
        BackendError,
        CheckpointError,
        ConfigError,
        DataError,
        DeformableDetrError,
        OutputError,
        TrainingError,
    )
    from deformable_detr.core.format_names import FormatName
    from deformable_detr.core.progress import Reporter
    from deformable_detr.core.types import (
        Denoised,
        DetectorOutput,
        GroupPredictions,
        OneToManyPredictions,
        Predictions,
        Target,
    )
    from deformable_detr.data.augmentation.settings import Augmentation
    from deformable_detr.data.dataset import DetectionDataset, Problem, ProblemKind, Sample
    from deformable_detr.data.open import open_dataset
    from deformable_detr.data.preprocessing import Preprocessing
    from deformable_detr.data.splits import TrainingSplits
    from deformable_detr.evaluation.coco_metrics import ClassMetrics, Metrics
    from deformable_detr.evaluation.evaluate import EvaluationReport, evaluate
    from deformable_detr.inference.chained_map import ChainedMap
    from deformable_detr.inference.detector import Detector
    from deformable_detr.inference.explain import explain
    from deformable_detr.inference.explanation import Explanation, LayerPoints, Proposal
    from deformable_detr.inference.missed import Missed
    from deformable_detr.inference.pictures import ImageLike
    from deformable_detr.inference.pixel_gradients import GradientKind
    from deformable_detr.inference.prepare import InferencePrecision
    from deformable_detr.inference.tta import TTA
    from deformable_detr.models import DETR, DINO, DeformableDETR, DeformableDETRConfig, DETRConfig, DINOConfig
    from deformable_detr.models.interface import ClassRows, CriterionLike, DetectionModel, ModelConfig
    from deformable_detr.models.losses import CriterionConfig, Losses
    from deformable_detr.models.losses.classification import ClassLossName
    from deformable_detr.models.losses.matching import Assignment
    from deformable_detr.report.write import write_report
    from deformable_detr.runs import recipes
    from deformable_detr.runs.config import (
        CheckpointConfig,
        ComputeConfig,
        DataConfig,
        OptimizerConfig,
        PrecisionName,
        ProductsName,
        RunConfig,
        ScheduleConfig,
        StoppingConfig,
        TrainConfig,
    )
    from deformable_detr.training.finetune import Source
    from deformable_detr.training.train import Run, resume, train
    from deformable_detr.weights.checkpoint import Checkpoint, TrainingState

    load = Detector.load

_HOMES = {
    "ChainedMap": "inference.chained_map",
    "Explanation": "inference.explanation",
    "GradientKind": "inference.pixel_gradients",
    "LayerPoints": "inference.explanation",
    "Proposal": "inference.explanation",
    "Missed": "inference.missed",
    "explain": "inference.explain",
    "DINO": "models",
    "TTA": "inference.tta",
    "Assignment": "models.losses.matching",
    "Augmentation": "data.augmentation.settings",
    "BackendError": "core.errors",
    "Checkpoint": "weights.checkpoint",
    "CheckpointConfig": "runs.config",
    "CheckpointError": "core.errors",
    "ClassLossName": "models.losses.classification",
    "ClassMetrics": "evaluation.coco_metrics",
    "ClassRows": "models.interface",
    "ComputeConfig": "runs.config",
    "ConfigError": "core.errors",
    "CriterionConfig": "models.losses",
    "CriterionLike": "models.interface",
    "DINOConfig": "models",
    "DataConfig": "runs.config",
    "DataError": "core.errors",
    "DETR": "models",
    "DETRConfig": "models",
    "DeformableDETR": "models",
    "DeformableDETRConfig": "models",
    "DeformableDetrError": "core.errors",
    "Denoised": "core.types",
    "Detection": "core.detections",
    "DetectionDataset": "data.dataset",
    "DetectionModel": "models.interface",
    "Detections": "core.detections",
    "Detector": "inference.detector",
    "DetectorOutput": "core.types",
    "EvaluationReport": "evaluation.evaluate",
    "FormatName": "data.open",
    "GroupPredictions": "core.types",
    "ImageLike": "inference.pictures",
    "InferencePrecision": "inference.prepare",
    "Losses": "models.losses",
    "Metrics": "evaluation.coco_metrics",
    "ModelConfig": "models.interface",
    "OneToManyPredictions": "core.types",
    "OptimizerConfig": "runs.config",
    "OutputError": "core.errors",
    "PrecisionName": "runs.config",
    "ProductsName": "runs.config",
    "Predictions": "core.types",
    "Preprocessing": "data.preprocessing",
    "Problem": "data.dataset",
    "ProblemKind": "data.dataset",
    "Ranks": "core.distributed",
    "Reporter": "core.progress",
    "Run": "training.train",
    "RunConfig": "runs.config",
    "Sample": "data.dataset",
    "ScheduleConfig": "runs.config",
    "Source": "training.finetune",
    "StoppingConfig": "runs.config",
    "Target": "core.types",
    "TrainConfig": "runs.config",
    "TrainingError": "core.errors",
    "TrainingSplits": "data.splits",
    "TrainingState": "weights.checkpoint",
    "evaluate": "evaluation.evaluate",
    "load": "inference.detector",
    "open_dataset": "data.open",
    "recipes": "runs.recipes",
    "resume": "training.train",
    "train": "training.train",
    "write_report": "report.write",
}

__all__ = [
    "DETR",
    "DINO",
    "TTA",
    "Assignment",
    "Augmentation",
    "BackendError",
    "ChainedMap",
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointError",
    "ClassLossName",
    "ClassMetrics",
    "ClassRows",
    "ComputeConfig",
    "ConfigError",
    "CriterionConfig",
    "CriterionLike",
    "DETRConfig",
    "DINOConfig",
    "DataConfig",
    "DataError",
    "DeformableDETR",
    "DeformableDETRConfig",
    "DeformableDetrError",
    "Denoised",
    "Detection",
    "DetectionDataset",
    "DetectionModel",
    "Detections",
    "Detector",
    "DetectorOutput",
    "EvaluationReport",
    "Explanation",
    "FormatName",
    "GradientKind",
    "GroupPredictions",
    "ImageLike",
    "InferencePrecision",
    "LayerPoints",
    "Losses",
    "Metrics",
    "Missed",
    "ModelConfig",
    "OneToManyPredictions",
    "OptimizerConfig",
    "OutputError",
    "PrecisionName",
    "Predictions",
    "Preprocessing",
    "Problem",
    "ProblemKind",
    "ProductsName",
    "Proposal",
    "Ranks",
    "Reporter",
    "Run",
    "RunConfig",
    "Sample",
    "ScheduleConfig",
    "Source",
    "StoppingConfig",
    "Target",
    "TrainConfig",
    "TrainingError",
    "TrainingSplits",
    "TrainingState",
    "__version__",
    "evaluate",
    "explain",
    "load",
    "open_dataset",
    "recipes",
    "resume",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOMES[name]}")
    if name == "recipes":  # the module itself
        return home
    return home.Detector.load if name == "load" else getattr(home, name)


def __dir__() -> list[str]:
    return list(__all__)
