"""The dead letter workshop: failures by what went wrong, started over at a rate or edited, and purged."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from packhorse import admin_failed
from packhorse.admin import Admin
from packhorse.backends.base import Query
from packhorse.cli import editing
from packhorse.job import State

from .kit import Cli


@pytest.fixture
def failures(cli: Cli) -> dict[str, list[str]]:
    """Three kinds of failure, by a word for each."""
    return {
        "address": [cli.fail(message=f"no address 'a{n}@example.com'", type="mail")[0] for n in range(3)],
        "limit": cli.fail(2, message="took 31 s, limit 30", type="report", queue="slow"),
        "other": cli.fail(message="disk full", type="mail"),
    }


def groups(cli: Cli, *args: str) -> dict[str, Any]:
    return {group["title"]: group for group in cli.json("list-failed", "--group", *args)["items"]}


def test_failures_are_grouped_by_what_went_wrong(cli: Cli, failures: dict[str, list[str]]) -> None:
    found = cli.json("list-failed", "--group")
    assert (found["jobs"], found["others"], found["next"]) == (6, None, None)
    assert [group["jobs"] for group in found["items"]] == [3, 2, 1]
    first = found["items"][0]
    assert first["title"] == "ValueError: no address #"
    assert (first["types"], first["queues"]) == ({"mail": 3}, {"default": 3})
    assert first["example"] in failures["address"]
    assert first["first_at"] <= first["last_at"]
    lines = cli("list-failed", "--group").stdout.splitlines()
    assert lines[0].split() == ["FINGERPRINT", "JOBS", "FIRST", "LAST", "TYPES", "EXAMPLE", "ERROR"]
    assert lines[1].split()[:2] == [first["fingerprint"], "3"]
    assert len(lines) == 4
    assert "2 smaller groups are not shown" in cli("list-failed", "--group", "--limit", "1").stderr


def test_jobs_that_died_with_a_process_are_grouped_by_type(cli: Cli) -> None:
    """A job that ends its process takes those beside it along; the group of its type is the one that grows."""
    ids: dict[str, list[str]] = {}
    for job_type in ("convert", "mail", "convert"):
        cli.add(type=job_type, max_attempts=1)
        ids.setdefault(job_type, []).append(cli.start()[0][0])
        asyncio.run(cli.backend().retire("worker-1", "its runner ended with exit code 139"))
    found = groups(cli)
    assert {title: group["jobs"] for title, group in found.items()} == {
        "LeaseLapsed: its runner ended with exit code # (convert)": 2,
        "LeaseLapsed: its runner ended with exit code # (mail)": 1,
    }
    (mail,) = (group["fingerprint"] for title, group in found.items() if "mail" in title)
    assert cli.json("retry-all", "--group", mail)["done"] == 1
    assert cli.states(ids["convert"]) == ["failed", "failed"]


def test_groups_of_a_filter(cli: Cli, failures: dict[str, list[str]]) -> None:
    assert list(groups(cli, "--type", "report")) == ["ValueError: took # s, limit #"]
    assert groups(cli, "--queue", "default").keys() == {"ValueError: no address #", "ValueError: disk full"}
    assert cli.json("list-failed", "--group", "--type", "none") == {
        "jobs": 0,
        "truncated": False,
        "items": [],
        "others": None,
        "next": None,
    }
    assert "no failed jobs" in cli("list-failed", "--group", "--type", "none").stderr
    assert "leave --cursor out" in cli("list-failed", "--group", "--cursor", "7", code=2).stderr


def test_the_number_of_groups_is_bounded(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_failed, "GROUPS_MAX", 2)
    for word in ("one", "two", "three", "four"):
        cli.fail(message=word)
    found = cli.json("list-failed", "--group")
    assert len(found["items"]) == 2
    assert (found["others"]["jobs"], found["others"]["fingerprint"]) == (2, "others")
    assert "others" in cli("list-failed", "--group").stdout
    assert "of many kinds" in cli("retry-all", "--group", "others", code=2).stderr


def test_grouping_reads_no_payloads_and_counts_as_it_goes(cli: Cli) -> None:
    queries: list[Query] = []

    class Spy(type(cli.backend())):  # type: ignore[misc]  # a class made of what the kit makes
        async def find(self, query: Query) -> Any:
            queries.append(query)
            return await super().find(query)

    for _ in range(2):
        cli.fail(750)
    counts: list[int] = []
    spy = Spy(cli.store)
    found = asyncio.run(Admin(spy).group_failed(Query(), progress=counts.append))
    asyncio.run(Admin(spy).rerun_matching(Query(), dry_run=True))
    assert (found.jobs, counts) == (1_500, [*range(200, 1_500, 200), 1_500])
    assert all(query.brief for query in queries)


def test_a_job_without_an_error_is_a_group_too(cli: Cli) -> None:
    cli.add()
    cli.settle(State.FAILED)
    assert list(groups(cli)) == ["(no error on record)"]
    assert cli.json("retry-all", "--group", "none")["done"] == 1


# ---- starting over -----------------------------------------------------------------------------------------


def test_retry_all_of_a_group(cli: Cli, failures: dict[str, list[str]]) -> None:
    group = groups(cli)["ValueError: no address #"]["fingerprint"]
    assert "3 jobs match" in cli("retry-all", "--group", group, "--dry-run").stdout
    assert cli("retry-all", "--group", group).stdout == "3 jobs rerun\n"
    assert cli.states(failures["address"]) == ["pending"] * 3
    assert cli.states(failures["limit"] + failures["other"]) == ["failed"] * 3
    assert "no jobs match" in cli("retry-all", "--group", group).stderr
    assert "is no fingerprint; see: packhorse list-failed --group" in cli("retry-all", "--group", "x", code=2).stderr


def test_retry_all_at_a_rate_leaves_the_waiting_to_the_store(cli: Cli) -> None:
    ids = cli.fail(25)
    assert cli.json("retry-all", "--rate", "10/s")["done"] == 25
    records = asyncio.run(cli.backend().get(ids))
    due = [record.due_at_ms for record in records if record is not None]
    assert records[0] is not None
    assert records[0].state == "pending"
    assert due == sorted(due)  # the oldest first
    for number, at_ms in enumerate(due):
        assert abs(at_ms - due[0] - number * 100) < 1_000  # each call takes a moment of its own


def test_a_rate_goes_on_over_pages_and_ends_although_jobs_fail_meanwhile(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [job_id for _ in range(3) for job_id in cli.fail(750)]
    rerun = MemoryStoreSpy.rerun_and_fail_one(cli, monkeypatch)
    assert cli.json("retry-all", "--rate", "1000/s")["done"] == 2_250
    assert len(rerun) == 3
    records = [record for record in asyncio.run(cli.backend().get(ids[-250:])) if record is not None]
    assert all(record.state == "scheduled" for record in records)
    assert records[-1].due_at_ms - records[0].due_at_ms >= 249


class MemoryStoreSpy:
    """Lets new jobs fail while a walk goes on."""

    @staticmethod
    def rerun_and_fail_one(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        from packhorse.backends.base import Settlement
        from packhorse.job import JobSpec

        from .kit import CHANCE, SharedMemory

        calls: list[int] = []
        real = SharedMemory.rerun

        async def rerun(self: SharedMemory, reruns: Any) -> Any:
            calls.append(len(reruns))
            answers = await real(self, reruns)
            specs = [JobSpec(id=job_id, type="late", queue="late") for job_id in CHANCE.ids(0, 1_000)]
            await self.enqueue(specs)
            claimed = await self.claim(["late"], 1_000, 30_000, "w")
            await self.settle([Settlement(id=job.id, token=job.token, state=State.FAILED) for job in claimed])
            return answers

        monkeypatch.setattr(SharedMemory, "rerun", rerun)
        return calls


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--rate", "0/s"), "--rate: '0/s' must be 1"),
        (("--rate", "fast"), "write 50/s"),
        (("--group", "zzz"), "is no fingerprint"),
    ],
)
def test_wrong_use_of_retry_all(cli: Cli, args: tuple[str, ...], says: str) -> None:
    cli.fail()
    assert says in cli("retry-all", *args, code=2).stderr
    assert cli.json("stats")["states"]["failed"] == 1


# ---- purging -----------------------------------------------------------------------------------------------


def test_purge_of_a_group_takes_its_failed_jobs_only(cli: Cli, failures: dict[str, list[str]]) -> None:
    group = groups(cli)["ValueError: took # s, limit #"]["fingerprint"]
    assert "2 jobs match" in cli("purge", "--group", group, "--dry-run").stdout
    assert "add --yes" in cli("purge", "--group", group, code=2).stderr
    assert "no jobs match" in cli("purge", "default", "--group", group, "--yes").stderr
    assert cli("purge", "slow", "--group", group, "--yes").stdout == "2 jobs deleted\n"
    assert cli.states(failures["limit"]) == ["gone", "gone"]
    assert cli.json("stats")["states"]["failed"] == 4


def test_purge_by_a_filter(cli: Cli, failures: dict[str, list[str]]) -> None:
    kept = cli.add(1, type="mail", queue="slow")
    assert cli.json("purge", "default", "--type", "mail", "--dry-run")["matched"] == 4
    assert cli.json("purge", "--type", "mail", "--state", "failed", "--yes")["done"] == 4
    assert cli.states(kept) == ["pending"]
    assert cli.json("purge", "slow", "--dry-run")["matched"] == 3
    assert "give QUEUE, or a filter" in cli("purge", "--yes", code=2).stderr
    assert (
        "only failed jobs are in groups"
        in cli("purge", "--group", "none", "--state", "pending", "--yes", code=2).stderr
    )


# ---- editing -----------------------------------------------------------------------------------------------


def test_edit_starts_a_job_over_with_what_was_changed(cli: Cli) -> None:
    (job_id,) = cli.fail(payload=b'{"to":"a"}')
    args = ("-p", '{"to": "b"}', "--queue", "mail", "--priority", "high", "--max-attempts", "9", "--in", "1h")
    assert cli("jobs", "edit", job_id, *args).stdout == f"{job_id} rerun\n"
    job = cli.json("jobs", "show", job_id)
    assert (job["payload"], job["queue"], job["priority"], job["max_attempts"]) == ({"to": "b"}, "mail", 2, 9)
    assert (job["state"], job["attempt"]) == ("scheduled", 0)


def test_edit_of_one_thing_leaves_the_others(cli: Cli) -> None:
    (job_id,) = cli.fail(payload=b'{"to":"a"}', queue="mail")
    assert cli.json("jobs", "edit", job_id, "--priority", "low")["items"] == [{"id": job_id, "answer": "done"}]
    job = cli.json("jobs", "show", job_id)
    assert (job["payload"], job["queue"], job["priority"], job["state"]) == ({"to": "a"}, "mail", 8, "pending")


def test_edit_of_a_job_that_has_not_ended_or_does_not_exist(cli: Cli) -> None:
    (job_id,) = cli.add()
    assert "has not ended; cancel it first" in cli("jobs", "edit", job_id, "-p", "{}", code=1).stderr
    assert "does not exist" in cli("jobs", "edit", "nope", "-p", "{}", code=1).stderr
    assert cli.json("jobs", "show", job_id)["state"] == "pending"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "say what to change"),
        (("-p", "@missing"), "cannot be read"),
        (("--queue", "a b"), "cannot name a queue"),
        (("--priority", "11"), "high, normal, low"),
        (("--max-attempts", "0"), "from 1 to"),
        (("--in", "soon"), "not a duration"),
    ],
)
def test_wrong_use_of_edit(cli: Cli, args: tuple[str, ...], says: str) -> None:
    (job_id,) = cli.fail()
    assert says in cli("jobs", "edit", job_id, *args, code=2).stderr
    assert cli.states([job_id]) == ["failed"]


@pytest.fixture
def editor(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> Any:
    """A person at a terminal, whose editor answers what the test says."""
    shown: list[str] = []
    answers: list[str | None] = []

    def edit(text: str, extension: str) -> str | None:
        shown.append(text)
        return answers.pop(0)

    monkeypatch.setattr(editing, "can_answer", lambda: True)
    monkeypatch.setattr(editing.click, "edit", edit)
    return shown, answers


def test_an_editor_opens_with_the_payload(cli: Cli, editor: Any) -> None:
    shown, answers = editor
    (job_id,) = cli.fail(payload=b'{"to":"a","n":1}')
    answers += ['{"to": "ä", "n": 1}', None, '{"n": 1, "to": "ä"}', "{"]
    cli("jobs", "edit", job_id)
    assert json.loads(shown[0]) == {"to": "a", "n": 1}
    assert cli.json("jobs", "show", job_id)["payload"] == {"to": "ä", "n": 1}
    assert "only an ended one can be edited" in cli("jobs", "edit", job_id, code=1).stderr
    assert len(shown) == 1  # no editor for what cannot be saved
    cli("jobs", "cancel", job_id)
    for _ in range(2):  # closed without saving, and saved as it was
        assert "nothing was changed" in cli("jobs", "edit", job_id).stderr
    assert "not JSON" in cli("jobs", "edit", job_id, code=1).stderr
    assert "not JSON" in cli("jobs", "edit", job_id, "-p", "{", code=1).stderr
    assert cli.states([job_id]) == ["cancelled"]


def test_a_payload_that_is_not_json_cannot_be_edited_but_replaced(cli: Cli, editor: Any) -> None:
    (job_id,) = cli.fail(payload=b"\xff")
    assert "give another one with -p" in cli("jobs", "edit", job_id, code=1).stderr
    cli("jobs", "edit", job_id, "-p", "{}")
    assert cli.states([job_id]) == ["pending"]
