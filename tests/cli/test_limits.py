"""`packhorse limits`, and the capacity of queues."""

from __future__ import annotations

import asyncio

import pytest

from packhorse.backends.base import Capabilities, Limit, WorkerInfo

from .kit import Cli, SharedMemory


def test_set_show_list_and_clear(cli: Cli) -> None:
    cli.add()
    out = cli("limits", "set", "email", "--rate", "50/s", "--burst", "10", "--concurrency", "3")
    assert (out.stdout, out.stderr) == ("email limited to 50/s (burst 10), 3 at once\n", "")
    cli("limits", "set", "email", "--key", "k", "--rate", "5/10s")
    cli("limits", "set", "email", "--each-key", "--concurrency", "1")
    shown = cli.json("limits", "list")
    assert shown["next"] is None
    assert shown["items"][0] == {
        "type": "email",
        "key": None,
        "rate": "50/s",
        "burst": 10,
        "concurrency": 3,
        "source": "operator",
    }
    assert [(item["key"], item["rate"], item["concurrency"]) for item in shown["items"]] == [
        (None, "50/s", 3),
        ("*", None, 1),
        ("k", "5/10s", None),
    ]
    assert [line.split()[:3] for line in cli("limits", "list").stdout.splitlines()[1:]] == [
        ["email", "50/s", "10"],
        ["email", "(each)", "1"],
        ["email", "k", "5/10s"],
    ]
    assert cli("limits", "clear", "email", "--key", "k").stdout == "the limit of key k of email is cleared\n"
    assert (
        "no limit of key k of email; see: packhorse limits list"
        in cli("limits", "clear", "email", "--key", "k", code=1).stderr
    )
    assert cli.json("limits", "clear", "email", "--each-key") == {"type": "email", "key": "*", "cleared": True}
    cli("limits", "clear", "email")
    assert "no limits; set one" in cli("limits", "list").stderr
    assert cli.json("limits", "list") == {"items": [], "next": None}


def test_show_has_the_state_now(cli: Cli) -> None:
    cli("limits", "set", "email", "--rate", "1/h", "--concurrency", "9")
    cli("limits", "set", "sms", "--concurrency", "1")
    cli.add()
    cli.add(type="sms")
    assert cli.json("limits", "show", "email")["items"][0]["opens_in_ms"] == 0
    assert cli("limits", "show", "email").stdout.splitlines()[1].endswith("open")
    cli.start(2)
    (email,) = cli.json("limits", "show", "email", "--key", "k")["items"]
    assert email["running"] == 1
    assert 3_500_000 < email["opens_in_ms"] <= 3_600_000
    assert "in 59m" in cli("limits", "show", "email").stdout
    assert cli.json("limits", "show", "sms")["items"][0]["opens_in_ms"] is None
    assert cli("limits", "show", "sms").stdout.splitlines()[1].endswith("when one ends")
    assert "no limit holds jobs of other with the key k" in cli("limits", "show", "other", "--key", "k").stderr


def test_a_part_that_is_not_given_stays(cli: Cli) -> None:
    cli("limits", "set", "email", "--rate", "50/s")
    cli("limits", "set", "email", "--concurrency", "3")
    assert cli.json("limits", "set", "email", "--burst", "7")["rate"] == "50/s"
    (limit,) = cli.json("limits", "list")["items"]
    assert (limit["rate"], limit["burst"], limit["concurrency"]) == ("50/s", 7, 3)


def test_a_limit_of_the_code_says_so(cli: Cli) -> None:
    asyncio.run(cli.backend().limits([Limit(type="email", rate=1, source="code")]))
    assert cli.json("limits", "list")["items"][0]["source"] == "code"


def test_a_type_that_nobody_has_is_limited_with_a_warning(cli: Cli) -> None:
    out = cli("limits", "set", "emial", "--rate", "1/s")
    assert "no live worker knows the type emial and no job has it now" in out.stderr
    assert cli.json("limits", "set", "emial", "--rate", "1/s")["known"] is False
    asyncio.run(cli.backend().heartbeat(WorkerInfo(id="w", types=("sms",)), 30_000))
    assert cli("limits", "set", "sms", "--rate", "1/s").stderr == ""


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("set", "email"), "needs a rate"),
        (("set", "email", "--rate", "0/s"), "to lift a limit, clear it"),
        (("set", "email", "--rate", "fast"), "write 50/s"),
        (("set", "email", "--concurrency", "0"), "to lift a limit, clear it"),
        (("set", "email", "--burst", "3"), "give a rate too"),
        (("set", "a b", "--rate", "1/s"), "cannot name a job type"),
        (("set", "email", "--key", "", "--rate", "1/s"), "key"),
        (("set", "email", "--key", "k", "--each-key", "--rate", "1/s"), "not both"),
        (("clear", "email", "--key", "k", "--each-key"), "not both"),
        (("clear", "a b"), "cannot name a job type"),
        (("show", "email", "--key", "\n"), "printable"),
        (("show", "a b"), "cannot name a job type"),
    ],
)
def test_wrong_use_of_limits(cli: Cli, args: tuple[str, ...], says: str) -> None:
    assert says in cli("limits", *args, code=2).stderr
    assert cli.json("limits", "list")["items"] == []


def test_a_store_that_cannot_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedMemory, "capabilities", Capabilities(durable=False, shared=True))
    for args in (("list",), ("show", "email"), ("set", "email", "--rate", "1/s"), ("clear", "email")):
        assert "does not support 'limits'" in cli("limits", *args, code=1).stderr
    assert "does not support 'capacity'" in cli("queues", "capacity", "default", "1", code=1).stderr


# ---- capacity ----------------------------------------------------------------------------------------------


def test_the_capacity_of_a_queue_is_set_shown_and_lifted(cli: Cli) -> None:
    assert cli("queues", "capacity", "mail", "2").stdout == "queue mail holds at most 2 pending jobs\n"
    assert cli.json("queues", "list")["items"][0]["capacity"] == 2
    assert cli("queues", "list").stdout.splitlines()[1].split()[-1] == "2"
    cli.add(2, queue="mail")
    full = cli("submit", "-t", "email", "--queue", "mail", "--full-timeout", "0", code=1).stderr
    assert "queue 'mail' is full (2 jobs)" in full
    assert cli.json("queues", "capacity", "mail", "0") == {"queue": "mail", "capacity": None}
    cli("submit", "-t", "email", "--queue", "mail", "--full-timeout", "0")
    assert cli("queues", "capacity", "mail", "0").stdout == "queue mail holds any number of jobs\n"


def test_submit_waits_as_long_as_the_setting_says(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("queues", "capacity", "default", "1")
    cli("submit", "-t", "email")
    monkeypatch.setenv("PACKHORSE_ENQUEUE_TIMEOUT", "20ms")
    assert "is full" in cli("submit", "-t", "email", code=1).stderr


@pytest.mark.parametrize("args", [("a b", "1"), ("default", "-1"), ("default", "x"), ("default", "99999999999")])
def test_wrong_use_of_capacity(cli: Cli, args: tuple[str, ...]) -> None:
    cli("queues", "capacity", *args, code=2)
    assert cli.json("queues", "list")["items"] == []


# ---- unique and idempotent jobs ------------------------------------------------------------------------------


def test_submit_with_an_idempotency_key(cli: Cli) -> None:
    first = cli.json("submit", "-t", "email", "-p", '{"n": 1}', "--idempotency-key", "order-7")
    again = cli("submit", "-t", "email", "-p", '{"n": 1}', "--idempotency-key", "order-7")
    assert again.stdout == f"{first['id']} was enqueued with this idempotency key before; nothing was added\n"
    other = cli("submit", "-t", "email", "-p", '{"n": 2}', "--idempotency-key", "order-7", code=1)
    assert f"used for job {first['id']}" in other.stderr
    document = '{"type": "email", "payload": {"n": 1}, "idempotency_key": "order-7"}'
    assert cli.json("submit", document) == {"id": first["id"], "created": False}


def test_submit_with_all_there_is_to_say_about_a_key(cli: Cli) -> None:
    job = ("submit", "-t", "email", "--unique", "k", "--unique-for", "1h")
    first = cli.json(*job)
    cli("jobs", "cancel", first["id"])
    assert cli.json(*job) == {"id": first["id"], "created": False}  # held although it has ended
    assert "held by job" in cli(*job, "--on-conflict", "refuse", code=1).stderr
    assert "give unique too" in cli("submit", "-t", "email", "--unique-for", "1h", code=2).stderr
    by_arguments = '{"type": "email", "payload": {"a": 1, "b": %d}, "unique": ["a"]}'
    assert cli.json("submit", by_arguments % 1)["created"]
    assert not cli.json("submit", by_arguments % 2)["created"]
