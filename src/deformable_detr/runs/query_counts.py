"""Number of queries that a run takes for the objects in its training images."""

from dataclasses import replace
from typing import Any, NamedTuple

from deformable_detr.core.errors import ConfigError
from deformable_detr.data.crowding import fitted_queries
from deformable_detr.models.interface import num_queries_of
from deformable_detr.runs.config import TrainConfig


class QueryCount(NamedTuple):
    """Config whose number of queries is settled."""

    config: TrainConfig
    """Settings with the number of queries in force; `run.fit_queries` is False."""
    reason: str = ""
    """Reason for another number than before, or for none where one was wanted, for people; empty if all stays."""


def settled_queries(config: TrainConfig, most: int) -> QueryCount:
    """Config with the number of queries that a run takes for images of up to `most` objects.

    It is raised, never lowered, where `run.fit_queries` is set: see `fitted_queries`. Learned queries are weights:
    where a run starts from those of a whole detector, their number is that of the weights.

    Args:
        config: settings of the run. If it starts from weights, `model` must be theirs already.
        most: most objects of a training image, as `most_objects` counts them.
    """
    if not config.run.fit_queries:
        return QueryCount(config)
    config = replace(config, run=replace(config.run, fit_queries=False))
    own = num_queries_of(config.model)
    if own is None:
        return QueryCount(config)
    wanted = fitted_queries(own, most)
    if wanted == own or (config.run.start == "weights" and "num_queries" not in config.model.free_settings):
        return QueryCount(config)
    settings: Any = config.model
    try:
        enlarged = replace(settings, num_queries=wanted)
    except ConfigError as error:  # queries of training alone multiply them
        why = f"images hold up to {most} objects, and there are still {own} queries instead of {wanted}: {error}"
        return QueryCount(config, why)
    return QueryCount(
        replace(config, model=enlarged),
        f"images hold up to {most} objects: {wanted} queries instead of {own} (in the decoder about "
        f"{wanted / own:.2g} times the work; --set num_queries={own} keeps {own})",
    )
