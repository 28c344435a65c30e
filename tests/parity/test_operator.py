"""The operator equals the official one's recorded results, forward and backward."""

import numpy as np
import pytest
import torch

from deformable_detr.ops import cpu, multi_scale_deformable_attention

BACKENDS = ("grid_sample", "reference") if cpu.missing() else ("cpu", "grid_sample", "reference")

CASES = ("batch2_4lvl", "d30", "encoder_like", "official", "out_of_range", "single_px_level")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("case", CASES)
def test_recorded_results(shared, case, dtype, tolerance, backend):
    record = np.load(shared / "checks" / "operator" / f"{case}.npz")
    shapes = tuple((int(height), int(width)) for height, width in record["spatial_shapes"])
    names = ("value", "sampling_locations", "attention_weights")
    value, locations, weights = (torch.from_numpy(record[name]).to(dtype).requires_grad_() for name in names)
    result = multi_scale_deformable_attention(value, shapes, locations, weights, backend=backend)
    result.flatten(2).backward(torch.from_numpy(record["grad_output"]).to(dtype))
    computed = {"output": result.detach().flatten(2)}
    gradients = [key for key in record.files if key.startswith("grad_") and key != "grad_output"]
    assert len(gradients) == 3
    for key in gradients:
        computed[key] = {"v": value, "s": locations, "l": locations, "a": weights}[key[5]].grad
    for key, tensor in computed.items():
        scale = max(1.0, float(np.abs(record[key]).max()))
        error = float((tensor.double() - torch.from_numpy(record[key])).abs().max())
        assert error <= tolerance * scale, f"{key}: {error}"
