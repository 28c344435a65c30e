"""Training loss: the matching of predictions to objects, and the losses of the matched pairs."""

from deformable_detr.models.losses.criterion import Criterion, CriterionConfig, Losses
from deformable_detr.models.losses.matching import NotFinitePredictionsError
from deformable_detr.models.losses.softmax_criterion import SoftmaxCriterion

__all__ = ["Criterion", "CriterionConfig", "Losses", "NotFinitePredictionsError", "SoftmaxCriterion"]
