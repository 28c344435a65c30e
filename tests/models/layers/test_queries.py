"""Learned queries, and proposals with the choice among them."""

import pytest
import torch
from torch import nn

from deformable_detr.core.types import Memory
from deformable_detr.models.layers.queries import LearnedQueries, ProposalQueries, QuerySource, proposal_boxes

SHAPES = ((6, 10), (3, 5))
DIM = 16


def make_memory():
    mask = torch.zeros(2, 75, dtype=torch.bool)
    mask[1].view(-1)[:60].view(6, 10)[:, 5:] = True
    mask[1][60:].view(3, 5)[:, 3:] = True
    ratios = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.5, 1.0], [0.6, 1.0]]])
    return Memory(torch.randn(2, 75, DIM), torch.randn(2, 75, DIM), mask, ratios, SHAPES)


def make_proposals(num_queries=9, *, choice="paper"):
    return ProposalQueries(num_queries, DIM, 3, choice=choice)


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


@pytest.mark.parametrize("choice", ["paper", "valid", "distinct"])
def test_padding_has_the_box_1_and_only_the_paper_picks_it(choice):
    source, memory = make_proposals(20, choice=choice), make_memory()
    source.class_head = SmallestFirst()
    torch.nn.init.zeros_(source.memory_proj.bias)
    queries, proposals = source(memory)
    assert (proposals.boxes[1][memory.padding_mask[1]] == 1).all()
    from_padding = (queries.reference[1] == 1).all(-1)
    assert from_padding.all() == (choice == "paper")
    assert from_padding.any() == (choice == "paper")


class Given(nn.Module):
    """Scores and boxes of our own, whatever the tokens."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward(self, tokens):
        return self.values


def test_of_proposals_for_the_same_box_the_best_become_queries_first():
    source, memory = make_proposals(4, choice="distinct"), make_memory()
    memory = memory._replace(padding_mask=torch.zeros(2, 75, dtype=torch.bool), valid_ratios=torch.ones(2, 2, 2))
    anchors = proposal_boxes(SHAPES, memory.valid_ratios)
    wanted = anchors.clone()
    wanted[1, 20:60] = torch.tensor([0.5, 0.4, 0.3, 0.2])  # forty times the same object
    wanted[1, 23, 2] = 0.3 * 0.81  # still
    wanted[1, 22, 2] = 0.3 * 0.79  # another
    logits = -torch.arange(150.0).view(2, 75, 1).expand(-1, -1, 3).clone()
    logits[1] = -1000
    logits[1, 19:24] = torch.tensor([3.0, 2.0, 5.0, 1.0, 4.0])[:, None]
    source.class_head = Given(logits)
    source.box_head = Given(torch.special.logit(wanted) - torch.special.logit(anchors))
    queries, _ = source(memory)
    # By score 21, 23, 19, 20, 22; where 23 and 20 are for the box of 21.
    torch.testing.assert_close(queries.reference[1, :3], wanted[1, [21, 19, 22]])


def test_where_few_are_distinct_others_fill_up_before_the_invalid():
    source, memory = make_proposals(60, choice="distinct"), make_memory()
    anchors = proposal_boxes(SHAPES, memory.valid_ratios)
    same = torch.tensor([0.5, 0.4, 0.3, 0.2]).expand(2, 75, 4)
    scores = torch.randn(2, 75, 1)
    source.class_head = Given(scores.expand(-1, -1, 3))
    source.box_head = Given((torch.special.logit(same) - torch.special.logit(anchors)).nan_to_num())
    queries, _ = source(memory)
    torch.testing.assert_close(queries.reference[0], same[0, :60])
    valid = int((~memory.padding_mask[1]).sum())
    invalid = (queries.reference[1] == 1).all(-1)
    assert invalid.sum() == 60 - valid
    assert not invalid[:valid].any()


def test_fewer_positions_than_queries():
    queries, _ = make_proposals(500)(make_memory())
    assert queries.reference.shape == (2, 75, 4)


@pytest.mark.parametrize("choice", ["paper", "valid", "distinct"])
def test_every_parameter_gets_a_gradient(choice):
    source = make_proposals(choice=choice)
    queries, proposals = source(make_memory())
    (
        queries.content.square().sum() + queries.position.sum() + proposals.logits.sum() + proposals.boxes.sum()
    ).backward()
    for name, parameter in source.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
