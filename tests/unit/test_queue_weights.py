"""Queues with weights: how they are written, and the shares they give."""

from __future__ import annotations

from collections import Counter

import pytest

from packhorse.chance import Chance
from packhorse.errors import ConfigurationError, InvalidName
from packhorse.settings import Settings, load
from packhorse.worker.options import WorkerOptions
from packhorse.worker.weights import read_queues, weighted_order


@pytest.mark.parametrize(
    ("given", "queues", "weights"),
    [
        ("a", ("a",), ()),
        ("a,b", ("a", "b"), ()),
        (["a", " b "], ("a", "b"), ()),
        (("a", "a"), ("a", "a"), ()),
        ("a=6,b=3,c=1", ("a", "b", "c"), (6, 3, 1)),
        ([" a = 6 ", "b=1"], ("a", "b"), (6, 1)),
        ({"critical": 6, "low": 1}, ("critical", "low"), (6, 1)),
        ({"a": 1_000}, ("a",), (1_000,)),
    ],
)
def test_queues_are_read(given, queues, weights):
    assert read_queues(given) == (queues, weights)
    options = WorkerOptions.of(Settings(), queues=given)
    assert (options.queues, options.weights) == (queues, weights)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("a=6,b", "b has no weight and others have"),
        ("a,b=6", "a has no weight and others have"),
        ("a=0", "from 1 to 1000"),
        ("a=-1", "from 1 to 1000"),
        ("a=1001", "from 1 to 1000"),
        ("a=x", "from 1 to 1000"),
        ("a=", "from 1 to 1000"),
        ("a=1.5", "from 1 to 1000"),
        ("a=٣", "from 1 to 1000"),
        ({"a": "6"}, "from 1 to 1000"),
        ({"a": True}, "from 1 to 1000"),
        ({"a": 10**400}, "from 1 to 1000"),
        ("a=1,a=2", "named twice"),
        ("=1", "cannot name a queue"),
        ("a b=1", "cannot name a queue"),
        ("", "cannot name a queue"),
    ],
)
def test_what_cannot_be_is_refused(given, says):
    with pytest.raises((ConfigurationError, InvalidName), match=says) as caught:
        read_queues(given)
    assert len(str(caught.value)) < 300


def test_settings_and_files_have_weights_too(tmp_path):
    assert load({"queues": "a=6,b=1"}).queues == ("a=6", "b=1")
    assert WorkerOptions.of(load({}, {"PACKHORSE_QUEUES": "a=6, b=1"}, tmp_path)).weights == (6, 1)
    (tmp_path / "packhorse.toml").write_text("[queues]\ncritical = 6\nlow = 1\n")
    options = WorkerOptions.of(load({}, {}, tmp_path))
    assert (options.queues, options.weights) == (("critical", "low"), (6, 1))


def test_a_keyword_with_weights_wins_over_a_setting_without():
    options = WorkerOptions.of(load({"queues": "x,y"}), queues=("a=2", "b=1"))
    assert (options.queues, options.weights) == (("a", "b"), (2, 1))
    options = WorkerOptions.of(load({"queues": "x=2,y=1"}), queues=("a", "b"))
    assert (options.queues, options.weights) == (("a", "b"), ())


def test_the_shares_are_those_of_the_weights_and_none_starves():
    chance = Chance(7)
    firsts: Counter[str] = Counter()
    lasts: Counter[str] = Counter()
    for _ in range(20_000):
        order = weighted_order(("critical", "default", "low"), (6, 3, 1), chance)
        assert sorted(order) == ["critical", "default", "low"]  # every queue is asked in every claim
        firsts[order[0]] += 1
        lasts[order[-1]] += 1
    for queue, share in (("critical", 0.6), ("default", 0.3), ("low", 0.1)):
        assert abs(firsts[queue] / 20_000 - share) < 0.02, firsts  # five standard deviations
    assert all(count > 500 for count in lasts.values())


def test_one_queue_and_large_weights():
    assert weighted_order(("a",), (5,), Chance(1)) == ["a"]
    seen = {tuple(weighted_order(("a", "b"), (1_000, 1), Chance(seed))) for seed in range(5_000)}
    assert seen == {("a", "b"), ("b", "a")}
