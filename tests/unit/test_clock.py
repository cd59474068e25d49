"""Two kinds of time: the wall clock may jump, the boot clock only goes on."""

from __future__ import annotations

import datetime as dt
import threading
import time

import pytest

from packhorse.clock import (
    SYSTEM_CLOCK,
    TELLS_THREAD_CPU,
    ManualClock,
    pause,
    precise_boot_ms,
    process_cpu_ms,
    thread_cpu_ns,
    to_datetime,
    to_rfc3339,
)


def test_the_system_clock_is_the_machines():
    before = time.time()
    now_ms = SYSTEM_CLOCK.now_ms()
    assert before * 1000 - 1 <= now_ms <= time.time() * 1000 + 1
    assert type(now_ms) is type(SYSTEM_CLOCK.boot_ms()) is int


def test_the_boot_clock_goes_on():
    first_ms, precise_ms = SYSTEM_CLOCK.boot_ms(), precise_boot_ms()
    pause(0.002)
    assert SYSTEM_CLOCK.boot_ms() > first_ms
    assert precise_boot_ms() - precise_ms >= 2
    before_ms, whole_ms, after_ms = precise_boot_ms(), SYSTEM_CLOCK.boot_ms(), precise_boot_ms()
    assert before_ms - 1 <= whole_ms <= after_ms + 1


def test_cpu_time_grows_with_work():
    before_ms = process_cpu_ms()
    while process_cpu_ms() == before_ms:
        sum(range(1_000))
    assert process_cpu_ms() > before_ms


@pytest.mark.skipif(not TELLS_THREAD_CPU, reason="this system does not tell the processor time of a thread")
def test_the_processor_time_of_threads_is_told_and_none_of_those_that_are_gone():
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(64)]  # more than the C library keeps stacks for
    for thread in threads:
        thread.start()
    numbers = [thread.native_id for thread in threads]
    assert all(0 < thread_cpu_ns(number) < 10_000_000_000 for number in numbers)
    done.set()
    for thread in threads:
        thread.join()
    while any(thread_cpu_ns(number) is not None for number in numbers):  # joined is not yet gone for the kernel
        pause(0.001)
    own_ns = thread_cpu_ns(threading.get_native_id())
    assert abs(own_ns - time.thread_time_ns()) < 1_000_000_000


def test_a_manual_clock_stands_still_until_it_is_advanced():
    clock = ManualClock(5_000)
    boot_ms = clock.boot_ms()
    assert (clock.now_ms(), clock.now_ms()) == (5_000, 5_000)
    clock.advance(250)
    clock.advance(0)
    assert (clock.now_ms(), clock.boot_ms()) == (5_250, boot_ms + 250)


def test_a_jump_moves_the_wall_clock_only():
    """B36: what measures a duration must not notice that the clock was set."""
    clock = ManualClock(10_000)
    boot_ms = clock.boot_ms()
    clock.jump(-4_000)
    assert (clock.now_ms(), clock.boot_ms()) == (6_000, boot_ms)
    clock.jump(3_600_000)
    assert (clock.now_ms(), clock.boot_ms()) == (3_606_000, boot_ms)


def test_time_is_not_advanced_backwards():
    with pytest.raises(ValueError, match="jump"):
        ManualClock().advance(-1)


@pytest.mark.parametrize(
    ("instant_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (999, "1970-01-01T00:00:00.999Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (1_700_000_000_123, "2023-11-14T22:13:20.123Z"),
        (4_102_444_799_999, "2099-12-31T23:59:59.999Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_instants_are_written_exactly(instant_ms, text):
    assert to_rfc3339(instant_ms) == text
    written = to_datetime(instant_ms)
    assert written.tzinfo is dt.UTC
    assert written == dt.datetime.fromisoformat(text)


def test_every_millisecond_is_written_as_itself():
    for instant_ms in [*range(1_700_000_000_000, 1_700_000_001_000), *range(99_999_999_999_000, 100_000_000_000_000)]:
        assert to_rfc3339(instant_ms).endswith(f".{instant_ms % 1000:03d}Z")
