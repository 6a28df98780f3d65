"""What a run gives to recipes, against what recipes ask for."""

import inspect

import pytest
from helpers import BY_CONFIG

from isjax import recipes
from isjax.experiment.recipe_arguments import RecipeArguments, required_parameters


@pytest.mark.parametrize("name", BY_CONFIG)
def test_a_recipe_needs_only_what_a_run_can_give(name):
    assert required_parameters(getattr(recipes, name)) <= set(RecipeArguments._fields)


def test_each_argument_is_documented_and_asked_for_by_some_recipe():
    asked = {
        parameter
        for name in recipes.__all__
        for parameter in inspect.signature(getattr(recipes, name)).parameters
    }
    assert set(RecipeArguments._fields) <= asked
    for field in RecipeArguments._fields:
        assert f"    {field}: " in RecipeArguments.__doc__, field


def test_what_the_task_does_not_have_is_left_out():
    arguments = RecipeArguments(batch_size=2, pool_size=4, num_steps=8, stateful=False)
    assert arguments.available() == {
        "batch_size": 2,
        "pool_size": 4,
        "num_steps": 8,
        "stateful": False,
    }
