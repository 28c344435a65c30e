"""Checks an installed package from outside: the operator alone imports, its kernel is there, and says what it should.

python .ci/check_wheel.py                     a wheel for a platform
python .ci/check_wheel.py --without-kernel    the wheel for the others
"""

import sys
import warnings

import torch

from deformable_detr.ops import backends, multi_scale_deformable_attention


def main() -> None:
    """Exits with a traceback where anything is not as it should be."""
    expected = "grid_sample" if "--without-kernel" in sys.argv else "cpu"
    generator = torch.Generator().manual_seed(0)
    shapes = ((12, 20), (6, 10))
    value = torch.randn(2, 300, 4, 8, generator=generator, requires_grad=True)
    locations = torch.rand(2, 5, 4, 2, 3, 2, generator=generator)
    weights = torch.full((2, 5, 4, 2, 3), 1 / 6)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if expected == "grid_sample" else "error")
        reasons = backends(value, shapes, locations, weights)
        chosen = next(name for name, reason in reasons.items() if reason is None)
        assert chosen == expected, f"runs on {chosen}, expected {expected}: {reasons}"
        found = multi_scale_deformable_attention(value, shapes, locations, weights)
    (gradient,) = torch.autograd.grad(found.square().sum(), value)
    exact = multi_scale_deformable_attention(value, shapes, locations, weights, backend="reference")
    (exact_gradient,) = torch.autograd.grad(exact.square().sum(), value)
    torch.testing.assert_close(found, exact)
    torch.testing.assert_close(gradient, exact_gradient)

    assert "timm" not in sys.modules, "the operator alone loaded the detector"
    sys.stdout.write(f"the operator runs on {chosen} and equals the definition\n")


if __name__ == "__main__":
    main()
