"""Random and extreme inputs for every kernel, and the float64 truth they are compared with. Used by measure.py and tests.

An op has the cases of its family's file. One that stands in none of them has its row's example, so a new op needs no case here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from qcompiler.backends.torch.bench.cases.binary import binary_recipes, join_recipes
from qcompiler.backends.torch.bench.cases.case import Case, Int8, Recipe, activation, laid_out, output_scale, real, weight
from qcompiler.backends.torch.bench.cases.conv import conv_recipes
from qcompiler.backends.torch.bench.cases.example import example_recipes
from qcompiler.backends.torch.bench.cases.linear import epilogue_recipes, linear_recipes
from qcompiler.backends.torch.bench.cases.norm import norm_recipes
from qcompiler.backends.torch.bench.cases.shape import shape_recipes
from qcompiler.backends.torch.bench.cases.unary import unary_recipes

__all__ = ["Case", "Int8", "Recipe", "activation", "all_cases", "laid_out", "output_scale", "real", "weight"]

FAMILIES: tuple[Callable[[int, bool], Iterator[Recipe]], ...] = (
    conv_recipes, linear_recipes, epilogue_recipes, binary_recipes, join_recipes, unary_recipes, norm_recipes, shape_recipes,
)  # fmt: skip


def recipes(high: int, extreme: bool) -> Iterator[Recipe]:
    """All of them, activations of 0..`high`."""
    found = [recipe for family in FAMILIES for recipe in family(high, extreme)]
    yield from found
    yield from example_recipes(high, extreme, {recipe.op for recipe in found})


def all_cases(high: int, extreme: bool, seed: int = 0, ops: Collection[str] = ()) -> Iterator[Case]:
    """Every case with activations of 0..high, or those of some ops. `extreme` ones have weights that saturate.

    A case is the same for the same seed, whatever other cases there are.
    """
    for recipe in recipes(high, extreme):
        if not ops or recipe.op in ops:
            yield recipe.case(f"{seed} {high} {extreme}")
