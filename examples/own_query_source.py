"""Change one part and keep the rest: queries that start on a regular grid instead of at learned points.

A query source is anything that turns encoder memory into `Queries`, and proposals if it made any. Encoder, decoder,
criterion, training and evaluation do not notice. The same way leads to an own backbone, encoder or decoder.

python examples/own_query_source.py
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from deformable_detr.core.types import Memory, Predictions, Queries, Target
from deformable_detr.models import DeformableDETR, DeformableDETRConfig, build
from deformable_detr.models.losses import Criterion, CriterionConfig


class GridQueries(nn.Module):
    """One query in the middle of each cell of a grid; content and position are learned, the place is not."""

    references: Tensor

    def __init__(self, rows: int, columns: int, dim: int) -> None:
        super().__init__()
        y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
        self.register_buffer("references", torch.stack([x, y], dim=-1).flatten(0, 1))  # (queries, 2)
        self.embedding = nn.Embedding(rows * columns, 2 * dim)

    def forward(self, memory: Memory) -> tuple[Queries, Predictions | None]:
        """The same queries for every image, and no proposals."""
        batch = memory.tokens.shape[0]
        content, position = self.embedding.weight.expand(batch, -1, -1).chunk(2, dim=-1)
        return Queries(content, position, self.references.expand(batch, -1, -1)), None


def build_with_grid(config: DeformableDETRConfig, rows: int, columns: int) -> DeformableDETR:
    """The published model with its learned queries exchanged for a grid."""
    model = build(replace(config, variant="refine"))
    model.add_module("query_source", GridQueries(rows, columns, config.hidden_dim))
    return model


def main(steps: int = 10) -> list[float]:
    """A few steps on one batch of noise, to see that gradients reach every part; returns the losses."""
    torch.manual_seed(0)
    config = DeformableDETRConfig(
        num_classes=3,
        backbone="resnet10t",
        backbone_weights="none",
        frozen_stages=0,
        frozen_batch_norm=False,
        hidden_dim=64,
        num_heads=4,
        encoder_layers=1,
        decoder_layers=2,
        ffn_dim=128,
        dropout=0.0,
    )
    model = build_with_grid(config, rows=4, columns=5).train()
    criterion = Criterion(CriterionConfig())
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)

    images = torch.randn(2, 3, 96, 128)
    padding_mask = torch.zeros(2, 96, 128, dtype=torch.bool)  # True = padding; there is none here
    targets = [
        Target(torch.tensor([0, 2]), torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.6, 0.3, 0.2]])),
        Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.6, 0.5]])),
    ]
    totals = []
    for _ in range(steps):
        losses = criterion(model(images, padding_mask), targets)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        totals.append(losses.total.item())
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    print(f"loss {totals[0]:.2f} -> {totals[-1]:.2f}; parameters without a gradient: {silent or 'none'}")
    return totals


if __name__ == "__main__":
    main()
