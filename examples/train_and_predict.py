"""The whole way from Python: draw scenes, train a small detector, evaluate it, look for objects in one picture.

python examples/train_and_predict.py            a few minutes on a laptop
python examples/train_and_predict.py --help     for less or more of it
"""

import argparse
from pathlib import Path

import deformable_detr
from deformable_detr.core.progress import TerminalReporter
from deformable_detr.data.synthetic import draw_scenes


def main(folder: Path, *, images: int, epochs: int) -> deformable_detr.EvaluationReport:
    """Leaves the scenes in `folder`/scenes and the run in `folder`/run; returns what was measured."""
    scenes = draw_scenes(folder / "scenes", images, max(4, images // 10), seed=0)

    # A recipe is a frozen dataclass: `replace` makes a changed copy, and a misspelt name is an error.
    config = deformable_detr.recipes.demo().with_settings(epochs=epochs, num_workers=0)
    with TerminalReporter() as reporter:
        run = deformable_detr.train(config, data=scenes, output=folder / "run", device="cpu", reporter=reporter)

    # The checkpoint knows its model, its classes and how images have to be prepared.
    detector = deformable_detr.load(run.folder / "best.safetensors", device="cpu")
    held_out = deformable_detr.open_dataset(scenes, split="val")
    report = deformable_detr.evaluate(detector, held_out)
    print(f"AP50 on {len(held_out)} scenes it has not seen: {100 * report.metrics.ap50:.1f}")

    picture = held_out.samples[0].path
    detections = detector.predict(picture, threshold=0.3)
    print(f"in {picture.name}:")
    for found in detections:
        corners = ", ".join(f"{side:.0f}" for side in found.box_xyxy)
        print(f"  {found.class_name:10} {found.score:.2f}  ({corners})")
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/example"), help="must not hold a run yet")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    main(options.folder, images=options.images, epochs=options.epochs)
