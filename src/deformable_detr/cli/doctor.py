"""Command `ddetr doctor`: report versions, hardware and backends, and check their results."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from deformable_detr.ops.doctor import CpuKernel, Diagnosis
    from deformable_detr.ops.selftest import Check, Choice, Timing


def doctor(
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Measure the operator's speed; takes a second or two.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Report versions, hardware and backends, and check their results; exit code 1 if a result is wrong."""
    import json

    from deformable_detr.ops.doctor import diagnose

    diagnosis = diagnose(timing=timing)
    # The text goes to standard output, too: it is made to be redirected into a bug report.
    typer.echo(json.dumps(diagnosis.to_json()) if as_json else render(diagnosis))
    if not diagnosis.ok:
        raise typer.Exit(1)


def render(diagnosis: "Diagnosis") -> str:
    """Text of the report, about one screen, to be pasted into a bug report."""
    from deformable_detr.ops.selftest import TIMED_DTYPE

    sections = [
        _columns(_system(diagnosis)),
        _columns(_kernel(diagnosis.cpu_kernel)),
        _columns(_products(diagnosis)),
        "\n".join(['Backend that "auto" takes, and why no other', *_backends(diagnosis.choices)]),
        f"Self-check, largest error against the definition in float64\n{_columns(_checked(diagnosis.checks))}",
    ]
    if diagnosis.timings:
        sections.append(f"Timing in ms, {TIMED_DTYPE}, one image\n{_columns(_timed(diagnosis.timings))}")
    problems = diagnosis.problems()
    sections.append("\n".join(f"PROBLEM: {problem}" for problem in problems) if problems else "OK: no problems found.")
    return "\n\n".join(sections)


def _system(diagnosis: "Diagnosis") -> list[Sequence[str]]:
    versions = {name: version or "not installed" for name, version in diagnosis.versions.items() if name != "cuda"}
    cuda = diagnosis.versions["cuda"]
    versions["torch"] += f", built for CUDA {cuda}" if cuda else ", built without CUDA"
    gpus = [
        f"{gpu.device} {gpu.name}, {gpu.memory_bytes / 2**30:.1f} GiB, compute capability {gpu.compute_capability}"
        for gpu in diagnosis.gpus
    ]
    usable = f"{diagnosis.num_usable_processors} of {diagnosis.num_processors}"
    return [
        *versions.items(),
        ("platform", diagnosis.platform),
        ("CPU", f"{diagnosis.processor}; {usable} logical CPUs for this process"),
        ("threads", f"{diagnosis.num_threads} of PyTorch, whose own kernels use {diagnosis.torch_instructions}"),
        ("GPUs", "none that PyTorch can use" if not gpus else gpus[0]),
        *(("", gpu) for gpu in gpus[1:]),
    ]


def _kernel(kernel: "CpuKernel") -> list[Sequence[str]]:
    from deformable_detr.ops import cpu

    if kernel.missing is not None:
        remedy = f"{cpu.REMEDY}, with --no-cache-dir: pip keeps what it built without a compiler."
        return [("CPU kernel", f"none: {kernel.missing}"), ("", f"So {cpu.COST}."), ("", remedy)]
    others = [
        name if can_run else f"{name} (not for this CPU)"
        for name, can_run in kernel.copies.items()
        if name != kernel.instructions
    ]
    threads = "works on PyTorch's threads" if kernel.uses_threads else "works on one thread: PyTorch has none to lend"
    return [
        ("CPU kernel", str(kernel.path)),
        ("", f"uses {kernel.instructions}; also holds {', '.join(others) or 'nothing else'}; {threads}"),
    ]


def _products(diagnosis: "Diagnosis") -> list[Sequence[str]]:
    """Who does the matrix products and convolutions of whole models in inference on this CPU."""
    from deformable_detr.inference.onednn import measured_choice, why_unpacked

    reason = why_unpacked()
    if reason is not None:
        return [
            ("CPU products", f"by PyTorch: {reason}"),
            ("", "Inference is as exact, and slower on some processors."),
        ]
    if not diagnosis.timings:
        return [("CPU products", "by oneDNN with packed weights where that is faster; not measured without timing")]
    chosen = {name for name, packed in vars(measured_choice()).items() if packed}
    names = {"linear": "linear layers", "pointwise": "1 x 1", "convolution": "other", "depthwise": "depthwise"}
    packed = ", ".join(text for name, text in names.items() if name in chosen)
    plain = ", ".join(text for name, text in names.items() if name not in chosen)
    return [
        ("CPU products", f"faster by oneDNN with packed weights: {packed or 'none'}"),
        ("", f"as fast or faster by PyTorch: {plain or 'none'} (convolutions by kind; measured just now)"),
    ]


def _backends(choices: tuple["Choice", ...]) -> Iterator[str]:
    for (device, backend, others), alike in groupby(choices, lambda one: (one.device, one.backend, one.others)):
        yield f"  {device}, {' '.join(choice.dtype for choice in alike)}: {backend}"
        for other, reason in others.items():
            yield f"    {other} " + ("could run, but is slower" if reason is None else f"cannot run: {reason}")


def _checked(checks: tuple["Check", ...]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("", "", "", "result", "gradient", "allowed", "")]
    for check in checks:
        errors = [f"{error:.1e}" if error is not None else "-" for error in (check.result_error, check.gradient_error)]
        verdict = "ok" if check.ok else "WRONG"
        rows.append((f"  {check.device}", check.dtype, check.backend, *errors, f"{check.allowed:.1e}", verdict))
    return rows


def _timed(timings: tuple["Timing", ...]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("", "", "", "forward", "forward and backward")]
    for one in timings:
        rows.append((f"  {one.device}", one.case, one.backend, f"{one.forward_ms:.3g}", f"{one.training_ms:.3g}"))
    return rows


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Text of a table: each column as wide as its widest entry, and no spaces at the ends of lines."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
