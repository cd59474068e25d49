"""Rates as people write them, and limits made of them."""

from __future__ import annotations

import pytest

from packhorse.backends.messages import EACH_KEY, Limit
from packhorse.errors import InvalidName, InvalidOption
from packhorse.rates import CODE, make_limit, rate_text, read_rate, task_limits


@pytest.mark.parametrize(
    ("text", "rate", "written"),
    [
        ("50/s", (50, 1_000), "50/s"),
        ("100/m", (100, 60_000), "100/m"),
        ("5/10s", (5, 10_000), "5/10s"),
        ("1000/h", (1_000, 3_600_000), "1000/h"),
        ("1/d", (1, 86_400_000), "1/d"),
        ("1/366d", (1, 366 * 86_400_000), "1/366d"),
        ("7/250ms", (7, 250), "7/250ms"),
        ("1000000/1ms", (1_000_000, 1), "1000000/ms"),
        (" 5 / 60 s ", (5, 60_000), "5/m"),
        ("3/90s", (3, 90_000), "3/90s"),
    ],
)
def test_a_rate_is_read_and_written(text, rate, written):
    assert read_rate(text) == rate
    assert rate_text(*rate) == written
    assert read_rate(written) == rate


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0/s", "to lift a limit, clear it"),
        ("-1/s", "to lift a limit, clear it"),
        ("1000001/s", "1 to 1,000,000 starts"),
        ("1/0s", "from 1ms to 366d"),
        ("1/367d", "from 1ms to 366d"),
        ("50", "write 50/s"),
        (50, "write 50/s"),
        ("", "write 50/s"),
        ("1.5/s", "write 50/s"),
        ("50/sec", "write 50/s"),
        ("٣/s", "write 50/s"),
        ("9" * 100 + "/s", "write 50/s"),
        (None, "write 50/s"),
        ("1/s" * 10**5, "write 50/s"),
    ],
)
def test_what_is_no_rate_is_refused_with_the_remedy(text, says):
    with pytest.raises(InvalidOption, match=says) as caught:
        read_rate(text, "--rate")
    assert str(caught.value).startswith("--rate: ")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "needs a rate"),
        ({"concurrency": 0}, "to lift a limit, clear it"),
        ({"concurrency": -1}, "must be a whole number from 1"),
        ({"concurrency": True}, "must be a whole number"),
        ({"concurrency": 1_000_001}, "from 1 to 1,000,000"),
        ({"rate": "1/s", "burst": 0}, "burst"),
        ({"rate": "1/s", "burst": 1.5}, "burst"),
        ({"rate": "1/s", "key": ""}, "key"),
        ({"rate": "1/s", "key": "a\0"}, "key"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(options, says):
    with pytest.raises(InvalidOption, match=says):
        make_limit("mail", **options)


def test_a_type_that_cannot_be_one_is_refused():
    with pytest.raises(InvalidName):
        make_limit("a b", rate="1/s")


def test_the_limits_of_a_task():
    assert task_limits("mail", rate="100/m", burst=5, concurrency=10) == (
        Limit(type="mail", rate=100, period_ms=60_000, burst=5, concurrency=10, source=CODE),
    )
    whole, each = task_limits("mail", concurrency=3, rate_per_key="1/s", concurrency_per_key=2)
    assert (whole.key, whole.rate, whole.concurrency) == (None, None, 3)
    assert (each.key, each.rate, each.period_ms, each.concurrency) == (EACH_KEY, 1, 1_000, 2)
    with pytest.raises(InvalidOption, match="give rate too"):
        task_limits("mail", burst=3, concurrency=1)
