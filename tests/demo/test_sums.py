"""The job type `math`."""

from __future__ import annotations

import math

import pytest

from packhorse.demo.files import Unfit
from packhorse.demo.sums import FACTORIAL_MAX, FIBONACCI_MAX, POWER_BITS_MAX, calculate, is_prime


@pytest.mark.parametrize(
    ("value", "result"),
    [(0, 0), (1, 1), (2, 1), (3, 2), (10, 55), (50, 12586269025), (92, 7540113804746346429)],
)
def test_fibonacci(value: int, result: int) -> None:
    assert calculate("fibonacci", value) == result


def test_results_larger_than_64_bits_are_text() -> None:
    assert calculate("fibonacci", 93) == "12200160415121876738"
    assert calculate("factorial", 21) == "51090942171709440000"
    assert calculate("factorial", 20) == 2432902008176640000


@pytest.mark.parametrize(
    ("operation", "value", "other", "result"),
    [
        ("gcd", 84, 36, 12),
        ("lcm", 4, 6, 12),
        ("power", 2, 10, 1024),
        ("power", -3, 3, -27),
        ("power", 2, 64, "18446744073709551616"),
        ("is_prime", 97, None, True),
        ("is_prime", 91, None, False),
    ],
)
def test_others(operation: str, value: int, other: int | None, result: object) -> None:
    assert calculate(operation, value, other) == result  # type: ignore[arg-type]


def test_primes_of_the_first_thousands_are_those_of_the_sieve() -> None:
    limit = 5_000
    sieve = [number > 1 and all(number % d for d in range(2, math.isqrt(number) + 1)) for number in range(limit)]

    assert [is_prime(number) for number in range(limit)] == sieve


@pytest.mark.parametrize(
    ("number", "prime"),
    [
        ((1 << 61) - 1, True),
        (9_223_372_036_854_775_783, True),  # the largest below 2**63
        (3_215_031_751, False),  # passes for the bases 2, 3, 5 and 7
        (3_825_123_056_546_413_051, False),  # passes for the bases 2 to 23
        (4_294_967_291 * 2_147_483_647, False),
    ],
)
def test_large_primes(number: int, prime: bool) -> None:
    assert is_prime(number) is prime


@pytest.mark.parametrize(
    ("operation", "value", "other"),
    [
        ("fibonacci", -1, None),
        ("fibonacci", FIBONACCI_MAX + 1, None),
        ("factorial", -1, None),
        ("factorial", FACTORIAL_MAX + 1, None),
        ("gcd", 5, None),
        ("power", 2, -1),
        ("power", 2, POWER_BITS_MAX),
        ("power", 1 << 62, 1 << 62),
    ],
)
def test_out_of_bounds(operation: str, value: int, other: int | None) -> None:
    with pytest.raises(Unfit):
        calculate(operation, value, other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("operation", "value", "other"),
    [("fibonacci", FIBONACCI_MAX, None), ("factorial", FACTORIAL_MAX, None), ("power", 2, POWER_BITS_MAX // 2)],
)
def test_the_largest_can_be_written_down(operation: str, value: int, other: int | None) -> None:
    assert isinstance(calculate(operation, value, other), str)  # type: ignore[arg-type]
