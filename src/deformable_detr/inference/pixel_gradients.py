"""Gradients of a detection with respect to the pixels: what would move its class logit and its box (A.5, Figure 5)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

TARGETS = ("class", "x", "y", "w", "h")
"""Values of a detection whose gradients are taken: the class logit, and centre and size of the box in pixels of the
network's input."""
GradientKind = Literal["direct", "total"]


def pixel_gradients(
    network: nn.Module,
    image: Float[Tensor, "1 3 height width"],
    queries: Int[Tensor, "objects"],
    class_ids: Int[Tensor, "objects"],
    *,
    kind: GradientKind = "direct",
) -> Float[Tensor, "objects targets height width"]:
    """Norms of the gradients of each detection's `TARGETS`, over the three channels of each pixel.

    "direct" is the gradient of the network as it is trained: references and boxes are cut off from what they were
    computed of, layer by layer (A.4), so what came to the last layer by way of earlier boxes is left out. "total" has
    that, too; the proposals' order never has a gradient.

    Args:
        network: plain network in evaluation mode.
        image: preprocessed image without padding.
        queries: query of each detection.
        class_ids: class of each detection.
        kind: "direct" or "total".
    """
    height, width = image.shape[2:]
    pixels = image.detach().clone().requires_grad_(True)
    no_padding = torch.zeros((1, height, width), dtype=torch.bool, device=image.device)
    size = pixels.new_tensor([width, height, width, height])
    with torch.enable_grad(), _linked(kind == "total"):
        final = network(pixels, no_padding).final
        logits, boxes = final.logits[0], final.boxes[0] * size
        norms = []
        for query, class_id in zip(queries.tolist(), class_ids.tolist(), strict=True):
            for value in (logits[query, class_id], *boxes[query]):
                (gradient,) = torch.autograd.grad(value, pixels, retain_graph=True)
                norms.append(torch.linalg.vector_norm(gradient[0], dim=0))
    if not norms:
        return pixels.new_zeros(0, len(TARGETS), height, width)
    return torch.stack(norms).unflatten(0, (-1, len(TARGETS)))


class _NothingDetached(TorchFunctionMode):
    """Mode in which `detach` gives back what it was given, with its gradient."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.detach:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def _linked(together: bool) -> Iterator[None]:
    """Context in which references and boxes keep their gradient, if `together`."""
    if not together:
        yield
        return
    with _NothingDetached():
        yield
