"""`packhorse submit`, and its other names `enqueue` and `publish`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from packhorse.backends.base import Capabilities
from packhorse.codec import PAYLOAD_BYTES_MAX
from packhorse.job import JobRecord

from .kit import Cli, SharedMemory


def stored(cli: Cli) -> list[JobRecord]:
    from packhorse.backends.base import Query

    return asyncio.run(cli.backend().find(Query(limit=1000))).jobs


def test_submit_says_the_id_and_the_queue(cli: Cli) -> None:
    out = cli("submit", "-t", "email", "-p", '{"to": "a@example.com"}').stdout
    (job,) = stored(cli)
    assert out == f"{job.id} enqueued in queue default\n"
    assert (job.type, job.payload, job.state) == ("email", b'{"to":"a@example.com"}', "pending")


@pytest.mark.parametrize("name", ["submit", "enqueue", "publish"])
@pytest.mark.parametrize(
    "args",
    [
        ("-t", "email", "-p", '{"to": "a"}'),
        ('{"type": "email", "payload": {"to": "a"}}',),
    ],
)
def test_three_names_and_two_forms_store_the_same_job(cli: Cli, name: str, args: tuple[str, ...]) -> None:
    cli(name, *args)
    (job,) = stored(cli)
    assert (job.type, job.payload) == ("email", b'{"to":"a"}')


def test_every_option_reaches_the_job(cli: Cli) -> None:
    cli(
        *("submit", "-t", "report", "-p", "[1, 2]", "--queue", "slow", "--priority", "high", "-r", "2", "--in", "5m"),
        *(
            "--unique",
            "daily",
            "--key",
            "tenant 1",
            "--tag",
            "a",
            "--tag",
            "b",
            "--timeout",
            "90s",
            "--meta",
            "by=me=x",
        ),
    )
    (job,) = stored(cli)
    assert (job.queue, job.priority, job.max_attempts, job.timeout_ms) == ("slow", 2, 3, 90_000)
    assert (job.unique, job.key, job.tags, job.meta) == ("daily", "tenant 1", ("a", "b"), {"by": "me=x"})
    assert job.state == "scheduled"
    assert job.due_at_ms - job.created_at_ms == 300_000


def test_the_json_argument_takes_every_option_by_name(cli: Cli) -> None:
    document = {
        "type": "t",
        "payload": None,
        "queue": "q",
        "priority": 0,
        "max_retries": 9,
        "delay": "1h",
        "tags": ["x"],
    }
    cli("enqueue", json.dumps(document), "--key", "k")
    (job,) = stored(cli)
    assert (job.payload, job.queue, job.priority, job.max_attempts) == (b"null", "q", 0, 10)
    assert (job.state, job.tags, job.key) == ("scheduled", ("x",), "k")


def test_at_is_an_instant_with_an_offset(cli: Cli) -> None:
    cli("submit", "-t", "t", "--at", "2031-01-31T09:00:00+01:00")
    (job,) = stored(cli)
    assert abs(job.due_at_ms - 1_927_612_800_000) < 2_000  # the way of the job is a duration, cut at ms


def test_a_missing_payload_is_an_empty_object_and_null_stays_null(cli: Cli) -> None:
    cli("submit", "-t", "t")
    cli("submit", "-t", "t", "-p", "null")
    assert [job.payload for job in stored(cli)] == [b"null", b"{}"]


def test_outputs(cli: Cli) -> None:
    assert cli("submit", "-t", "t", "--id-only").stdout.strip() == stored(cli)[0].id
    shown = cli.json("submit", "-t", "t")
    assert shown == {"id": stored(cli)[0].id, "created": True}


def test_a_taken_unique_key_answers_with_its_holder(cli: Cli) -> None:
    first = cli.json("submit", "-t", "t", "--unique", "k")
    assert cli.json("submit", "-t", "t", "--unique", "k") == {"id": first["id"], "created": False}
    assert "nothing was added" in cli("submit", "-t", "t", "--unique", "k").stdout
    assert len(stored(cli)) == 1


# ---- where the payload comes from --------------------------------------------------------------------------


def test_payload_from_a_file(cli: Cli, directory: Path) -> None:
    (directory / "p.json").write_text('{"a": [1, "ü"]}\n', encoding="utf-8")
    cli("submit", "-t", "t", "-p", "@p.json")
    assert json.loads(stored(cli)[0].payload) == {"a": [1, "ü"]}


def test_payload_and_document_from_stdin(cli: Cli) -> None:
    cli("submit", "-t", "t", "-p", "-", input='{"a": 1}\n')
    cli("enqueue", "-", input='{"type": "u", "payload": "x"}')
    assert [(job.type, job.payload) for job in stored(cli)] == [("u", b'"x"'), ("t", b'{"a":1}')]


@pytest.mark.parametrize("name", ["gone.json", "", ".", "a\0b"])
def test_a_file_that_cannot_be_read(cli: Cli, name: str) -> None:
    assert "cannot be read" in cli("submit", "-t", "t", "-p", f"@{name}", code=2).stderr
    assert not stored(cli)


def test_a_huge_payload_is_refused_with_the_place(cli: Cli, directory: Path) -> None:
    """C13, C16: from a file, from stdin, as an argument, and inside a document; nothing is read past the limit."""
    text = json.dumps("x" * PAYLOAD_BYTES_MAX)
    (directory / "big.json").write_text(text)
    for args, given in (
        (("-t", "t", "-p", "@big.json"), None),
        (("-t", "t", "-p", "-"), text),
        (("-t", "t", "-p", text), None),
        (("-",), '{"type": "t", "payload": ' + text + "}"),
    ):
        stderr = cli("submit", *args, code=1, input=given).stderr
        assert "1,048,57" in stderr
        assert "at the top level" in stderr
    assert not stored(cli)


def test_a_payload_of_the_largest_size_is_taken(cli: Cli, directory: Path) -> None:
    (directory / "p.json").write_text(json.dumps("x" * (PAYLOAD_BYTES_MAX - 2)))
    cli("submit", "-t", "t", "-p", "@p.json")
    assert len(stored(cli)[0].payload) == PAYLOAD_BYTES_MAX


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("{'a': 1}", "not JSON"),
        ('{"a": NaN}', "at /a"),
        ('{"a": 1e999}', "at /a"),
        ('{"a": [1, 99999999999999999999]}', "at /a/1"),
        ('{"a": ' + "9" * 5000 + "}", "at /a"),
        ('{"a": 1, "a": 2}', "there twice"),
        ('{"a": "\\u0000"}', "NUL"),
        ('"\\ud800"', "lone surrogates"),
        ("[" * 200_000, "deeper"),
        ("[" * 65 + "]" * 65, "deeper"),
    ],
)
def test_a_payload_that_no_backend_may_store(cli: Cli, payload: str, says: str) -> None:
    """C13."""
    assert says in cli("submit", "-t", "t", "-p", payload, code=1).stderr
    assert not stored(cli)


def test_bytes_that_are_not_utf8(cli: Cli) -> None:
    assert "not UTF-8" in cli("submit", "-t", "t", "-p", "-", code=1, input=b'"\xff"').stderr


# ---- wrong use -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "give -t TYPE"),
        (("-p", "{}"), "give -t TYPE"),
        (("-t", "t", '{"type": "t"}'), "not both"),
        (('{"type": "t"}', "-p", "{}"), "not both"),
        (("[]",), "must be an object"),
        (('{"type": 1}',), "must be an object"),
        (('{"payload": {}}',), "must be an object"),
        (('{"type": "t", "colour": "red"}',), "there is no option 'colour'"),
        (('{"type": "t", "queue": "a"}', "--queue", "b"), "give it once"),
        (('{"type": "t", "max_retries": "3"}',), "max_retries"),
        (("-t", "a b"), "cannot name a job type"),
        (("-t", "t" * 129), "cannot name a job type"),
        (("-t", "t", "--queue", "a b"), "cannot name a queue"),
        (("-t", "t", "--queue", ""), "cannot name a queue"),
        (("-t", "t", "--priority", "urgent"), "high, normal, low"),
        (("-t", "t", "--priority", "10"), "high, normal, low"),
        (("-t", "t", "--priority", "٣"), "high, normal, low"),
        (("-t", "t", "-r", "x"), "-r"),
        (("-t", "t", "-r", "-1"), "max_retries"),
        (("-t", "t", "-r", "1000"), "max_retries"),
        (("-t", "t", "--max-attempts", "0"), "max_attempts"),
        (("-t", "t", "-r", "1", "--max-attempts", "2"), "give --retries or --max-attempts, not both"),
        (("-t", "t", "--at", "2031-01-31T09:00:00"), "no time zone"),
        (("-t", "t", "--at", "tomorrow"), "not an instant"),
        (("-t", "t", "--at", "9999-12-31T23:59:59Z"), "ten years"),
        (("-t", "t", "--in", "-5s"), "not a duration"),
        (("-t", "t", "--in", "5 weeks"), "not a duration"),
        (("-t", "t", "--in", "99999d"), "out of bounds"),
        (("-t", "t", "--in", "1s", "--at", "2031-01-31T09:00:00Z"), "give --in or --at, not both"),
        (("-t", "t", "--timeout", "x"), "timeout"),
        (("-t", "t", "--timeout", "8d"), "timeout"),
        (("-t", "t", "--unique", ""), "unique"),
        (("-t", "t", "--unique", "x" * 257), "unique"),
        (("-t", "t", "--key", "a\nb"), "key"),
        (("-t", "t", "--tag", "a,b"), "cannot name a tag"),
        (("-t", "t", *("--tag", "x") * 1, *[arg for n in range(33) for arg in ("--tag", f"t{n}")]), "up to 32"),
        (("-t", "t", "--meta", "a"), "NAME=TEXT"),
        (("-t", "t", "--meta", "a b=c"), "cannot name a meta entry"),
        (("-t", "t", "--json", "--id-only"), "not both"),
        (("-", "-t", "t"), "not both"),
        (("-t", "t", "--what"), "No such option"),
    ],
)
def test_wrong_use_is_refused_before_the_store_is_opened(cli: Cli, args: tuple[str, ...], says: str) -> None:
    assert says in cli("submit", *args, code=2).stderr
    assert cli.opened == 0


def test_what_the_backend_cannot_do_is_refused_by_name(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedMemory, "capabilities", Capabilities(durable=False, shared=True))
    stderr = cli("submit", "-t", "t", "--after", "01a20000-0000-7000-8000-000000000000", code=1).stderr
    assert "does not support 'dependencies'" in stderr
    assert not stored(cli)
