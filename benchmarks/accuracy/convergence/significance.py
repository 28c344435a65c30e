"""Statistics of the comparison: spread over seeds, exact permutation test, growth, when a threshold is reached."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Test(NamedTuple):
    """Result of a permutation test."""

    difference: float
    """Mean of the first group minus mean of the second."""
    p: float
    """Share of all divisions into groups of these sizes whose difference is at least this one."""
    divisions: int
    """Number of divisions; 1 / divisions is the smallest possible p."""


def permutation_test(first: Sequence[float], second: Sequence[float]) -> Test:
    """Exact one-sided test of whether the first group's values are larger: every division of all values is counted.

    Raises:
        ValueError: a group is empty.
    """
    if not first or not second:
        raise ValueError(f"the groups have {len(first)} and {len(second)} values; each needs at least one")
    everything = [*first, *second]
    total = math.fsum(everything)

    def difference(chosen: Sequence[float]) -> float:
        own = math.fsum(chosen)
        return own / len(first) - (total - own) / len(second)

    observed = difference(first)
    # Sums in another order differ in the last bits, and the division that was observed must count itself.
    slack = 1e-12 * max(1.0, *(abs(value) for value in everything))
    found = [difference(chosen) >= observed - slack for chosen in itertools.combinations(everything, len(first))]
    return Test(observed, sum(found) / len(found), len(found))


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; of one value, the deviation is nan."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def first_reached(rows: Sequence[Mapping[str, Any]], threshold: float) -> Mapping[str, Any] | None:
    """First epoch of a run with at least this AP; None if there is none."""
    return next((row for row in rows if row["ap"] >= threshold), None)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Exponent p of the growth values ~ sizes^p: the slope of the least-squares line through the logarithms.

    Raises:
        ValueError: there are not at least two different sizes, or a number is not above 0.
    """
    if len(set(sizes)) < 2 or len(sizes) != len(values) or min(*sizes, *values) <= 0:
        raise ValueError(f"no growth can be seen in {list(values)} at {list(sizes)}")
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(x, y).slope
