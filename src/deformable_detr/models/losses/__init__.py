"""What training minimises: which predictions meet which objects, and what each mistake costs."""

from deformable_detr.models.losses.criterion import Criterion, CriterionConfig, Losses
from deformable_detr.models.losses.matching import NotFinitePredictionsError

__all__ = ["Criterion", "CriterionConfig", "Losses", "NotFinitePredictionsError"]
