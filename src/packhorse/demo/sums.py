"""Exact sums for the job type `math`, bounded so that none takes long or answers a novel."""

from __future__ import annotations

import math
from typing import Literal, assert_never

from ..codec import INT_MAX
from .files import Unfit

Operation = Literal["fibonacci", "factorial", "is_prime", "gcd", "lcm", "power"]

#: fibonacci(20,000) has 4,180 digits, factorial(1,400) has 3,786: Python turns at most 4,300 into text.
FIBONACCI_MAX = 20_000
FACTORIAL_MAX = 1_400
POWER_BITS_MAX = 14_000

#: These bases decide primality for every number below 3.3e24 (Sorenson, Webster: "Strong pseudoprimes to twelve
#: prime bases", 2015); payloads hold at most signed 64 bits.
_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


def calculate(operation: Operation, value: int, other: int | None = None) -> int | bool | str:
    """Answer the result; as text where it exceeds the signed 64 bits that a JSON number may have. Raises Unfit."""
    result = _calculate(operation, value, other)
    return str(result) if abs(result) > INT_MAX else result


def _calculate(operation: Operation, value: int, other: int | None) -> int | bool:
    match operation:
        case "fibonacci":
            return _fibonacci(_within(value, FIBONACCI_MAX, "fibonacci"))
        case "factorial":
            return math.factorial(_within(value, FACTORIAL_MAX, "factorial"))
        case "is_prime":
            return is_prime(value)
        case "gcd":
            return math.gcd(value, _second(other, "gcd"))
        case "lcm":
            return math.lcm(value, _second(other, "lcm"))
        case "power":
            exponent = _within(_second(other, "power"), POWER_BITS_MAX, "the exponent of power")
            if value.bit_length() * exponent > POWER_BITS_MAX:
                raise Unfit(f"{value} to the power of {exponent} is too large")
            return int(value**exponent)
        case _:
            assert_never(operation)


def _within(value: int, largest: int, what: str) -> int:
    if not 0 <= value <= largest:
        raise Unfit(f"{what} takes 0 to {largest:,}, not {value}")
    return value


def _second(other: int | None, what: str) -> int:
    if other is None:
        raise Unfit(f"{what} takes two numbers: value and other")
    return other


def _fibonacci(count: int) -> int:
    here, ahead = 0, 1
    for _ in range(count):
        here, ahead = ahead, here + ahead
    return here


def is_prime(number: int) -> bool:
    """Answer whether a number of 64 bits is prime (Miller-Rabin with bases that leave no doubt)."""
    if number < 2:
        return False
    for prime in _WITNESSES:
        if number % prime == 0:
            return number == prime
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd //= 2
        twos += 1
    return all(_passes(number, base, odd, twos) for base in _WITNESSES)


def _passes(number: int, base: int, odd: int, twos: int) -> bool:
    power = pow(base, odd, number)
    if power in {1, number - 1}:
        return True
    for _ in range(twos - 1):
        power = power * power % number
        if power == number - 1:
            return True
    return False
