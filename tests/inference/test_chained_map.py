import pytest
import torch

from deformable_detr.inference.chained_map import ChainedMap, chained_map
from tests.recorded import ALL, DEFORMABLE, recorded

QUERIES = torch.tensor([6, 1, 3])


def dense(call, count):
    """Matrix of a deformable attention, (queries, positions), heads averaged: one position at a time."""
    from deformable_detr.ops import multi_scale_deformable_attention

    locations, weights = call.sampling_points()
    heads, columns = call.module.num_heads, []
    for position in range(count):
        value = torch.zeros(1, count, heads, 1)
        value[0, position] = 1
        sums = multi_scale_deformable_attention(value, call.spatial_shapes, locations, weights, backend="reference")
        columns.append(sums[0, :, :, 0].mean(1))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("name", ALL)
def test_parts_add_up_to_one(name):
    _, _, record = recorded(name)
    found = chained_map(record, QUERIES, record.memory.spatial_shapes)
    total = found.mass.sum(1) + found.outside + found.residue
    torch.testing.assert_close(total, torch.ones(3), atol=1e-4, rtol=0)
    assert float(found.mass.min()) >= 0
    assert float(found.outside.min()) >= -1e-6
    torch.testing.assert_close(found.residue, torch.full((3,), 0.125))
    assert not torch.allclose(found.mass[0], found.mass[1])


@pytest.mark.parametrize("name", DEFORMABLE)
def test_the_map_is_that_of_full_matrices(name):
    _, _, record = recorded(name)
    shapes = record.memory.spatial_shapes
    count = sum(height * width for height, width in shapes)
    share = torch.eye(11)[QUERIES]
    mass = torch.zeros(3, count)
    for index in (2, 1, 0):
        mass += share @ dense(record.decoder[index], count) / 2
        among = record.self_attention[index].weights()[0].mean(0)
        share = share / 4 + share @ among / 4
    for index in (1, 0):
        mass = mass / 2 + mass @ dense(record.encoder[index], count) / 2
    torch.testing.assert_close(chained_map(record, QUERIES, shapes).mass, mass, atol=1e-6, rtol=1e-4)


def test_many_objects_and_none():
    _, _, record = recorded("two_stage")
    shapes = record.memory.spatial_shapes
    every = chained_map(record, torch.arange(11), shapes)
    torch.testing.assert_close(every.mass[QUERIES], chained_map(record, QUERIES, shapes).mass)
    assert chained_map(record, torch.zeros(0, dtype=torch.long), shapes).mass.shape == (0, every.mass.shape[1])


def test_pixels_keep_the_mass_of_each_cell():
    """Two levels of 2 x 3 and 1 x 2 cells on a picture of 5 x 7 pixels, which no cell's edge divides evenly."""
    mass = torch.rand(2, 8)
    found = ChainedMap(mass, torch.zeros(2), torch.zeros(2), ((2, 3), (1, 2)))
    picture = found.pixels((5, 7))
    torch.testing.assert_close(picture.sum((1, 2)), mass.sum(1))
    only = ChainedMap(torch.eye(8)[:1], torch.zeros(1), torch.zeros(1), ((2, 3), (1, 2))).pixels((5, 7))[0]
    rows, columns = torch.tensor([1, 1, 0.5, 0, 0]), torch.tensor([1, 1, 1 / 3, 0, 0, 0, 0])
    expected = rows[:, None] * columns / (2.5 * 7 / 3)
    torch.testing.assert_close(only, expected)
