"""Branches of queries: who sees whom, and which predictions are whose."""

import pytest
import torch

from deformable_detr.core.types import Branches, DetectorOutput, Predictions
from deformable_detr.models.layers.branches import isolation_mask, mask_of, output_of_branches


def numbered(count, layer=0):
    """Predictions that tell query and layer."""
    logits = (torch.arange(float(count)) + 100 * layer).view(1, count, 1).repeat(2, 1, 3)
    return Predictions(logits, logits[..., :1].repeat(1, 1, 4) / 1000)


def numbers(predictions):
    assert torch.equal(predictions.boxes[..., 0] * 1000, predictions.logits[..., 0])
    return predictions.logits[0, :, 0].tolist()


def test_each_branch_sees_itself_alone():
    mask = isolation_mask((2, 1, 3), torch.device("cpu"))
    assert mask.dtype == torch.bool
    expected = ["001111", "001111", "110111", "111000", "111000", "111000"]
    assert ["".join(str(int(one)) for one in row) for row in mask.tolist()] == expected


def test_of_hybrid_queries_the_first_answer():
    layers = [numbered(5, layer) for layer in range(2)]
    output = output_of_branches(layers, numbered(9), Branches((2, 3), 4))
    assert [numbers(one) for one in output.layers] == [[0, 1], [100, 101]]
    assert numbers(output.final) == [100, 101]
    assert [numbers(one) for one in output.one_to_many.layers] == [[2, 3, 4], [102, 103, 104]]
    assert output.one_to_many.repeats == 4
    assert (numbers(output.proposals), output.groups) == (list(range(9)), ())


@pytest.mark.parametrize("two_stage", [False, True])
def test_of_groups_the_first_answers(two_stage):
    proposals = numbered(12) if two_stage else None
    output = output_of_branches([numbered(6), numbered(6, 1)], proposals, Branches((2, 2, 2), 1))
    assert numbers(output.final) == [100, 101]
    assert output.one_to_many is None
    assert [[numbers(one) for one in group.layers] for group in output.groups] == [
        [[2, 3], [102, 103]],
        [[4, 5], [104, 105]],
    ]
    if two_stage:
        assert [numbers(one.proposals) for one in (output, *output.groups)] == [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
            [8, 9, 10, 11],
        ]
    else:
        assert [one.proposals for one in (output, *output.groups)] == [None] * 3


def test_without_branches_all_queries_answer():
    layers = [Predictions(torch.ones(1, 3, 2), torch.ones(1, 3, 4))]
    assert mask_of(None, torch.device("cpu")) is None
    assert output_of_branches(layers, None, None) == DetectorOutput(layers, None)
    mask = mask_of(Branches((1, 2), 1), torch.device("cpu"))
    assert mask.tolist() == [[False, True, True], [True, False, False], [True, False, False]]
