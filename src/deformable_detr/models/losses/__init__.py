"""What training minimises: which predictions meet which objects, and what each mistake costs."""

from deformable_detr.models.losses.criterion import Criterion, CriterionConfig, Losses

__all__ = ["Criterion", "CriterionConfig", "Losses"]
