"""Models of transformers with and without this operator: `python -m benchmarks.model.bench_transformers`.

Weights are random and nothing is fetched. Offsets and weights of the attention are drawn at random, too, so that
queries look at different places, which the first weights of these models do not make them do. Both models are compared
before either is timed, and take turns then. The table goes to standard error; one line of JSON goes to standard output,
last.
"""

import argparse
import copy
import sys
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.report import Spread, json_line, machine, spread, table
from deformable_detr.ops import backends
from deformable_detr.ops.adapters import accelerate

_SAME = 1e-4
_COMPARED = ("logits", "pred_boxes", "last_hidden_state")
_THEIRS, _OURS = "transformers", "accelerated"


class Case(NamedTuple):
    """A family of models as its configuration has it by default, or with these changes, and a size of picture."""

    family: str
    size_hw: tuple[int, int]
    changes: dict[str, Any]


CASES = {
    "deformable_detr_800x1333": Case("DeformableDetr", (800, 1333), {}),
    "rt_detr_640x640": Case("RTDetr", (640, 640), {}),
    "tiny": Case("DeformableDetr", (96, 130), {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 11}),
}
USUAL = ("deformable_detr_800x1333", "rt_detr_640x640")


def main(arguments: list[str] | None = None) -> None:
    """Compare, measure, print the table, then the line of JSON."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    import transformers

    results: dict[str, dict[str, Spread]] = {}
    facts: dict[str, Any] = {
        **machine(options.device),
        "transformers": transformers.__version__,
        "backend": _backend(options.device),
        "batch": options.batch,
        "rounds": options.rounds,
        "differences": {},
    }
    for name in options.cases:
        theirs, ours, images = prepare(CASES[name], options.batch, options.device)
        facts["differences"][name] = compare(theirs, ours, images)
        results[name] = measure({_THEIRS: theirs, _OURS: ours}, images, options.rounds)
    sys.stderr.write(table(results, _THEIRS) + "\n")
    sys.stdout.write(json_line(results, _THEIRS, facts) + "\n")


def prepare(case: Case, batch: int, device: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """The model as it is, a copy that runs on the operator, and pictures."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{case.family}Config")(**case.changes)
    theirs = getattr(transformers, f"{case.family}ForObjectDetection")(config).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            # A query has length sqrt(d_model) after its normalisation: offsets of some pixels come of that.
            nn.init.normal_(parameter, std=2 * parameter.shape[1] ** -0.5)
    images = torch.randn(batch, 3, *case.size_hw, generator=torch.Generator().manual_seed(1))
    theirs = theirs.to(device)
    ours = copy.deepcopy(theirs)
    accelerate(ours)
    return theirs, ours, images.to(device)


def compare(theirs: nn.Module, ours: nn.Module, images: Tensor) -> dict[str, float]:
    """The largest difference of each output, in units of its largest element.

    Raises:
        AssertionError: it is too large.
    """
    with torch.inference_mode():
        expected, found = theirs(images), ours(images)
    differences = {
        name: float((found[name] - expected[name]).abs().max() / expected[name].abs().max()) for name in _COMPARED
    }
    if not all(difference <= _SAME for difference in differences.values()):
        raise AssertionError(f"outputs differ by {differences}, allowed is {_SAME}")
    return differences


def measure(models: dict[str, nn.Module], images: Tensor, rounds: int) -> dict[str, Spread]:
    """Seconds of one pass of each; they take turns, so that a machine that slows down slows all."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name in models if number % 2 else reversed(models):
                _wait(images)
                started = time.perf_counter()
                models[name](images)
                _wait(images)
                if number:  # the first round warms up
                    seconds[name].append(time.perf_counter() - started)
    return {name: spread(times) for name, times in seconds.items()}


def _wait(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def _backend(device: str) -> str:
    value = torch.zeros(1, 20, 8, 32, device=device)
    locations, weights = torch.zeros(1, 7, 8, 1, 4, 2, device=device), torch.zeros(1, 7, 8, 1, 4, device=device)
    return next(name for name, reason in backends(value, ((4, 5),), locations, weights).items() if reason is None)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(CASES)}; all but tiny if left out")
    parser.add_argument("--batch", type=int, default=1, help="pictures in each pass")
    parser.add_argument("--rounds", type=int, default=9, help="timed passes of each model")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes by itself")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.batch < 1:
        parser.error("--rounds and --batch must be at least 1")
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"there is no case {unknown[0]}; there are {', '.join(CASES)}")
    options.cases = options.cases or list(USUAL)
    return options


if __name__ == "__main__":
    main()
