"""Train a network of your own: here a few convolutions that answer once for each cell of 16 x 16 pixels.

The package knows nothing of this class. What it asks of a network is `deformable_detr.models.interface.DetectionModel`;
data, loss, averaging, checkpoints, evaluation and the report are then the package's. See docs/models/your-own-model.md.

python examples/own_model.py            about a minute on one core, AP50 of about 30
python examples/own_model.py --help     for less or more of it
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import deformable_detr
from deformable_detr import ClassRows, CriterionConfig, DetectorOutput, Predictions, Target
from deformable_detr.data.synthetic import SceneStyle, draw_scenes
from deformable_detr.models.losses import Criterion

STRIDE = 16


class Cells(nn.Module):
    """One prediction for each cell of the last map: which class, how far from the cell's centre, how large."""

    # Names for --freeze and for learning rates, each with the starts of its parameters' names.
    parts = {"heads": ("class_head.", "box_head."), "backbone": ("backbone.",)}  # noqa: RUF012
    # Nothing here is a sampling offset, which would learn more slowly.
    offsets: tuple[str, ...] = ()
    # Fine-tuning takes over row i of these tensors for class i, and starts the rows of new classes afresh.
    class_rows = ClassRows(by_class=("class_head.",))

    def __init__(self, num_classes: int, dim: int = 64) -> None:
        super().__init__()
        self.num_classes = num_classes
        stages: list[nn.Module] = []
        for before, after in ((3, dim // 4), (dim // 4, dim // 2), (dim // 2, dim), (dim, dim)):  # halved four times
            stages += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.ReLU()]
        for dilation in (1, 2, 1):  # cells look at their neighbours, to agree on who answers for an object
            stages += [nn.Conv2d(dim, dim, 3, padding=dilation, dilation=dilation), nn.GroupNorm(4, dim), nn.ReLU()]
        self.backbone = nn.Sequential(*stages)
        self.class_head = nn.Linear(dim, num_classes)
        self.box_head = nn.Linear(dim, 4)
        # Nearly every cell is background: begin with a probability of 0.02 for every class.
        nn.init.constant_(self.class_head.bias, -4.0)

    def forward(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None = None) -> DetectorOutput:
        """Class scores before the sigmoid, and boxes cxcywh as shares of each image without its padding."""
        features = self.backbone(images)
        rows, columns = features.shape[2:]
        cells = features.flatten(2).transpose(1, 2)  # (batch, cells, dim), row by row
        shift, size = self.box_head(cells).chunk(2, dim=-1)
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        centres = STRIDE * (torch.stack([x, y], dim=-1).flatten(0, 1).to(shift) + 0.5)  # in pixels
        # Images of a batch are padded at the right and bottom to the largest; True in the mask is padding.
        image_wh = torch.stack([(~padding_mask[:, 0]).sum(1), (~padding_mask[:, :, 0]).sum(1)], dim=-1)[:, None]
        boxes = torch.cat([(centres + 2 * STRIDE * shift.tanh()) / image_wh, (size - 1).sigmoid()], dim=-1)
        # One entry for each layer that is to learn from the objects; the last one is the answer. No first stage.
        return DetectorOutput([Predictions(self.class_head(cells), boxes)], None)

    def layers(self) -> list[nn.Module]:
        """What may be compiled, or computed twice to save memory: nothing that would be worth it."""
        return []

    def gathered_together(self) -> list[nn.Module]:
        """What several GPUs would share out, with --set sharded=true."""
        return [self.backbone]

    def make_criterion(self, settings: CriterionConfig) -> Criterion:
        """The package's loss: each object is matched to one prediction, all other predictions learn background."""
        return Criterion(settings)


def main(folder: Path, *, images: int, epochs: int) -> deformable_detr.EvaluationReport:
    """Leaves the scenes in `folder`/scenes and the run in `folder`/run; returns what was measured."""
    style = SceneStyle(size_wh=(128, 96), classes=("disc", "square", "star"), most_objects=3, smallest=0.25)
    scenes = draw_scenes(folder / "scenes", images, max(4, images // 10), seed=0, style=style)
    classes = deformable_detr.open_dataset(scenes, split="val").classes

    # Any recipe will do for everything but the network; the demo's is for random weights and small pictures.
    config = deformable_detr.recipes.with_image_size(deformable_detr.recipes.demo(), 96)
    config = config.with_settings(name="own", epochs=epochs, batch_size=8, num_workers=0)
    torch.manual_seed(0)
    run = deformable_detr.train(
        config, data=scenes, model=Cells(len(classes)), output=folder / "run", device="cpu", log=[]
    )

    # The file says which class it is of, but only you can build one: hand over another, whose weights do not matter.
    detector = deformable_detr.load(run.folder / "best.safetensors", model=Cells(len(classes)), device="cpu")
    report = deformable_detr.evaluate(detector, scenes, split="val")
    print(f"AP50 on {len(report.dataset)} scenes it has not seen: {100 * report.metrics.ap50:.1f}")
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/own_model"), help="must not hold a run yet")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=16)
    options = parser.parse_args()
    main(options.folder, images=options.images, epochs=options.epochs)
