"""Which queues a worker takes from, and in which order: strictly as given, or by weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..chance import Chance
from ..errors import ConfigurationError, shown
from ..job import check_name

WEIGHT_MAX = 1_000

_WEIGHT = re.compile(r"\d{1,9}", re.ASCII)


def read_queues(given: str | Iterable[str] | Mapping[str, int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Read queues: `a,b` is an order and has no weights, `a=6,b=1` or `{"a": 6, "b": 1}` has one for each queue.

    Raises ConfigurationError for weights on some queues only, out of bounds, or a weighted queue named twice.
    """
    if isinstance(given, Mapping):
        items: list[tuple[str, object]] = list(given.items())
    else:
        words = given.split(",") if isinstance(given, str) else [str(word) for word in given]
        items = [_read_word(word) for word in words]
    names = tuple(check_name(name, "queue") for name, _ in items)
    weights = [weight for _, weight in items if weight is not None]
    if not weights:
        return names, ()
    if len(weights) < len(names):
        bare = next(name for name, weight in items if weight is None)
        raise ConfigurationError(f"queues: {bare} has no weight and others have; give each one: a=6,b=1, or none: a,b")
    if len(set(names)) < len(names):
        raise ConfigurationError("queues: a queue with a weight is named twice; name it once")
    return names, tuple(_check_weight(name, weight) for name, weight in items)


def _read_word(word: str) -> tuple[str, object]:
    name, equals, weight = word.strip().partition("=")
    if not equals:
        return name.strip(), None
    return name.strip(), int(weight) if _WEIGHT.fullmatch(weight.strip()) else weight


def _check_weight(name: str, weight: object) -> int:
    if not isinstance(weight, int) or isinstance(weight, bool) or not 1 <= weight <= WEIGHT_MAX:
        raise ConfigurationError(
            f"queues: the weight of {name} is {shown(weight)}; it must be a whole number from 1 to {WEIGHT_MAX}"
        )
    return weight


def weighted_order(queues: Sequence[str], weights: Sequence[int], chance: Chance) -> list[str]:
    """Answer all queues in a random order: each place goes to one of those left, with the odds of their weights."""
    left = list(zip(queues, weights, strict=True))
    total = sum(weights)
    order = []
    while left:
        drawn = chance.below(total)
        for index, (queue, weight) in enumerate(left):  # noqa: B007  # both are of the one that was drawn
            drawn -= weight
            if drawn < 0:
                break
        order.append(queue)
        total -= weight
        del left[index]
    return order
