"""Where the time of a training step goes: `python -m benchmarks.model.profile_training D`.

PyTorch's profiler, on the batches of the data set D that a training of the recipe would make. Shares are of the time
that the processor spends in each kind of operation, without those that it calls. The table goes to standard error; one
line of JSON goes to standard output, last.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.model.bench_training import WAYS, Step, add_options_of_step, batches, settings
from benchmarks.report import aligned, machine, say
from deformable_detr.core.types import Batch
from deformable_detr.training.acceleration import bound_primitive_cache

KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "mkldnn::_linear"),
    "convolutions": ("conv", "mkldnn"),
    "deformable attention": ("deformable_detr", "GeneratedBackwardFor_deformable_detr"),
    "attention of queries": ("scaled_dot_product", "softmax"),
    "norms": ("norm_backward", "layer_norm", "group_norm", "batch_norm"),
    "copies": ("copy_", "clone", "contiguous", "aten::cat"),
    "random numbers": ("random_", "bernoulli_", "aten::ge"),
    "optimizer, clipping, average": ("adamw", "AdamW", "lerp", "vector_norm", "zero_grad"),
    "activations": ("relu", "hardtanh", "clamp", "threshold", "sigmoid", "silu", "hardswish"),
    "elementwise": ("aten::mul", "aten::add", "aten::sub", "aten::div", "aten::sum", "aten::pow", "aten::fill_"),
    "assignment of proposals": ("torchvision::nms", "topk", "sort"),
}
"""Kinds of operations, each with parts of the names that belong to it; the first that fits counts."""
OTHERS = "others, Python among them"


def kind_of(name: str) -> str:
    """Kind of an operation."""
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), OTHERS)


def shares(step: Step, ready: Sequence[Batch]) -> tuple[dict[str, float], dict[str, int], float]:
    """Share of each kind, its number of calls in a step, and seconds of a step, all as means over the batches."""
    for batch in ready:  # what is prepared for every size
        step.take(batch)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for batch in ready:
            step.take(batch)
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiler.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total
        calls[kind_of(event.key)] += event.count
    total = sum(spent.values())
    return (
        {kind: micro / total for kind, micro in spent.most_common()},
        {kind: round(number / len(ready)) for kind, number in calls.items()},
        total / 1e6 / len(ready),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Profile, print the table, then the line of JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model.profile_training", description=(__doc__ or "").splitlines()[0]
    )
    add_options_of_step(parser)
    parser.add_argument("--way", choices=list(WAYS), default="float32")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    bound_primitive_cache()  # as a training does
    config, data = settings(given)
    ready = batches(config, data, given.batches, given.device)
    found, calls, seconds = shares(Step(WAYS[given.way], config, given.device), ready)
    facts = {**machine(given.device), "recipe": given.recipe, "data": given.data.name, "way": given.way}
    say(", ".join(f"{key} {value}" for key, value in facts.items()))
    rows = [(kind, f"{100 * share:.1f} %", str(calls[kind])) for kind, share in found.items()]
    say(aligned(("kind", "share", "calls in a step"), rows))
    say(f"{seconds:.3f} s a step, with the profiler at work")
    content = {"benchmark": "training_profile", **facts, "shares": found, "calls": calls, "seconds": seconds}
    sys.stdout.write(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
