"""Ways to accelerate a training step, against plain float32: `python -m benchmarks.model.bench_training D`.

Half precision, the operator written as one `grid_sample` for each level, torch.compile, activations computed twice, and
images one after the other; by name, also other losses and queries for training alone. Every way learns from the same
batches of the data set D, made as a training of the recipe makes them, from equal weights, and they take turns, so that
a machine that slows down slows all of them. Batches lie on the device before the clock starts: what reading costs is in
`benchmarks.data.bench_loading`. Before that, the loss of a batch is compared with the first way's if it should be
equal. "memory" is the most that two steps hold beyond the model, in a process of its own for each way. The table goes
to standard error; one line of JSON goes to standard output, last.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import deformable
from benchmarks.memory import peak_extra
from benchmarks.ops import baseline
from benchmarks.report import ROOT, Spread, aligned, machine, say
from benchmarks.timing import Wall, interleaved
from deformable_detr.core.errors import DeformableDetrError
from deformable_detr.core.types import Batch, Target
from deformable_detr.data.batch import split
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.loader import make_loader
from deformable_detr.data.splits import open_training_data
from deformable_detr.models import DeformableDETR, build
from deformable_detr.models.layers import deformable_attention
from deformable_detr.models.losses import Criterion
from deformable_detr.runs.config import PrecisionName, TrainConfig, settled
from deformable_detr.runs.recipes import RECIPES, with_backbone, with_image_size
from deformable_detr.training.acceleration import (
    Precision,
    bound_primitive_cache,
    checkpoint_activations,
    compile_layers,
)
from deformable_detr.training.autoconfig import fit_to_data
from deformable_detr.training.ema import EMA, averaging_copy
from deformable_detr.training.optimizer import clip_gradients, learning_rate, make_optimizer

_OPERATOR = "multi_scale_deformable_attention_from_projection"


class Way(NamedTuple):
    """What differs from a plain step in float32."""

    precision: PrecisionName = "float32"
    grid_sample: bool = False
    compiled: bool = False
    checkpointed: bool = False
    one_by_one: bool = False
    settings: tuple[tuple[str, str | int], ...] = ()


WAYS = {
    "float32": Way(),
    "bfloat16": Way("bfloat16"),
    "float16": Way("float16"),
    "grid_sample": Way(grid_sample=True),
    "bfloat16_grid_sample": Way("bfloat16", grid_sample=True),
    "compiled": Way(compiled=True),
    "bfloat16_compiled": Way("bfloat16", compiled=True),
    "checkpointed": Way(checkpointed=True),
    "one_by_one": Way(one_by_one=True),
    "ia_bce": Way(settings=(("class_loss", "ia_bce"),)),
    "varifocal": Way(settings=(("class_loss", "varifocal"),)),
    "mal": Way(settings=(("class_loss", "mal"),)),
    "position": Way(settings=(("class_loss", "position"),)),
    "denoising_100": Way(settings=(("denoising_queries", 100),)),
    "hybrid_300": Way(settings=(("hybrid_queries", 300),)),
    "groups_3": Way(settings=(("query_groups", 3),)),
}
USUAL = tuple(name for name, way in WAYS.items() if not way.settings)
BASELINE = "float32"
# Of a loss: what changes is rounding, and now and then what is matched with what.
_SAME = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}


class Step:
    """A model, always the same one, that takes training steps one way."""

    def __init__(self, way: Way, config: TrainConfig, device: str) -> None:
        torch.manual_seed(0)
        config = config.with_settings(dict(way.settings))
        self.way, self.config, self.device = way, config, device
        self.model: DeformableDETR = build(deformable(config)).to(device).train()
        self.criterion = Criterion(config.criterion).to(device)
        self.precision = Precision(way.precision, torch.device(device))
        self.optimizer = make_optimizer(
            self.model, config.optimizer, learning_rate(config.optimizer, settled(config.run.batch_size))
        )
        decay = settled(config.optimizer.ema_decay)
        copy = averaging_copy(self.model) if decay else None
        self.average = EMA(self.model, decay, copy) if copy else None
        if way.checkpointed:
            checkpoint_activations(self.model)
        if way.compiled:
            compile_layers(self.model)

    def loss(self, batch: Batch, num_boxes: float) -> Tensor:
        """Of this part of a batch that has so many objects."""
        with _Operator(self.way.grid_sample), self.precision.applied():
            most = max((len(one.labels) for one in batch.targets), default=0)
            targets = [one._replace(most_objects=most) for one in batch.targets]
            output = self.model(batch.images, batch.padding_mask, targets if self.model.training else None)
        losses: Tensor = self.criterion(output, batch.targets, num_boxes=num_boxes).total
        return losses

    def judge(self, batch: Batch) -> float:
        """The loss without dropout and without learning from it."""
        self.model.eval()
        with torch.no_grad():
            value = float(self.loss(batch, _objects(batch)))
        self.model.train()
        return value

    def take(self, batch: Batch) -> float:
        """One step, as a training takes it."""
        value = 0.0
        for part in split(batch, len(batch.targets) if self.way.one_by_one else 1):
            loss = self.loss(part, _objects(batch))
            with _Operator(self.way.grid_sample):  # computing twice calls it again
                self.precision.backward(loss)
            value += float(loss.detach())
        self.precision.unscale(self.optimizer)
        clip_gradients(self.model, self.config.optimizer.clip_norm)
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        return value


def _objects(batch: Batch) -> float:
    return float(sum(len(one.labels) for one in batch.targets))


class _Operator:
    """While it lasts, attention runs on `grid_sample` written out, or on the library's operator."""

    def __init__(self, grid_sample: bool) -> None:
        self._grid_sample = grid_sample
        self._before = getattr(deformable_attention, _OPERATOR)

    def __enter__(self) -> None:
        if self._grid_sample:
            setattr(deformable_attention, _OPERATOR, _grid_sample)

    def __exit__(self, *error: object) -> None:
        setattr(deformable_attention, _OPERATOR, self._before)


def _grid_sample(
    value: Tensor, spatial_shapes: Any, reference: Tensor, projection: Tensor, *, num_points: int
) -> Tensor:
    # Coordinates in float32 under autocast, too, as the library's operator has them.
    return baseline.attend(value, spatial_shapes, reference.float(), projection.float())


def settings(given: argparse.Namespace) -> tuple[TrainConfig, DetectionDataset]:
    """The recipe as the command line would run it on this data, and the images to learn from."""
    config = with_backbone(RECIPES[given.recipe](), name=None, weights=given.backbone_weights)
    if given.image_size:
        config = with_image_size(config, given.image_size)
    if given.batch_size:
        config = config.with_settings(batch_size=given.batch_size)
    data = open_training_data(given.data, val_share=config.data.val_share, seed=0, skip_bad_images=False).train
    config, _ = fit_to_data(config, data, device=torch.device(given.device))
    return replace(config, model=replace(deformable(config), num_classes=len(data.classes))), data


def batches(config: TrainConfig, data: DetectionDataset, count: int, device: str) -> list[Batch]:
    """The first ones of a training, on the device."""
    loader = make_loader(
        data,
        settled(config.preprocessing),
        batch_size=settled(config.run.batch_size),
        augmentation=settled(config.augmentation),
    )
    loader.set_epoch(0)
    return [
        batch._replace(
            images=batch.images.to(device),
            padding_mask=batch.padding_mask.to(device),
            targets=[Target(one.labels.to(device), one.boxes.to(device)) for one in batch.targets],
        )
        for batch in islice(loader, count)
    ]


def prepare(names: Sequence[str], config: TrainConfig, ready: list[Batch], device: str) -> dict[str, Step]:
    """All ways that can run here, each having given the first one's loss; the others are named on standard error.

    Raises:
        SystemExit: one computes something else.
    """
    able: dict[str, Step] = {}
    expected = None
    for name in names:
        try:
            step = Step(WAYS[name], config, device)
            value = step.judge(ready[0])
            for batch in ready:  # what is compiled and prepared for every size
                step.take(batch)
        except (DeformableDetrError, RuntimeError) as error:
            say(f"{name} is left out: {str(error).splitlines()[0]}")
            continue
        if WAYS[name].settings:  # learns something else
            able[name] = step
            continue
        expected = value if expected is None else expected
        if not math.isclose(value, expected, rel_tol=_SAME[WAYS[name].precision]):
            raise SystemExit(f"{name} has a loss of {value}, {next(iter(able))} of {expected}")
        able[name] = step
    return able


def time_all(able: dict[str, Step], ready: list[Batch], seconds: float) -> dict[str, Spread]:
    """Seconds of one step, as the mean over all batches, which each way goes through in the same order."""

    def through(step: Step) -> Callable[[], None]:
        def call() -> None:
            for batch in ready:
                step.take(batch)

        return call

    found = interleaved({name: Wall(through(step)) for name, step in able.items()}, seconds)
    count = len(ready)
    return {name: Spread(one.q20 / count, one.median / count, one.q80 / count, one.runs) for name, one in found.items()}


def memory_of(name: str, arguments: Sequence[str]) -> int:
    """Bytes, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.model.bench_training", *arguments, "--memory-of", name]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def memory_here(name: str, config: TrainConfig, ready: list[Batch], device: str) -> int:
    """Bytes that two steps hold beyond the model at most, of the largest batch; the second finds the moments."""
    step = Step(WAYS[name], config, device)
    largest = max(ready, key=lambda batch: batch.images.numel())
    return peak_extra(lambda: (step.take(largest), step.take(largest)), device)[0]


def report(times: dict[str, Spread], memory: dict[str, int], batch_size: int) -> str:
    """The table."""
    base = times.get(BASELINE)
    rows = []
    for name, one in times.items():
        row = [name, f"{batch_size / one.median:.2f}", f"{one.median:.3f} s", f"{one.q20:.3f} .. {one.q80:.3f} s"]
        row += [f"{base.median / one.median:.2f} x" if base else ""]
        if memory:
            row += [f"{memory[name] / 2**20:.0f} MiB"]
        rows.append(row)
    head = ["way", "images/s", "median step", "20 % .. 80 %", "speed", *["memory"] * bool(memory)]
    return aligned(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, measure, print the table, then the line of JSON."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    given = _options(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    bound_primitive_cache()  # as a training does
    config, data = settings(given)
    ready = batches(config, data, given.batches, given.device)
    if given.memory_of:
        sys.stdout.write(json.dumps(memory_here(given.memory_of, config, ready, given.device)) + "\n")
        return
    facts = {
        **machine(given.device),
        "recipe": given.recipe,
        "data": given.data.name,
        "batch_size": config.run.batch_size,
    }
    facts["sizes_hw"] = [list(batch.images.shape[2:]) for batch in ready]
    say(", ".join(f"{key} {value}" for key, value in facts.items()))
    able = prepare(given.ways, config, ready, given.device)
    times = time_all(able, ready, given.seconds)
    memory = {name: memory_of(name, arguments) for name in able} if given.memory else {}
    say(report(times, memory, settled(config.run.batch_size)))
    content = {
        "benchmark": "training",
        "baseline": BASELINE,
        **facts,
        "seconds_per_step": {name: one._asdict() for name, one in times.items()},
        "images_per_second": {name: settled(config.run.batch_size) / one.median for name, one in times.items()},
        "memory_bytes": memory,
    }
    sys.stdout.write(json.dumps(content) + "\n")


def add_options_of_step(parser: argparse.ArgumentParser) -> None:
    """Options that say which model learns from which images."""
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", choices=list(RECIPES), default="small")
    parser.add_argument("--backbone-weights", default="none", help="a file; with none, no batch norm is frozen")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its own choice")
    parser.add_argument("--batch-size", type=int, default=0, help="0 is the recipe's")
    parser.add_argument("--image-size", type=int, default=0, help="0 is what the recipe or the data say")
    parser.add_argument("--batches", type=int, default=5, help="that differ, to go through")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model.bench_training", description=(__doc__ or "").splitlines()[0]
    )
    add_options_of_step(parser)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(USUAL))
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing for each way, roughly")
    parser.add_argument("--memory", action="store_true", help="measure memory, too")
    parser.add_argument("--memory-of", choices=list(WAYS), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
