"""Random decisions of the augmentation, every one taken from the generator it is given."""

import math

import torch


def happens(probability: float, generator: torch.Generator) -> bool:
    """Whether something of this probability comes about this time; takes one number from the generator."""
    return bool(torch.rand((), generator=generator, dtype=torch.float64).item() < probability)


def uniform_integer(low: int, high: int, generator: torch.Generator) -> int:
    """Any of `low`..`high`, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator).item())


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Any number of `low`..`high`."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def uniform_factor(low: float, high: float, generator: torch.Generator) -> float:
    """Any factor of `low`..`high`, doubling as likely as halving."""
    return math.exp(uniform(math.log(low), math.log(high), generator))
