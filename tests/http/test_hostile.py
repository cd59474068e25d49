"""C9, C13, C16, C32: what an authorised client sends is hostile all the same, typed or not."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import aiohttp
import msgspec
import pytest

from packhorse.backends.base import (
    Firing,
    Keep,
    Limit,
    MovedJob,
    Note,
    Query,
    QueueChange,
    Rerun,
    Schedule,
    ScheduleChange,
    Settlement,
    Transfer,
    WorkerInfo,
)
from packhorse.backends.http import wire
from packhorse.errors import InvalidName, InvalidOption, InvalidPayload, PackhorseError, PayloadTooLarge
from packhorse.job import DELAY_MS_MAX, JobError, JobRecord, JobSpec, State, Unique
from packhorse.server.checking import check_arguments

from .kit import served

LONG = "x" * 100_000


def spec(**fields: Any) -> JobSpec:
    return JobSpec(**{"id": "a", "type": "t", **fields})


def record(**fields: Any) -> JobRecord:
    return JobRecord(
        **{
            "id": "a",
            "type": "t",
            "queue": "q",
            "state": State.PENDING,
            "payload": b"{}",
            "priority": 5,
            "attempt": 0,
            "max_attempts": 4,
            "timeout_ms": 0,
            "created_at_ms": 1,
            "due_at_ms": 1,
            **fields,
        }
    )


def settlement(**fields: Any) -> Settlement:
    return Settlement(**{"id": "a", "token": "t", "state": State.SUCCEEDED, **fields})


def moved(**fields: Any) -> wire.TakeOver:
    return wire.TakeOver(Transfer(source="s", number=1, jobs=(MovedJob(record=record(**fields)),)))


def error(**fields: Any) -> JobError:
    return JobError(**{"attempt": 1, "at_ms": 1, "kind": "k", "message": "m", **fields})


PAYLOADS = [
    b"NaN",
    b"[1e999]",
    b'{"a":1,"a":2}',
    b'"\\ud800"',
    b'"\\u0000"',
    b"\xff",
    b"{",
    b"1" * 30,
]

REFUSED: list[tuple[msgspec.Struct, type[PackhorseError]]] = [
    *((wire.Enqueue((spec(payload=payload),)), InvalidPayload) for payload in PAYLOADS),
    (wire.Enqueue((spec(payload=b'"' + b"x" * (1 << 20) + b'"'),)), PayloadTooLarge),
    *((wire.Enqueue((spec(id=text),)), InvalidOption) for text in ("", "a\0b", "a\nb", LONG)),
    *((wire.Enqueue((spec(type=text),)), InvalidName) for text in ("", "a b", "a:b", "../x", "a*", "ü", LONG)),
    *((wire.Enqueue((spec(queue=text),)), InvalidName) for text in ("", "a>b", "{a}", "a\r\nb", LONG)),
    (wire.Enqueue((spec(priority=10),)), InvalidOption),
    (wire.Enqueue((spec(priority=-1),)), InvalidOption),
    (wire.Enqueue((spec(max_attempts=0),)), InvalidOption),
    (wire.Enqueue((spec(max_attempts=10**18),)), InvalidOption),
    (wire.Enqueue((spec(delay_ms=-1),)), InvalidOption),
    (wire.Enqueue((spec(delay_ms=DELAY_MS_MAX + 1),)), InvalidOption),
    (wire.Enqueue((spec(timeout_ms=10**12),)), InvalidOption),
    (wire.Enqueue((spec(key="a\x1bb"),)), InvalidOption),
    (wire.Enqueue((spec(tags=("a b",)),)), InvalidName),
    (wire.Enqueue((spec(tags=tuple(f"t{number}" for number in range(33))),)), InvalidOption),
    (wire.Enqueue((spec(meta={"a": LONG}),)), InvalidOption),
    (wire.Enqueue((spec(meta={"a": "\0"}),)), InvalidOption),
    (wire.Enqueue((spec(meta={f"m{number}": "" for number in range(33)}),)), InvalidOption),
    (wire.Enqueue((spec(after=("p",) * 10_001),)), InvalidOption),
    (wire.Enqueue((spec(after_failed="explode"),)), InvalidOption),
    (wire.Enqueue((spec(unique=Unique(key=LONG)),)), InvalidOption),
    (wire.Enqueue((spec(unique=Unique(key="k", on_conflict="drop")),)), InvalidOption),
    (wire.Enqueue((spec(unique=Unique(key="k", for_ms=-1)),)), InvalidOption),
    (wire.Enqueue((spec(schedule="a b"),)), InvalidName),
    (wire.Enqueue((spec(node="a/b"),)), InvalidName),
    (wire.Enqueue((spec(slot_at_ms=1 << 63),)), InvalidOption),
    (wire.Claim(("a b",), 1, 1_000, "w"), InvalidName),
    (wire.Claim(("a",), -1, 1_000, "w"), InvalidOption),
    (wire.Claim(("a",), 1_001, 1_000, "w"), InvalidOption),
    (wire.Claim(("a",), 1, 0, "w"), InvalidOption),
    (wire.Claim(("a",), 1, 10**12, "w"), InvalidOption),
    (wire.Claim(("a",), 1, 1_000, "w\n"), InvalidOption),
    (wire.Settle((settlement(state=State.WAITING),)), InvalidOption),
    (wire.Settle((settlement(state=State.RUNNING),)), InvalidOption),
    (wire.Settle((settlement(result=b"nonsense"),)), InvalidPayload),
    (wire.Settle((settlement(delay_ms=10**15),)), InvalidOption),
    (wire.Settle((settlement(error=error(message=LONG)),)), InvalidOption),
    (wire.Settle((settlement(error=error(traceback=LONG)),)), InvalidOption),
    (wire.Settle((settlement(error=error(kind="\0")),)), InvalidOption),
    (wire.Settle((settlement(follow_ups=(spec(type=""),)),)), InvalidName),
    (wire.Settle((settlement(follow_ups=(spec(),) * 1_001),)), InvalidOption),
    (wire.Heartbeat(WorkerInfo(id="w", host=LONG), 1_000, ()), InvalidOption),
    (wire.Heartbeat(WorkerInfo(id="w", types=("a b",)), 1_000, ()), InvalidName),
    (wire.Heartbeat(WorkerInfo(id="w", pid=-1), 1_000, ()), InvalidOption),
    (wire.Heartbeat(WorkerInfo(id=""), 1_000, ()), InvalidOption),
    (wire.Heartbeat(WorkerInfo(id="w"), 1_000, (Note(id="a", token="t", progress=float("nan")),)), InvalidOption),
    (wire.Heartbeat(WorkerInfo(id="w"), 1_000, (Note(id="a", token="t", text=LONG),)), InvalidOption),
    (wire.Heartbeat(WorkerInfo(id="w"), 1_000, (Note(id="a", token="t", step=LONG),)), InvalidOption),
    (wire.Heartbeat(WorkerInfo(id="w"), 1_000, (Note(id="a", token="t", step="s", result=b"x"),)), InvalidPayload),
    (wire.Retire("w", LONG), InvalidOption),
    (wire.Tick(-1, Keep()), InvalidOption),
    (wire.Tick(1, Keep(failed_ms=-5)), InvalidOption),
    (wire.Fire((Firing(name="a b", revision=1, done_ms=0, new_done_ms=1, next_ms=2),)), InvalidName),
    (wire.Fire((Firing(name="a", revision=1, done_ms=0, new_done_ms=1 << 62, next_ms=2),)), InvalidOption),
    (wire.Get((LONG,)), InvalidOption),
    (wire.Get(("\0",)), InvalidOption),
    (wire.Find(Query(queue="\0")), InvalidOption),
    (wire.Find(Query(limit=0)), InvalidOption),
    (wire.Find(Query(limit=10**9)), InvalidOption),
    (wire.Find(Query(cursor=LONG)), InvalidOption),
    (wire.Find(Query(created_from_ms=1 << 63)), InvalidOption),
    (wire.Workflows(10**9, None), InvalidOption),
    (wire.RerunJobs((Rerun(id="a", payload=b"no"),)), InvalidPayload),
    (wire.RerunJobs((Rerun(id="a", queue="a b"),)), InvalidName),
    (wire.RerunJobs((Rerun(id="a", max_attempts=0),)), InvalidOption),
    (wire.ChangeQueues((QueueChange(queue="a b", paused=True),)), InvalidName),
    (wire.ChangeQueues((QueueChange(queue="a", capacity=-1),)), InvalidOption),
    (wire.ChangeLimits((Limit(type="a b", rate=1),), None), InvalidName),
    (wire.ChangeLimits((Limit(type="a", rate=10**9),), None), InvalidOption),
    (wire.ChangeLimits((Limit(type="a", rate=1, source="\n"),), None), InvalidOption),
    (
        wire.ChangeSchedules((ScheduleChange(name="a", define=Schedule(name="b", spec=spec(), every_ms=1_000)),)),
        InvalidName,
    ),
    (
        wire.ChangeSchedules((ScheduleChange(name="a", define=Schedule(name="a", spec=spec(), cron="x" * 300)),)),
        InvalidOption,
    ),
    (
        wire.ChangeSchedules((ScheduleChange(name="a", define=Schedule(name="a", spec=spec(), every_ms=1)),)),
        InvalidOption,
    ),
    (wire.HandOver("", 1, None), InvalidOption),
    (wire.HandOver("s", 10**6, None), InvalidOption),
    (moved(state=State.RUNNING), InvalidOption),
    (moved(payload=b"no"), InvalidPayload),
    (moved(steps={"a": b"no"}), InvalidPayload),
    (moved(errors=(error(),) * 51), InvalidOption),
    (moved(created_at_ms=1 << 62), InvalidOption),
    (moved(progress=float("inf")), InvalidOption),
]


@pytest.mark.parametrize(("arguments", "kind"), REFUSED, ids=lambda value: type(value).__name__)
def test_what_no_honest_caller_sends_is_refused(arguments: msgspec.Struct, kind: type[PackhorseError]) -> None:
    with pytest.raises(kind) as raised:
        check_arguments(arguments)
    assert len(str(raised.value)) < 500, "what is refused is shown shortened"


def test_what_an_app_makes_is_let_through() -> None:
    from packhorse import Packhorse

    app = Packhorse("memory://")
    made = app.spec(
        "email",
        {"to": ["ä", 1, 1.5, None, True]},
        {
            "priority": "high",
            "delay": "10y" if False else 60,
            "unique": True,
            "unique_for": "1h",
            "after": ["x"],
            "key": "customer ü",
            "tags": ["a", "b"],
            "meta": {"a": "b\n"},
            "timeout": None,
            "max_attempts": 1_000,
        },
    )
    check_arguments(wire.Enqueue((made,)))


BODIES: list[tuple[bytes, int]] = [
    (b"", 422),
    (b"\xc1", 422),
    (b"nonsense", 422),
    (b"\x80", 422),
    (b"\x81\xa5specs\xdd\xff\xff\xff\xff", 422),
    (b"\x81\xa5specs\xdd\x00\x00\x03\xe9" + b"\x80" * 1_001, 422),
    (b"\xdf\xff\xff\xff\xff", 422),
    (b"\x81\xa1x" + b"\x91" * 1_000_000, 422),
    (b"\x81\xa5specs\x91\x82\xa2id\xa1a\xa4type\xa2\xff\xfe", 422),
    (msgspec.msgpack.encode({"specs": [{"id": 1, "type": "t"}]}), 422),
    (msgspec.msgpack.encode({"specs": [{"id": "a", "type": "t", "payload": "text"}]}), 422),
    (msgspec.msgpack.encode({"specs": [{"id": "a", "type": "t", "delay_ms": 1e300}]}), 422),
    (msgspec.msgpack.encode({"specs": []}) + b"trailing", 422),
    (bytes(wire.CALL_BYTES_MAX + 1), 413),
]


def test_a_body_that_cannot_be_read_is_a_problem_and_the_server_lives() -> None:
    """C13, C16, C32: bombs of depth and length cost nothing, and no parser's error is a 500."""

    async def main() -> None:
        async with served() as url, aiohttp.ClientSession() as client:
            for body, status in BODIES:
                headers = {"Content-Type": wire.MEDIA_TYPE}
                async with client.post(f"{url}{wire.ENQUEUE.path}", data=io.BytesIO(body), headers=headers) as answer:
                    assert answer.status == status, (body[:40], await answer.text())
                    assert answer.content_type == "application/problem+json"
            for media_type in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
                headers = {"Content-Type": media_type}
                async with client.post(f"{url}{wire.COUNTS.path}", data=b"\x80", headers=headers) as answer:
                    assert answer.status == 415
            async with client.get(f"{url}{wire.DELETE.path}") as answer:
                assert answer.status == 405, "C31"
            headers = {"Content-Type": wire.MEDIA_TYPE}
            async with client.post(f"{url}{wire.COUNTS.path}", data=b"\x80", headers=headers) as answer:
                assert (answer.status, await answer.read()) == (200, b"\x80")

    asyncio.run(main())


def test_topics_are_bounded() -> None:
    async def main() -> None:
        async with served() as url, aiohttp.ClientSession() as client:
            headers = {"Content-Type": wire.MEDIA_TYPE}
            for body in (
                wire.write(wire.Watch(tuple(f"t{number}" for number in range(wire.TOPICS_MAX + 1)))),
                wire.write(wire.Watch(("x" * (wire.TOPIC_CHARS_MAX + 1),))),
            ):
                async with client.post(f"{url}{wire.WATCH.path}", data=body, headers=headers) as answer:
                    assert answer.status == 422
            body = wire.write(wire.Watch(()))
            async with client.post(f"{url}{wire.WATCH.path}/{'0' * 32}", data=body, headers=headers) as answer:
                assert answer.status == 404

    asyncio.run(main())
