"""Recording of what every attention layer of a network is given, for explanations; nothing is computed differently."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deformable_detr.core.types import Memory, Queries, SpatialShapes
from deformable_detr.models.layers.box_decoder import BoxDecoder
from deformable_detr.models.layers.decoder import Decoder, DecoderLayer
from deformable_detr.models.layers.deformable_attention import DeformableAttention
from deformable_detr.models.layers.dense_attention import DenseAttention
from deformable_detr.models.layers.dense_decoder import DenseDecoder, DenseDecoderLayer
from deformable_detr.models.layers.dense_encoder import DenseEncoderLayer
from deformable_detr.models.layers.encoder import EncoderLayer
from deformable_detr.ops.msda import SamplingPoints


@dataclass(frozen=True)
class DeformableCall:
    """Call of a deformable attention: what it was given, and what it gave."""

    module: DeformableAttention
    """Module that was called."""
    query: Float[Tensor, "batch queries dim"]
    """Content plus position of each query."""
    reference: Float[Tensor, "batch queries levels _"]
    """Reference of each query in each level: a point (x, y) or a box cxcywh, in 0..1 of the padded map."""
    tokens: Float[Tensor, "batch positions dim"]
    """Features of each position."""
    padding_mask: Bool[Tensor, "batch positions"]
    """Mask of the positions: True = padding."""
    spatial_shapes: SpatialShapes
    """(height, width) of each level, finest first."""
    output: Float[Tensor, "batch queries dim"]
    """Attended features of each query."""

    @torch.no_grad()
    def sampling_points(self, queries: slice | Tensor = slice(None)) -> SamplingPoints:
        """Sampling points of some queries of every image, recomputed from what the module was given.

        Args:
            queries: which of them; all if left out. Those of a large encoder take much memory.
        """
        return self.module.sampling_points(self.query[:, queries], self.reference[:, queries], self.spatial_shapes)


@dataclass(frozen=True)
class DenseCall:
    """Call of a dense attention: of queries among each other, or of everything to everything in DETR."""

    module: nn.MultiheadAttention | DenseAttention
    """Module that was called."""
    query: Float[Tensor, "batch queries dim"]
    """Content plus position of each query."""
    key: Float[Tensor, "batch keys dim"]
    """Keys that the queries are compared with."""
    blocked: Tensor | None
    """Mask: True where a query cannot see a key, in a shape that spreads to (batch, heads, queries, keys); None if
    everything is seen."""

    @torch.no_grad()
    def weights(self, queries: slice | Tensor = slice(None)) -> Float[Tensor, "batch heads queries keys"]:
        """Attention weights of some queries of every image; those of a query and head sum to 1.

        Args:
            queries: which of them; all if left out.
        """
        weight, bias = self.module.in_proj_weight, self.module.in_proj_bias
        assert weight is not None
        assert bias is not None
        dim, heads = self.query.shape[-1], self.module.num_heads
        asked, offered = (
            nn.functional.linear(tokens, weight[rows], bias[rows]).unflatten(-1, (heads, -1)).transpose(1, 2)
            for tokens, rows in ((self.query[:, queries], slice(dim)), (self.key, slice(dim, 2 * dim)))
        )
        logits = asked @ offered.transpose(-1, -2) * (dim // heads) ** -0.5
        if self.blocked is not None:
            blocked = self.blocked if self.blocked.shape[-2] == 1 else self.blocked[..., queries, :]
            logits = logits.masked_fill(blocked, -torch.inf)
        return logits.softmax(-1)


@dataclass
class Recording:
    """Attention calls of one forward pass, in the order of the layers; empty until the network has been called.

    A network has deformable or dense calls in encoder and decoder, never both.
    """

    encoder: list[DeformableCall] = field(default_factory=list)
    """Self-attention of each encoder layer."""
    decoder: list[DeformableCall] = field(default_factory=list)
    """Cross-attention of each decoder layer to the memory."""
    self_attention: list[DenseCall] = field(default_factory=list)
    """Self-attention of each decoder layer, among the queries."""
    dense_encoder: list[DenseCall] = field(default_factory=list)
    """Self-attention of each encoder layer of DETR."""
    dense_decoder: list[DenseCall] = field(default_factory=list)
    """Cross-attention of each decoder layer of DETR to the memory."""
    before_norm: list[Float[Tensor, "batch queries dim"]] = field(default_factory=list)
    """Content of the queries in each decoder layer with what they attended to added, before the norm."""
    queries: Queries | None = None
    """Queries as the decoder was given them; None for DETR, whose queries have no reference."""
    memory: Memory | None = None
    """Memory as the decoder was given it."""

    def keep_input(self, given: dict[str, Any], _: object) -> None:
        """Keep what a decoder was given, by the names of its parameters."""
        self.queries, self.memory = given.get("queries"), given["memory"]


@contextmanager
def recording(network: nn.Module) -> Iterator[Recording]:
    """Recording of all attention layers of a network while it is called inside the `with` block.

    It finds the layers of this package in any network and uses PyTorch's own hooks, which are gone afterwards, also
    after an error. The network computes what it always does, to the last bit. Compiled and prepared layers are not
    seen, so give it the plain network. One forward pass is recorded: of a second one, its calls come after the first's.

    Args:
        network: network whose layers are recorded.

    Yields:
        The recording, which fills when the network is called.
    """
    record, handles = Recording(), []

    def watch(module: nn.Module, take: Callable[[dict[str, Any], Any], None]) -> None:
        signature = inspect.signature(module.forward)

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            take(signature.bind(*args, **kwargs).arguments, output)

        handles.append(module.register_forward_hook(hook, with_kwargs=True))

    try:
        for layer in network.modules():
            if isinstance(layer, EncoderLayer):
                watch(layer.self_attention, _deformable(layer.self_attention, record.encoder))
            elif isinstance(layer, DecoderLayer):
                watch(layer.self_attention, _among_queries(layer.self_attention, record.self_attention))
                watch(layer.cross_attention, _deformable(layer.cross_attention, record.decoder))
                watch(layer.norm_cross, lambda given, _: record.before_norm.append(given["input"]))
            elif isinstance(layer, DenseEncoderLayer):
                watch(layer.self_attention, _dense(layer.self_attention, record.dense_encoder))
            elif isinstance(layer, DenseDecoderLayer):
                watch(layer.self_attention, _dense(layer.self_attention, record.self_attention))
                watch(layer.cross_attention, _dense(layer.cross_attention, record.dense_decoder))
            elif isinstance(layer, Decoder | BoxDecoder | DenseDecoder):
                watch(layer, record.keep_input)
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _deformable(module: DeformableAttention, calls: list[DeformableCall]) -> Callable[[dict[str, Any], Any], None]:
    def take(given: dict[str, Any], output: Tensor) -> None:
        calls.append(DeformableCall(module, **given, output=output))

    return take


def _dense(module: DenseAttention, calls: list[DenseCall]) -> Callable[[dict[str, Any], Any], None]:
    def take(given: dict[str, Any], output: Tensor) -> None:
        padding_mask = given.get("padding_mask")
        blocked = None if padding_mask is None else padding_mask[:, None, None]
        calls.append(DenseCall(module, given["query"], given["key"], blocked))

    return take


def _among_queries(module: nn.MultiheadAttention, calls: list[DenseCall]) -> Callable[[dict[str, Any], Any], None]:
    def take(given: dict[str, Any], output: Any) -> None:
        calls.append(DenseCall(module, given["query"], given["key"], given.get("attn_mask")))

    return take
