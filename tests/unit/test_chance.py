"""Ids: UUIDv7, rising within a process, different in every other."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid

from packhorse.chance import CHANCE, Chance, secret_hex

NOW_MS = 1_700_000_000_000


def test_ids_are_uuids_of_version_7_with_their_time():
    for now_ms in (0x1, NOW_MS, (1 << 48) - 2):
        for text in Chance().ids(now_ms, 100):
            parsed = uuid.UUID(text)
            assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, text)
            assert parsed.int >> 80 == now_ms


def test_ids_rise_and_are_unique_even_when_the_clock_goes_back():
    chance = Chance()
    ids: list[str] = []
    for now_ms in (NOW_MS, NOW_MS, NOW_MS + 1, NOW_MS - 5_000, NOW_MS + 1, NOW_MS + 2):
        ids += chance.ids(now_ms, 5_000)
        ids.append(chance.id(now_ms))
    assert ids == sorted(ids)
    assert len(ids) == len(set(ids))


def test_a_counter_that_overflows_borrows_the_next_ms():
    chance = Chance(1)
    before = chance.id(NOW_MS)
    chance._counter = (1 << 26) - 3
    ids = chance.ids(NOW_MS, 6)
    assert [before, *ids] == sorted({before, *ids})
    assert uuid.UUID(ids[-1]).int >> 80 == NOW_MS + 1
    assert all(uuid.UUID(text).version == 7 for text in ids)
    assert chance.id(NOW_MS) > ids[-1]


def test_ids_of_many_threads_are_unique():
    made: list[str] = []

    def make() -> None:
        for _ in range(200):
            made.extend(CHANCE.ids(NOW_MS, 10))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(set(made)) == 16_000


def test_two_sources_do_not_meet():
    """C19: an id cannot be guessed from another: 48 random bits and a counter with a random start."""
    first, second = Chance().ids(NOW_MS, 1_000), Chance().ids(NOW_MS, 1_000)
    assert not set(first) & set(second)
    assert len({text[-12:] for text in first + second}) == 2_000


def test_a_seed_repeats_everything():
    def draw(chance: Chance) -> list[object]:
        items: list[object] = list(range(9))
        chance.shuffle(items)
        return [chance.uniform(0, 1), chance.below(10**9), chance.ids(NOW_MS, 3), items]

    assert draw(Chance(5)) == draw(Chance(5))
    assert draw(Chance(5)) != draw(Chance(6))
    assert draw(Chance()) != draw(Chance())


def test_draws_stay_within_their_bounds():
    chance = Chance(3)
    assert {chance.below(3) for _ in range(100)} == {0, 1, 2}
    assert all(2 <= chance.uniform(2, 3) <= 3 for _ in range(100))


def test_ids_differ_after_fork():
    script = """
import os
from packhorse.chance import CHANCE, Chance
mine = Chance()
CHANCE.ids(5, 10)
read, write = os.pipe()
child = os.fork()
if child == 0:
    os.write(write, "\\n".join(CHANCE.ids(5, 50)).encode())
    os._exit(0)
os.waitpid(child, 0)
theirs = os.read(read, 100_000).decode().split("\\n")
ours = CHANCE.ids(5, 50)
assert len(theirs) == 50 and not set(ours) & set(theirs), "the same ids in parent and child"
print("different")
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout.strip() == "different", run.stderr


def test_secrets_are_long_and_different():
    secrets = {secret_hex() for _ in range(100)}
    assert len(secrets) == 100
    assert {len(bytes.fromhex(secret)) for secret in secrets} == {16}
