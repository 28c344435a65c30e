"""Faster R-CNN of torchvision on our backbone, with its step and its detections in our form."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from deformable_detr.core.boxes import cxcywh_to_xyxy
from deformable_detr.core.detections import Detections
from deformable_detr.core.types import Batch
from deformable_detr.data.augmentation.geometry import resized_wh
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.loader import make_loader
from deformable_detr.evaluation.coco_metrics import Metrics, coco_metrics
from deformable_detr.models.layers.backbone import Backbone
from deformable_detr.models.settings import BackboneSettings
from deformable_detr.runs.config import OptimizerConfig, TrainConfig, settled
from deformable_detr.training.ema import EMA
from deformable_detr.training.optimizer import clip_gradients, make_optimizer

_LEVELS = 4
_SHAPES = (0.5, 1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class RCNNSettings:
    """Settings that our networks do not have."""

    lr: float = 2e-4
    """Peak learning rate for 4 images a step; a tenth of it for the backbone, as in ours."""
    clip_norm: float = 10.0
    """Largest norm of the gradient: against accidents, far above the usual one."""
    channels: int = 128
    """Of the feature pyramid."""
    head: int = 256
    """Channels of the box head."""
    samples: int = 128
    """Boxes of each image that the box head learns from; torchvision's 512 are for images of 800 pixels."""
    proposals: int = 300
    """Proposals of each image that the box head sees in evaluation; torchvision's 1000 are for images of 800 pixels."""
    least_score: float = 0.001
    """Score below which boxes do not count; torchvision's 0.05 costs AP."""


class Pyramid(nn.Module):
    """Body for torchvision: our backbone, and a feature pyramid with a pooled level above the coarsest map."""

    def __init__(self, backbone: Backbone, channels: int) -> None:
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        super().__init__()
        self.backbone = backbone
        self.fpn = FeaturePyramidNetwork(backbone.num_channels, channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps: OrderedDict[str, Tensor] = self.fpn(
            OrderedDict((str(level), one) for level, one in enumerate(self.backbone(images)))
        )
        return maps


def build(config: TrainConfig, settings: RCNNSettings, train: DetectionDataset) -> nn.Module:
    """Network for these images, with the backbone that `config` names; random weights from torch's global generator.

    Args:
        config: settings of ours, fitted to the data.
        settings: what is particular to Faster R-CNN.
        train: training images, whose objects decide on the anchors.
    """
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.transform import GeneralizedRCNNTransform
    from torchvision.ops import MultiScaleRoIAlign

    class AsTheyAre(GeneralizedRCNNTransform):  # type: ignore[misc]
        """Images come resized and normalised; they are only padded."""

        def normalize(self, image: Tensor) -> Tensor:
            return image

        def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
            return image, target

    body: Any = config.model
    assert isinstance(body, BackboneSettings)
    backbone = Backbone(
        body.backbone,
        num_maps=_LEVELS - 1,
        dilation=False,
        frozen_stages=body.frozen_stages,
        frozen_batch_norm=body.frozen_batch_norm,
    )
    if body.backbone_weights != "none":
        backbone.load_weights(body.backbone_weights)
    sizes = anchor_sizes(config, train)
    model: nn.Module = FasterRCNN(
        Pyramid(backbone, settings.channels),
        rpn_anchor_generator=AnchorGenerator(tuple((size,) for size in sizes), (_SHAPES,) * _LEVELS),
        box_roi_pool=MultiScaleRoIAlign([str(level) for level in range(_LEVELS - 1)], 7, 2),
        box_head=TwoMLPHead(settings.channels * 49, settings.head),
        box_predictor=FastRCNNPredictor(settings.head, len(train.classes) + 1),
        rpn_post_nms_top_n_test=settings.proposals,
        box_batch_size_per_image=settings.samples,
        box_score_thresh=settings.least_score,
    )
    model.transform = AsTheyAre(1, 1, [0.0] * 3, [1.0] * 3)
    return model


def anchor_sizes(config: TrainConfig, train: DetectionDataset) -> tuple[int, ...]:
    """Side of the anchors of each level, in pixels of the network's images, finest level first.

    They are equally spaced in the logarithm, from the 5 % quantile of the objects' sides to the 95 % quantile, and
    over a factor of 4 at least. Without objects they are COCO's, four times the stride.
    """
    preprocessing = settled(config.preprocessing)
    sides: list[float] = []
    for sample in train.samples:
        width, _ = resized_wh(sample.size_wh, preprocessing.short_side, preprocessing.max_side)
        extents = (sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2])[~sample.is_crowd] * (width / sample.size_wh[0])
        sides += np.sqrt(extents.prod(axis=1)).tolist()
    if not sides:
        return (32, 64, 128, 256)
    low, high = np.quantile(sides, (0.05, 0.95))
    if high < 4 * low:
        middle = math.sqrt(low * high)
        low, high = middle / 2, middle * 2
    return tuple(max(4, round(float(side))) for side in np.geomspace(low, high, _LEVELS))


class RCNNLearner(NamedTuple):
    """Network with what a step needs."""

    model: nn.Module
    optimizer: torch.optim.AdamW
    ema: EMA
    clip_norm: float

    def step(self, batch: Batch) -> float:
        """Train on a batch; returns the loss.

        Raises:
            SystemExit: the loss is not finite.
        """
        targets = [
            {
                "labels": target.labels + 1,  # 0 is the background
                "boxes": cxcywh_to_xyxy(target.boxes) * target.boxes.new_tensor([width, height] * 2),
            }
            for target, (height, width) in zip(batch.targets, _sizes_hw(batch), strict=True)
        ]
        losses = self.model(_images(batch), targets)
        total = torch.stack(list(losses.values())).sum()
        if not math.isfinite(float(total.detach())):
            raise SystemExit(f"the loss is {float(total.detach())}; a smaller --lr usually cures it")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        clip_gradients(self.model, self.clip_norm)
        self.optimizer.step()
        self.ema.update()
        return float(total.detach())


def make_learner(config: TrainConfig, settings: RCNNSettings, train: DetectionDataset) -> RCNNLearner:
    """Network with first weights, AdamW with our groups, and averaged weights with our decay."""
    model = build(config, settings, train)
    ours = config.optimizer
    groups = OptimizerConfig(backbone_lr_factor=ours.backbone_lr_factor, weight_decay=ours.weight_decay)
    batch_size = settled(config.run.batch_size)
    parts = {"backbone": ("backbone.backbone.",)}
    optimizer = make_optimizer(model, groups, settings.lr * math.sqrt(batch_size / 4), parts=parts, offsets=())
    return RCNNLearner(model, optimizer, EMA(model, settled(ours.ema_decay)), settings.clip_norm)


@torch.no_grad()
def detect(model: nn.Module, batch: Batch) -> list[Detections]:
    """Detections of each image of a batch, at most 100, in pixels of the originals."""
    model.eval()
    found = []
    for own, (height, width), (original_width, original_height) in zip(
        model(_images(batch)), _sizes_hw(batch), batch.original_sizes_wh, strict=True
    ):
        scale = own["boxes"].new_tensor([original_width / width, original_height / height] * 2)
        found.append(Detections(own["boxes"] * scale, own["scores"], own["labels"] - 1))
    return found


def judge(model: nn.Module, config: TrainConfig, dataset: DetectionDataset) -> tuple[Metrics, list[Detections]]:
    """COCO metrics on all images of a data set, by our evaluator, and the detections."""
    by_index: dict[int, Detections] = {}
    for batch in make_loader(dataset, settled(config.preprocessing), batch_size=4):
        by_index.update(zip(batch.sample_indices, detect(model, batch), strict=True))
    found = [by_index[index] for index in range(len(dataset))]
    return coco_metrics(found, dataset), found


def _sizes_hw(batch: Batch) -> list[tuple[int, int]]:
    """Height and width of each image without its padding."""
    image = ~batch.padding_mask
    heights, widths = image[:, :, 0].sum(1).tolist(), image[:, 0, :].sum(1).tolist()
    return list(zip(heights, widths, strict=True))


def _images(batch: Batch) -> list[Tensor]:
    return [one[:, :height, :width] for one, (height, width) in zip(batch.images, _sizes_hw(batch), strict=True)]
