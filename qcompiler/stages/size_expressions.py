"""Sizes as expressions of named dimensions: integers, names, sums, products, floors of quotients, remainders, the least of several.

`str(expression)` is Python. C's `/` and `%` agree with its `//` and `%` where no operand is negative. A code generator may walk the tree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard


class Expression:
    """Common to all kinds: printed with as few parentheses as Python needs."""

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, repr=False)
class Name(Expression):
    """A dimension of an input."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, repr=False)
class Sum(Expression):
    """Sizes added up, the integer last."""

    terms: tuple[Size, ...]

    def __str__(self) -> str:
        text = str(self.terms[0])
        for term in self.terms[1:]:
            text += f" - {-term}" if isinstance(term, int) and term < 0 else f" + {term}"
        return text


@dataclass(frozen=True, repr=False)
class Product(Expression):
    """Sizes multiplied, the integer first."""

    factors: tuple[Size, ...]

    def __str__(self) -> str:
        return " * ".join(f"({f})" if isinstance(f, (Sum, Floor, Modulo)) else str(f) for f in self.factors)


@dataclass(frozen=True, repr=False)
class Floor(Expression):
    """The quotient rounded down, as Python's `//`; `by` is above 0."""

    of: Size
    by: Size

    def __str__(self) -> str:
        left = f"({self.of})" if isinstance(self.of, (Sum, Product, Floor, Modulo)) else str(self.of)
        return f"{left} // {f'({self.by})' if isinstance(self.by, Expression) and not isinstance(self.by, Name) else self.by}"


@dataclass(frozen=True, repr=False)
class Modulo(Expression):
    """What is left of a quotient, as Python's `%`; `by` is above 0."""

    of: Size
    by: Size

    def __str__(self) -> str:
        left = f"({self.of})" if isinstance(self.of, (Sum, Product, Floor, Modulo)) else str(self.of)
        return f"{left} % {f'({self.by})' if isinstance(self.by, Expression) and not isinstance(self.by, Name) else self.by}"


@dataclass(frozen=True, repr=False)
class Least(Expression):
    """The smallest of several sizes."""

    of: tuple[Size, ...]

    def __str__(self) -> str:
        return f"min({', '.join(map(str, self.of))})"


Size: TypeAlias = "int | Name | Sum | Product | Floor | Modulo | Least"


def is_size(value: object) -> TypeGuard[Size]:
    """Whether a value is an integer or an expression."""
    return isinstance(value, (int, Expression)) and not isinstance(value, bool)


def add(*sizes: Size) -> Size:
    """The sum, with its integers gathered at the end."""
    terms = [term for size in sizes for term in (size.terms if isinstance(size, Sum) else (size,))]
    number = sum(t for t in terms if isinstance(t, int))
    rest: list[Size] = [t for t in terms if not isinstance(t, int)]
    if number or not rest:
        rest.append(number)
    return rest[0] if len(rest) == 1 else Sum(tuple(rest))


def times(*sizes: Size) -> Size:
    """The product, with its integers gathered at the beginning."""
    factors = [factor for size in sizes for factor in (size.factors if isinstance(size, Product) else (size,))]
    number = math.prod(f for f in factors if isinstance(f, int))
    rest: list[Size] = [f for f in factors if not isinstance(f, int)]
    if number != 1 or not rest:
        rest.insert(0, number)
    return 0 if number == 0 else rest[0] if len(rest) == 1 else Product(tuple(rest))


def floor(of: Size, by: Size) -> Size:
    """of // by. An integer in a sum is brought to 0..by - 1, so (x - 3) // 2 is (x + 1) // 2 - 2."""
    if isinstance(of, int) and isinstance(by, int):
        return of // by
    if isinstance(of, Product) and isinstance(of.factors[0], int) and isinstance(by, int) and of.factors[0] % by == 0:
        return times(of.factors[0] // by, *of.factors[1:])
    if isinstance(of, Sum) and isinstance(of.terms[-1], int) and isinstance(by, int) and not 0 <= of.terms[-1] < by:
        whole, left = divmod(of.terms[-1], by)
        return add(floor(add(*of.terms[:-1], left), by), whole)
    return of if by == 1 else Floor(of, by)


def modulo(of: Size, by: Size) -> Size:
    """of % by."""
    if isinstance(of, int) and isinstance(by, int):
        return of % by
    if isinstance(of, Product) and isinstance(of.factors[0], int) and isinstance(by, int) and of.factors[0] % by == 0:
        return 0
    return Modulo(of, by)


def least(*sizes: Size) -> Size:
    """The smallest."""
    if all(isinstance(size, int) for size in sizes):
        return min(size for size in sizes if isinstance(size, int))
    distinct = tuple(dict.fromkeys(sizes))
    return distinct[0] if len(distinct) == 1 else Least(distinct)


def evaluate(size: Size, values: Mapping[str, int]) -> int:
    """The number for given dimensions. KeyError for a name that is not given."""
    if isinstance(size, int):
        return size
    if isinstance(size, Name):
        return values[size.name]
    if isinstance(size, Sum):
        return sum(evaluate(term, values) for term in size.terms)
    if isinstance(size, Product):
        return math.prod(evaluate(factor, values) for factor in size.factors)
    if isinstance(size, Least):
        return min(evaluate(part, values) for part in size.of)
    of, by = evaluate(size.of, values), evaluate(size.by, values)
    return of % by if isinstance(size, Modulo) else of // by


def names_in(size: Size) -> Iterator[str]:
    """The dimensions that an expression depends on, with repetitions."""
    if isinstance(size, Name):
        yield size.name
    for part in _parts(size):
        yield from names_in(part)


def _parts(size: Size) -> tuple[Size, ...]:
    if isinstance(size, Sum):
        return size.terms
    if isinstance(size, Product):
        return size.factors
    if isinstance(size, Least):
        return size.of
    return () if isinstance(size, (int, Name)) else (size.of, size.by)
