"""Our base model against Deformable DETR of the library transformers, with equal weights, on the CPU.

`python -m benchmarks.model.bench_vs_transformers`. Outputs are compared first; then both take turns at looking at one
image, and at training steps: forward, matching, losses of every decoder layer, backward, AdamW, each with its own loss.
The peak memory of a training step is taken in a process of its own for each side: the most that the process holds
during the first two steps, and how much of it came after the model was there. The table goes to standard error; one
line of JSON goes to standard output, last.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy.arms import make_optimizer
from benchmarks.cases import MODEL_CASES, ModelCase
from benchmarks.memory import peak_extra, peak_resident
from benchmarks.model.batch import Data, make
from benchmarks.model.peer import peer
from benchmarks.report import ROOT, Spread, aligned, machine, say
from benchmarks.timing import Wall, interleaved
from deformable_detr.models import DeformableDETRConfig, build
from deformable_detr.models.losses import Criterion, CriterionConfig
from deformable_detr.runs.config import OptimizerConfig
from deformable_detr.weights.huggingface.keys import to_transformers_keys

OURS, THEIRS = "ours", "transformers"
TARGETS = {"inference": 1.7, "training_step": 2.0, "memory": 0.6}
"""At least so many times as fast; at most that share of the memory."""
_SAME = 1e-3
_LEARNING_RATE = 1e-5


def config_of(case: ModelCase) -> DeformableDETRConfig:
    """The paper's, or a smaller one."""
    return replace(DeformableDETRConfig(), **case.settings)  # type: ignore[arg-type]


def our_model(config: DeformableDETRConfig) -> nn.Module:
    """Random weights, always the same, away from the regular ones a model starts from."""
    torch.manual_seed(0)
    model = build(config, load_backbone_weights=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets" in name or "attention_weights" in name or "heads" in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def their_model(config: DeformableDETRConfig, weights: dict[str, Tensor] | None) -> nn.Module:
    """The same with `weights` of ours; losses of all layers, and our weight of classes in the matching."""
    torch.manual_seed(0)
    model = peer(config, auxiliary_loss=True, class_cost=2)
    if weights is not None:
        model.load_state_dict(to_transformers_keys(weights, config))
    return model


def training_data(case: ModelCase) -> Data:
    """A batch with objects."""
    return make(case.training_hw, case.batch, case.objects, config_of(case).num_classes)


def look(side: str, model: nn.Module, data: Data) -> Callable[[], tuple[Tensor, Tensor]]:
    """Logits and boxes, without gradients."""
    model.eval()
    valid = (~data.padding_mask).long()

    @torch.inference_mode()
    def call() -> tuple[Tensor, Tensor]:
        if side == OURS:
            final = model(data.images, data.padding_mask).final
            return final.logits, final.boxes
        output = model(data.images, pixel_mask=valid)
        return output.logits, output.pred_boxes

    return call


def learn(side: str, model: nn.Module, data: Data) -> Callable[[], float]:
    """One training step, which returns the loss."""
    model.train()
    optimizer = make_optimizer(model, OptimizerConfig(), _LEARNING_RATE)
    criterion = Criterion(CriterionConfig())
    valid = (~data.padding_mask).long()
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in data.targets]

    def step() -> float:
        if side == OURS:
            loss = criterion(model(data.images, data.padding_mask), data.targets).total
        else:
            loss = model(data.images, pixel_mask=valid, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def compare(case: ModelCase) -> dict[str, float]:
    """Largest differences of logits and boxes between both, for a padded batch.

    Raises:
        SystemExit: they are not the same.
    """
    config = config_of(case)
    ours = our_model(config)
    data = training_data(case)
    one = look(OURS, ours, data)()
    other = look(THEIRS, their_model(config, ours.state_dict()), data)()
    found = {
        name: float((ours_ - theirs).abs().max())
        for name, ours_, theirs in zip(("logits", "boxes"), one, other, strict=True)
    }
    if not max(found.values()) <= _SAME:
        raise SystemExit(f"the models do not agree: {found}")
    return found


def time_both(case: ModelCase, what: str, seconds: float) -> dict[str, Spread]:
    """Interleaved runs of "inference" or "training_step", each side with a model of its own."""
    config = config_of(case)
    ours = our_model(config)
    models = {OURS: ours, THEIRS: their_model(config, ours.state_dict())}
    if what == "inference":
        data = make(case.inference_hw, 1, objects=0, classes=1)
        return interleaved({side: Wall(look(side, model, data)) for side, model in models.items()}, seconds)
    data = training_data(case)
    return interleaved({side: Wall(learn(side, model, data)) for side, model in models.items()}, seconds)


def memory_here(case: ModelCase, side: str) -> dict[str, Any]:
    """Of two training steps in this process, which must be a fresh one; the second finds the optimizer's moments."""
    config = config_of(case)
    model = our_model(config) if side == OURS else their_model(config, None)
    step = learn(side, model, training_data(case))
    extra, how = peak_extra(lambda: (step(), step()), "cpu")
    return {"process": peak_resident(), "beyond_model": extra, "by": how}


def memory_of(case: str, side: str, threads: int) -> dict[str, Any]:
    """The same in a fresh process."""
    module = "benchmarks.model.bench_vs_transformers"
    command = [sys.executable, "-m", module, case, "--memory-of", side, "--threads", str(threads)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def ratios(times: dict[str, dict[str, Spread]], memory: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How many times as fast we are, and what share of the memory we take."""
    found = {what: both[THEIRS].median / both[OURS].median for what, both in times.items()}
    if memory:
        found["memory"] = memory[OURS]["beyond_model"] / memory[THEIRS]["beyond_model"]
        found["memory_of_process"] = memory[OURS]["process"] / memory[THEIRS]["process"]
    return found


def report(times: dict[str, dict[str, Spread]], memory: dict[str, dict[str, Any]], found: dict[str, float]) -> str:
    """The table."""
    rows = []
    for what, both in times.items():
        for side, one in both.items():
            between = f"{one.q20:.3f} .. {one.q80:.3f} s"
            rows.append((what, side, f"{one.median:.3f} s", between, f"{found[what]:.2f} x" * (side == OURS)))
    for key, what in (("beyond_model", "memory"), ("process", "memory_of_process")):
        for side, held in memory.items():
            rows.append((what, side, f"{held[key] / 2**20:.0f} MiB", "", f"{found[what]:.2f} x" * (side == OURS)))
    targets = ", ".join(f"{what} {target} x" for what, target in TARGETS.items())
    head = ("measurement", "side", "median", "20 % .. 80 %", "ratio")
    return f"{aligned(head, rows)}\ntargets: {targets}"


def main(arguments: list[str] | None = None) -> None:
    """Compare, measure, print the table, then the line of JSON."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    case = MODEL_CASES[options.case]
    if options.memory_of:
        sys.stdout.write(json.dumps(memory_here(case, options.memory_of)) + "\n")
        return
    versions = {name: version(name) for name in ("transformers", "timm")}
    facts = {**machine("cpu"), **versions, "case": options.case}
    say(", ".join(f"{key} {value}" for key, value in facts.items()))
    differences = compare(case)
    say(f"largest differences: {differences}")
    times: dict[str, dict[str, Spread]] = {}
    for what in ("inference", "training_step"):
        times[what] = time_both(case, what, options.seconds)
        say(f"{what}: " + ", ".join(f"{side} {one.median:.3f} s" for side, one in times[what].items()))
    sides = (OURS, THEIRS) if options.memory else ()
    memory = {side: memory_of(options.case, side, options.threads) for side in sides}
    found = ratios(times, memory)
    say(report(times, memory, found))
    seconds = {what: {side: one._asdict() for side, one in both.items()} for what, both in times.items()}
    content = {"benchmark": "vs_transformers", **facts, "differences": differences, "seconds": seconds}
    sys.stdout.write(json.dumps({**content, "memory": memory, "ratios": found, "targets": TARGETS}) + "\n")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model.bench_vs_transformers", description=__doc__.splitlines()[0]
    )
    parser.add_argument("case", nargs="?", choices=list(MODEL_CASES), default="paper_r50")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its own choice")
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing for each side and measurement, roughly")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure memory, too")
    parser.add_argument("--memory-of", choices=(OURS, THEIRS), help="nothing but that side's memory, in this process")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
