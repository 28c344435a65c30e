from dataclasses import replace

import pytest

from deformable_detr.models.interface import GivenModelConfig
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.query_counts import settled_queries
from deformable_detr.runs.recipes import detr_small, find_recipe, finetune, paper_r50_two_stage, small


@pytest.mark.parametrize("name", ["small", "detr_small", "dino_small"])
def test_more_queries_for_crowded_images(name):
    recipe = find_recipe(name)
    assert settled_queries(recipe, 66) == (recipe.with_settings(fit_queries=False), "")
    config, reason = settled_queries(recipe, 312)
    assert config == recipe.with_settings(num_queries=500)
    assert reason == (
        "images hold up to 312 objects: 500 queries instead of 100 (in the decoder about 5 times the work; --set "
        "num_queries=100 keeps 100)"
    )
    assert settled_queries(config, 900) == (config, "")  # once and for all


def test_a_number_that_is_not_left_to_the_data():
    for config in (TrainConfig(), small().with_settings(num_queries=70)):
        assert settled_queries(config, 312) == (config, "")


def test_learned_queries_of_weights_keep_their_number():
    two_stage = replace(finetune(), model=paper_r50_two_stage().model)
    assert settled_queries(two_stage, 312).config.model.num_queries == 500
    for learnt in (TrainConfig().model, detr_small().model):
        config, reason = settled_queries(replace(finetune(), model=learnt), 312)
        assert (config.model, config.run.fit_queries, reason) == (learnt, False, "")


def test_queries_that_training_multiplies_beyond_all_measure():
    config, reason = settled_queries(small().with_settings(query_groups=50), 312)
    assert (config.model.num_queries, config.run.fit_queries) == (100, False)
    assert "there are still 100 queries instead of 500: with query_groups=50" in reason


def test_a_network_of_ones_own_does_not_say_how_many():
    given = GivenModelConfig(class_name="Mine", num_classes=3)
    config, reason = settled_queries(replace(small(), model=given), 312)
    assert (config.model, config.run.fit_queries, reason) == (given, False, "")
