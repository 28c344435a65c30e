"""Random decisions of the augmentation, each taken from the generator that is passed in."""

import math

import torch


def happens(probability: float, generator: torch.Generator) -> bool:
    """Whether an event of this probability happens this time; takes one number from the generator."""
    return bool(torch.rand((), generator=generator, dtype=torch.float64).item() < probability)


def uniform_integer(low: int, high: int, generator: torch.Generator) -> int:
    """Random integer in `low`..`high`, both ends included, each equally likely."""
    return int(torch.randint(low, high + 1, (), generator=generator).item())


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Random number in `low`..`high`, uniformly distributed."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def uniform_factor(low: float, high: float, generator: torch.Generator) -> float:
    """Random factor in `low`..`high`, uniform in its logarithm: doubling is as likely as halving."""
    return math.exp(uniform(math.log(low), math.log(high), generator))
