import torch

from deformable_detr.data import rng as chance
from tests.data.drawn import generator


def test_shares_and_ranges():
    random = generator(0)
    assert 250 < sum(chance.happens(0.3, random) for _ in range(1000)) < 350
    assert not any(chance.happens(0.0, random) for _ in range(100))
    assert all(chance.happens(1.0, random) for _ in range(100))
    assert {chance.uniform_integer(2, 4, random) for _ in range(100)} == {2, 3, 4}
    numbers = [chance.uniform(-1.0, 3.0, random) for _ in range(1000)]
    assert -1 <= min(numbers) < -0.9 < 2.9 < max(numbers) <= 3
    factors = [chance.uniform_factor(0.25, 4.0, random) for _ in range(1000)]
    assert min(factors) >= 0.25
    assert max(factors) <= 4.0
    assert 450 < sum(factor < 1 for factor in factors) < 550


def test_one_seed_one_result_and_no_global_numbers():
    state = torch.random.get_rng_state()
    assert chance.uniform(0.0, 1.0, generator(4)) == chance.uniform(0.0, 1.0, generator(4))
    assert chance.uniform(0.0, 1.0, generator(4)) != chance.uniform(0.0, 1.0, generator(5))
    assert torch.equal(state, torch.random.get_rng_state())
