"""The GPU kernels compiled for GPUs that need not be there: registers, spills, vector loads and vector additions.

A process of its own calls the backend on CPU tensors, takes down what it would launch, and compiles that with Triton's
compiler and its ptxas. So what is looked at is what would run.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
pytestmark = pytest.mark.skipif(not (TOOLS / "cuobjdump").exists(), reason="this Triton comes without cuobjdump")

ENCODER, DECODER = "encoder", "decoder"
MAPS = (100, 167, 50, 84, 25, 42, 13, 21)  # of a photo of 800 x 1333
FORMS = {"sample": 0, "points": 2, "boxes": 4}

# (what, form, type of the values, channels, points of the levels)
EVEN = (4, 4, 4, 4)
FEW = [(ENCODER, "points", "bfloat16", 32, EVEN), ("backward", "boxes", "float32", 32, EVEN)]
ALL = [
    *((what, form, dtype, 32, EVEN)
      for what in (ENCODER, DECODER, "backward")
      for form in FORMS
      for dtype in ("float32", "float16", "bfloat16")),
    ("deterministic", "boxes", "float16", 32, EVEN),
    ("without value", "boxes", "float32", 32, EVEN),
    *((what, "sample", "float32", channels, EVEN)
      for what in (ENCODER, DECODER, "backward", "deterministic")
      for channels in (16, 30, 64)),
    *((what, "boxes", "float32", 32, (3, 6, 3, 1)) for what in (ENCODER, DECODER, "backward")),
]  # fmt: skip


def launch(ops, what, form, dtype, channels, points):
    """Call the backend as a detector would; `JITFunction.run` is not the real one here."""
    positions = sum(height * width for height, width in zip(MAPS[::2], MAPS[1::2], strict=True))
    queries, heads, samples = positions if what == ENCODER else 300, 8, sum(points)
    value = torch.empty(1, positions, heads, channels, dtype=getattr(torch, dtype))
    if form == "sample":
        second, third = torch.empty(1, queries, heads, samples, 2), torch.empty(1, queries, heads, samples)
    else:
        second = torch.empty(1, queries, len(points), FORMS[form])
        third = torch.empty(1, queries, heads * samples * 3)
    if what in (ENCODER, DECODER):
        (ops.sample if form == "sample" else ops.attend)(value, second, third, MAPS, points)
        return
    run = ops.sample_backward if form == "sample" else ops.attend_backward
    torch.use_deterministic_algorithms(what == "deterministic")
    grad = torch.empty(1, queries, heads, channels, dtype=value.dtype)
    run(grad, value, second, third, MAPS, points, (what != "without value", True, True))


def compile_all(cases, capability):
    """One dictionary per kernel launched: its name, registers, stack, opcodes with their counts, and rounding."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import JITFunction, create_function_from_signature

    from deformable_detr.ops import triton as ops

    launches = []
    JITFunction.run = lambda self, *args, grid, warmup, **options: launches.append((self, args, options))
    ops._capability = lambda device: divmod(capability, 10)
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    results = []
    for case in cases:
        launch(ops, *case)
        for kernel, args, options in launches:
            bind = create_function_from_signature(kernel.signature, kernel.params, backend)
            bound, specialization, parsed = bind(*args, **options)
            parsed, signature, constants, attributes = kernel._pack_args(
                backend, options, bound, specialization, parsed
            )
            source = ASTSource(kernel, signature, constants, attributes)
            compiled = triton.compile(source, target=target, options=parsed.__dict__)
            results.append({"case": case, "kernel": kernel.__name__, **inspect_binary(compiled.asm)})
        launches.clear()
    return results


def inspect_binary(compiled):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([TOOLS / "cuobjdump", option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "-sass")
        )
    opcodes = Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code))
    resources = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    return {
        "registers": int(resources["REG"]),
        "stack": int(resources["STACK"]) + int(resources["LOCAL"]),
        "opcodes": opcodes,
        "rounds_to_bfloat16": "cvt.rn.bf16" in compiled["ptx"],
    }


def count(result, *starts):
    return sum(number for opcode, number in result["opcodes"].items() if opcode.startswith(starts))


def compiled(tmp_path, cases, capability):
    """The process must not interpret, and must not find kernels of an earlier compiler either."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    question = json.dumps({"cases": cases, "capability": capability})
    answer = subprocess.run(
        [sys.executable, __file__], input=question, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    return json.loads(answer.stdout.splitlines()[-1])


def assert_as_designed(result, capability):
    what, form, dtype, channels, points = result["case"]
    instructions = sum(result["opcodes"].values())
    print(f"sm_{capability}", what, form, dtype, channels, points, result["kernel"],
          f"{result['registers']} registers, {instructions} instructions")  # fmt: skip
    assert result["stack"] == 0, "registers are spilled"
    assert count(result, "STL", "LDL") == 0
    assert count(result, "DADD", "DMUL", "DFMA") == 0, "nothing is float64"
    assert count(result, "ATOM") == 0, "nothing compares and swaps, or waits for what was there before"
    if result["kernel"] == "reference_gradient":
        return
    is_power_of_two = channels & (channels - 1) == 0
    adds_vectors = capability >= 90 and what == "backward"
    if what in (ENCODER, DECODER, "without value") or adds_vectors:
        assert count(result, "LDG.E.128" if is_power_of_two else "LDG.E.64") >= 4
    if what in (ENCODER, DECODER):
        assert count(result, "FFMA") >= 32, "products and sums are not fused"
        assert result["rounds_to_bfloat16"] == (dtype == "bfloat16")
        assert count(result, "RED") == 0
    elif what == "without value":
        assert count(result, "RED") == 0
    elif what == "deterministic":
        assert count(result, "REDG.E.ADD.64", "RED.E.ADD.64") == count(result, "RED") > 0
    elif adds_vectors:
        kind = "REDG.E.ADD.F32x4" if is_power_of_two else "REDG.E.ADD.F32x2"
        assert count(result, kind) == count(result, "RED") > 0
    else:
        assert count(result, "RED.E.ADD.F32") == count(result, "RED") > 0
    limit = 128 if channels == 32 else 200
    assert result["registers"] <= limit


@pytest.mark.slow
def test_kernels_compile_as_designed(tmp_path):
    for result in compiled(tmp_path, FEW, 90):
        assert_as_designed(result, 90)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_all_kernels_compile_as_designed_everywhere(tmp_path, capability):
    for result in compiled(tmp_path, ALL, capability):
        assert_as_designed(result, capability)


if __name__ == "__main__":
    print(json.dumps(compile_all(**json.load(sys.stdin))))
