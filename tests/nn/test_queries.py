"""Learned queries, and proposals with the choice among them."""

import pytest
import torch
from torch import nn

from deformable_detr.nn.queries import LearnedQueries, ProposalQueries, QuerySource, proposal_boxes
from deformable_detr.types import Memory

SHAPES = ((6, 10), (3, 5))
DIM = 16


def make_memory():
    mask = torch.zeros(2, 75, dtype=torch.bool)
    mask[1].view(-1)[:60].view(6, 10)[:, 5:] = True
    mask[1][60:].view(3, 5)[:, 3:] = True
    ratios = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.5, 1.0], [0.6, 1.0]]])
    return Memory(torch.randn(2, 75, DIM), torch.randn(2, 75, DIM), mask, ratios, SHAPES)


def make_proposals(num_queries=9, *, valid_only=False):
    return ProposalQueries(num_queries, DIM, 3, valid_only=valid_only)


def test_learned_queries_are_the_same_for_every_image():
    source = LearnedQueries(9, DIM)
    queries, proposals = source(make_memory())
    assert proposals is None
    assert queries.reference.shape == (2, 9, 2)
    assert torch.equal(queries.content[0], queries.content[1])
    assert torch.equal(queries.position[0], source.embedding.weight[:, :DIM])
    assert isinstance(source, QuerySource)


def test_proposal_boxes_sit_on_positions_and_double_from_level_to_level():
    boxes = proposal_boxes(SHAPES, make_memory().valid_ratios)
    torch.testing.assert_close(boxes[0, 10 + 3], torch.tensor([0.35, 0.25, 0.05, 0.05]))
    torch.testing.assert_close(boxes[1, 60 + 5 + 1], torch.tensor([0.5, 0.5, 0.1, 0.1]))


def test_the_best_by_class_channel_0_become_queries():
    source, memory = make_proposals(), make_memory()
    queries, proposals = source(memory)
    best = proposals.logits[..., 0].topk(9, dim=1).indices
    for image in range(2):
        torch.testing.assert_close(queries.reference[image], proposals.boxes[image, best[image]])
    assert not queries.reference.requires_grad
    assert queries.content.shape == queries.position.shape == (2, 9, DIM)


class SmallestFirst(nn.Module):
    """Scores a token the higher the smaller it is; what was zeroed scores highest."""

    def forward(self, tokens):
        return -tokens.square().sum(-1, keepdim=True).expand(-1, -1, 3)


@pytest.mark.parametrize("valid_only", [False, True])
def test_padding_has_the_box_1_and_valid_only_never_picks_it(valid_only):
    source, memory = make_proposals(20, valid_only=valid_only), make_memory()
    source.class_head = SmallestFirst()
    torch.nn.init.zeros_(source.memory_proj.bias)
    queries, proposals = source(memory)
    assert (proposals.boxes[1][memory.padding_mask[1]] == 1).all()
    from_padding = (queries.reference[1] == 1).all(-1)
    assert from_padding.all() == (not valid_only)
    assert from_padding.any() == (not valid_only)


def test_fewer_positions_than_queries():
    queries, _ = make_proposals(500)(make_memory())
    assert queries.reference.shape == (2, 75, 4)


@pytest.mark.parametrize("valid_only", [False, True])
def test_every_parameter_gets_a_gradient(valid_only):
    source = make_proposals(valid_only=valid_only)
    queries, proposals = source(make_memory())
    (
        queries.content.square().sum() + queries.position.sum() + proposals.logits.sum() + proposals.boxes.sum()
    ).backward()
    for name, parameter in source.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
