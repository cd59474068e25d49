"""Wrong tokens slow their sender down, and nobody else (FAILURES C18, C22)."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from packhorse.clock import ManualClock
from packhorse.server.door.throttle import (
    ADDRESSES_MAX,
    FAILURES_MAX,
    FORGET_MS,
    LOG_EVERY_MS,
    RIGHT_MAX,
    Throttle,
    address_of,
)

from ..worker.working import new_app, work
from .guarded import SETTING, bearer, guarded


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_address_has_some_wrong_tokens_free_and_then_one_each_interval() -> None:
    clock = ManualClock()
    throttle = Throttle(clock)
    for _ in range(FAILURES_MAX):
        assert throttle.wait_ms("a") == 0
        throttle.wrong("a")
    assert throttle.wait_ms("a") == FORGET_MS
    for _ in range(1_000):  # to go on does not make the wait longer
        throttle.wrong("a")
    assert throttle.wait_ms("a") == FORGET_MS
    clock.advance(FORGET_MS)
    assert throttle.wait_ms("a") == 0
    throttle.wrong("a")
    assert throttle.wait_ms("a") == FORGET_MS
    assert throttle.wait_ms("b") == 0
    clock.advance(FORGET_MS * FAILURES_MAX)
    for _ in range(FAILURES_MAX):
        throttle.wrong("a")
    assert throttle.wait_ms("a") == FORGET_MS


def test_c18_of_a_thousand_tries_few_are_judged_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        async with guarded(app=new_app(clock=clock, tokens=SETTING)) as server, server.client("203.0.113.9") as client:
            statuses = []
            for number in range(1_000):
                response = await client.get("/api/v1/jobs", headers={"Authorization": f"Bearer guess-{number}"})
                statuses.append(response.status_code)
                clock.advance(100)
            judged = statuses.count(401)
            assert judged == FAILURES_MAX + 1_000 * 100 // FORGET_MS - 1
            assert statuses.count(429) == 1_000 - judged
            assert 1 <= int(response.headers["retry-after"]) <= FORGET_MS // 1_000
            assert "guess" not in response.text
            wrong = {"Authorization": "Bearer wrong"}
            while (await client.get("/api/v1/jobs", headers=wrong)).status_code != 429:
                pass  # the time stands still now, so it is at the next try
            # A right token that is new from there is told to wait, too: else a guesser would know when he is right.
            assert (await client.get("/api/v1/jobs", headers=bearer())).status_code == 429
            session = await client.post("/api/v1/session", json={"token": bearer()["Authorization"][7:]})
            assert session.status_code == 429
            # Elsewhere nothing of it is felt.
            async with server.client("203.0.113.10") as other:
                assert (await other.get("/api/v1/jobs", headers=bearer())).status_code == 200
            clock.advance(FORGET_MS)
            assert (await client.get("/api/v1/jobs", headers=bearer())).status_code == 200

    with caplog.at_level(logging.WARNING, "packhorse"):
        work(scenario)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2  # 100 s of it: one line a minute
    assert all("203.0.113.9" in line for line in lines)
    assert "guess" not in " ".join(lines)


def test_c18_who_is_at_work_behind_the_same_address_is_not_locked_out() -> None:
    async def scenario() -> None:
        async with guarded(app=new_app(clock=ManualClock(), tokens=SETTING)) as server, server.client() as client:
            assert (await client.get("/api/v1/jobs", headers=bearer("read"))).status_code == 200
            page = server.client()
            await page.post("/api/v1/session", json={"token": bearer("work")["Authorization"][7:]})
            for _ in range(FAILURES_MAX * 2):
                await client.get("/api/v1/jobs", headers={"Authorization": "Bearer wrong"})
            assert (await client.get("/api/v1/jobs", headers=bearer("read"))).status_code == 200
            assert (await page.get("/api/v1/jobs")).status_code == 200  # a session is no guess
            assert (await client.get("/api/v1/jobs", headers=bearer("admin"))).status_code == 429
            assert (await client.get("/api/v1/jobs")).status_code == 401  # none at all is no try
            assert (await client.get("/livez")).status_code == 200
            await page.aclose()

    work(scenario)


def test_memory_is_bounded_however_many_addresses_and_tokens_there_are() -> None:
    throttle = Throttle(ManualClock())
    for _ in range(FAILURES_MAX):
        throttle.wrong("busy")
    logging.disable(logging.WARNING)
    try:
        for number in range(ADDRESSES_MAX + 500):
            throttle.wrong(f"a{number}")
            if number % 1_000 == 0:
                throttle.wrong("busy")
            throttle.right("x", b"%d" % number)
    finally:
        logging.disable(logging.NOTSET)
    assert len(throttle._failures) == ADDRESSES_MAX
    assert len(throttle._right) == RIGHT_MAX
    assert throttle.wait_ms("busy") > 0  # those who go on are not forgotten for those who came by


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", "local"),
        ("a\n2026 INFO paid", "local"),
        ("::x\n", "local"),
        ("x" * 1_000, "local"),
    ],
)
def test_c22_addresses_are_counted_by_network_and_cannot_forge_a_line(host: str, address: str) -> None:
    assert address_of(host) == address


def test_the_log_has_a_line_a_minute_with_what_came_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    throttle = Throttle(clock)
    with caplog.at_level(logging.WARNING, "packhorse"):
        for _ in range(50):
            throttle.wrong("a")
        clock.advance(LOG_EVERY_MS)
        throttle.wrong("a")
    assert [record.getMessage() for record in caplog.records] == [
        "wrong tokens from a: 1 since the last such line",
        "wrong tokens from a: 50 since the last such line",
    ]
