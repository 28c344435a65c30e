"""Learned queries, and proposals with the choice among them."""

import pytest
import torch
from torch import nn

from deformable_detr.core.types import Memory
from deformable_detr.models.layers.queries import (
    LearnedQueries,
    MixedQueries,
    ProposalQueries,
    QuerySource,
    TrainingBranches,
    anchors_of,
    proposal_boxes,
)

SHAPES = ((6, 10), (3, 5))
DIM = 16


def make_memory():
    mask = torch.zeros(2, 75, dtype=torch.bool)
    mask[1].view(-1)[:60].view(6, 10)[:, 5:] = True
    mask[1][60:].view(3, 5)[:, 3:] = True
    ratios = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.5, 1.0], [0.6, 1.0]]])
    return Memory(torch.randn(2, 75, DIM), torch.randn(2, 75, DIM), mask, ratios, SHAPES)


def make_proposals(num_queries=9, *, choice="paper", **added):
    return ProposalQueries(num_queries, DIM, 3, choice=choice, added=TrainingBranches(**added))


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


@pytest.mark.parametrize("choice", ["paper", "valid", "distinct"])
def test_hybrid_queries_are_the_next_best_proposals(choice):
    source, memory = make_proposals(choice=choice, hybrid_queries=20, hybrid_repeats=3), make_memory()
    queries, proposals = source(memory)
    assert queries.branches == ((9, 20), 3)
    source.eval()
    answering, same = source(memory)
    assert answering.branches is None
    for trained, plain in zip(queries[:3], answering[:3], strict=True):
        torch.testing.assert_close(trained[:, :9], plain)
    assert torch.equal(proposals.logits, same.logits)
    for image in range(2):
        chosen = [
            next(i for i, box in enumerate(proposals.boxes[image]) if torch.equal(box, one))
            for one in queries.reference[image]
            if (one < 1).any()  # all invalid ones are alike
        ]
        assert len(set(chosen)) == len(chosen)
        own = proposals.logits[image, :, 0]
        scores = own[torch.tensor(chosen)]
        if choice == "paper" and len(chosen) == 29:
            assert scores.tolist() == own.sort(descending=True).values[:29].tolist()
        extra = scores[9:]
        assert (extra.diff() <= 0).all()


def test_hybrid_queries_take_invalid_proposals_last_and_none_twice():
    source, memory = make_proposals(9, choice="valid", hybrid_queries=60), make_memory()
    queries, _ = source(memory)
    assert queries.branches.sizes == (9, 60)
    invalid = (queries.reference == 1).all(-1)
    number_valid = (~invalid).sum(1)
    for image, count in enumerate(number_valid.tolist()):
        assert not invalid[image, :count].any()
        assert len(queries.reference[image, :count].unique(dim=0)) == count


def test_hybrid_queries_where_nothing_is_left():
    queries, _ = make_proposals(70, hybrid_queries=50)(make_memory())
    assert queries.branches.sizes == (70, 5)
    queries, _ = make_proposals(500, hybrid_queries=50)(make_memory())
    assert queries.branches.sizes == (75, 0)


def test_groups_make_proposals_of_their_own():
    source, memory = make_proposals(query_groups=3), make_memory()
    queries, proposals = source(memory)
    assert queries.branches == ((9, 9, 9), 1)
    assert proposals.logits.shape == (2, 3 * 75, 3)
    for group in range(3):
        logits, boxes = (one[:, 75 * group : 75 * (group + 1)] for one in proposals)
        best = logits[..., 0].topk(9, dim=1).indices
        for image in range(2):
            torch.testing.assert_close(queries.reference[image, 9 * group : 9 * (group + 1)], boxes[image, best[image]])
    answering, _ = source.eval()(memory)
    assert answering.branches is None
    torch.testing.assert_close(answering.content, queries.content[:, :9])


def make_mixed(num_queries=9, *, choice="valid", **added):
    source = MixedQueries(num_queries, DIM, 3, choice=choice, added=TrainingBranches(**added))
    nn.init.normal_(source.box_head.layers[-1].weight, std=0.3)
    return source


def everything_of(source, memory):
    """Scores and boxes of all positions, computed from the parts of the source."""
    valid, anchor_logits = anchors_of(memory.spatial_shapes, memory.valid_ratios, memory.padding_mask)
    tokens = source.memory_norm(source.memory_proj(memory.tokens.masked_fill(~valid[..., None], 0.0)))
    scores = source.class_head(tokens).amax(-1)
    return scores, (source.box_head(tokens) + anchor_logits).sigmoid(), valid


@pytest.mark.parametrize("choice", ["paper", "valid", "distinct"])
def test_hybrid_queries_of_mixed_ones_are_the_next_best_with_content_by_rank(choice):
    source, memory = make_mixed(choice=choice, hybrid_queries=20, hybrid_repeats=3), make_memory()
    queries, proposals = source(memory)
    assert queries.branches == ((9, 20), 3)
    assert torch.equal(queries.content[1], torch.cat([source.content.weight, source.training_embedding.weight]))
    assert proposals.boxes.shape == (2, 9, 4)
    answering, same = source.eval()(memory)
    assert (answering.branches, answering.attention_mask) == (None, None)
    torch.testing.assert_close(queries.reference[:, :9], answering.reference)
    torch.testing.assert_close(proposals.logits, same.logits)
    # Of all positions that are not among the first nine, the best twenty, in falling order.
    scores, boxes, valid = everything_of(source, memory)
    for image in range(2):
        chosen = {
            next(i for i, box in enumerate(boxes[image]) if torch.allclose(box, one))
            for one in queries.reference[image, :9]
        }
        left = [i for i in range(75) if i not in chosen]
        usable = [i for i in left if choice == "paper" or valid[image, i]]
        order = sorted(usable, key=lambda i: -scores[image, i].item())[:20]
        expected = boxes[image, torch.tensor(order)]
        torch.testing.assert_close(queries.reference[image, 9 : 9 + len(order)], expected)
    assert queries.attention_mask[:9, 9:].all()
    assert not queries.attention_mask[:9, :9].any()


def test_groups_of_mixed_queries_make_proposals_of_their_own():
    source, memory = make_mixed(query_groups=3), make_memory()
    queries, proposals = source(memory)
    assert queries.branches == ((9, 9, 9), 1)
    assert proposals.boxes.shape == (2, 27, 4)
    assert torch.equal(queries.reference, proposals.boxes)
    assert torch.equal(queries.content[0], torch.cat([source.content.weight, source.training_embedding.weight]))
    # A group alone is a source of its own with the same parts.
    alone = make_mixed()
    for number, parts in enumerate(
        zip(source.group_projs, source.group_norms, source.group_class_heads, source.group_box_heads, strict=True), 1
    ):
        alone.memory_proj, alone.memory_norm, alone.class_head, alone.box_head = parts
        expected, own = alone(memory)
        here = slice(9 * number, 9 * (number + 1))
        torch.testing.assert_close(queries.reference[:, here], expected.reference)
        torch.testing.assert_close(proposals.logits[:, here], own.logits)


@pytest.mark.parametrize("added", [{"hybrid_queries": 50}, {"query_groups": 3}])
def test_branches_of_mixed_queries_where_nothing_is_left(added):
    for count, sizes in ((70, {1: (70, 5), 3: (70,) * 3}), (500, {1: (75, 0), 3: (75,) * 3})):
        source = make_mixed(count, **added)
        queries, proposals = source(make_memory())
        groups = added.get("query_groups", 1)
        assert queries.branches.sizes == sizes[groups]
        assert queries.content.shape == (2, sum(sizes[groups]), DIM)
        assert proposals.boxes.shape == (2, groups * sizes[groups][0], 4)


@pytest.mark.parametrize(("added", "sizes"), [({"hybrid_queries": 14}, (9, 14)), ({"query_groups": 3}, (9, 9, 9))])
def test_learned_queries_of_branches_have_embeddings_of_their_own(added, sizes):
    source = LearnedQueries(9, DIM, TrainingBranches(**added))
    queries, _ = source(make_memory())
    assert queries.branches.sizes == sizes
    assert queries.content.shape == (2, sum(sizes), DIM)
    assert torch.equal(queries.position[1, 9:], source.training_embedding.weight[:, :DIM])
    answering, _ = source.eval()(make_memory())
    assert answering.branches is None
    for trained, plain in zip(queries[:3], answering[:3], strict=True):
        torch.testing.assert_close(trained[:, :9], plain)
