"""The job types as a worker runs them: typed, idempotent, permanent errors told from transient ones."""

from __future__ import annotations

import asyncio
import json
import mailbox
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from packhorse import InvalidPayload, Packhorse, State
from packhorse.demo import png
from packhorse.demo.faults import FAULT_META
from packhorse.demo.textindex import TextIndex
from packhorse.job import TERMINAL, JobRecord

WITHIN_S = 30


@pytest.fixture
def app(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Packhorse:
    from packhorse.demo.jobs import app

    monkeypatch.setattr(app, "settings", msgspec.structs.replace(app.settings, url=f"memory://{data_dir.parent.name}"))
    return app


def run(app: Packhorse, *jobs: dict[str, Any]) -> list[JobRecord]:
    """Enqueue `jobs` and work until all have ended; answers their records."""

    async def main() -> list[JobRecord]:
        async with app, app.worker(concurrency=10), asyncio.timeout(WITHIN_S):
            handles = await app.aenqueue_many(jobs)
            for handle in handles:
                while (await handle.astate()) not in TERMINAL:
                    await asyncio.sleep(0.005)
            return [await handle.arecord() for handle in handles]

    return asyncio.run(main())


def result(record: JobRecord) -> Any:
    assert record.state is State.SUCCEEDED, record.errors
    return msgspec.json.decode(record.result or b"null")


def paths(directory: Path) -> list[str]:
    with closing(TextIndex(directory / "index.db")) as index:
        return index.paths()


def job(job_type: str, payload: Any, fault: str = "", **options: Any) -> dict[str, Any]:
    return {
        "type": job_type,
        "payload": payload,
        "max_attempts": 3,
        "meta": {FAULT_META: fault} if fault else None,
        **options,
    }


def test_a_source_of_the_standard_library_is_indexed(app: Packhorse, data_dir: Path) -> None:
    (record,) = run(app, job("index_document", {"path": "json/encoder.py"}))

    assert result(record)["changed"] is True
    assert paths(data_dir) == ["json/encoder.py"]


def test_a_text_can_be_given_and_deleted(app: Packhorse, data_dir: Path) -> None:
    given = job("index_document", {"path": "note", "text": "a horse is a horse"})
    assert result(run(app, given)[0]) == {"path": "note", "characters": 18, "changed": True}
    assert result(run(app, given)[0])["changed"] is False

    assert result(run(app, job("delete_document", {"path": "note"}))[0])["removed"] is True
    assert result(run(app, job("delete_document", {"path": "note"}))[0])["removed"] is False
    assert paths(data_dir) == []


@pytest.mark.parametrize(
    "path", ["../../../etc/passwd", "/etc/passwd", "no/such/file.py", "a\u0001b", "x" * 501, "json"]
)
def test_only_texts_of_the_allowed_directories_are_read(app: Packhorse, path: str) -> None:
    (record,) = run(app, job("index_document", {"path": path}))

    assert (record.state, record.attempt) == (State.FAILED, 1)


def test_a_link_out_of_the_documents_directory_is_not_followed(app: Packhorse, data_dir: Path) -> None:
    (data_dir / "documents").mkdir()
    (data_dir / "secret.txt").write_text("secret")
    (data_dir / "documents" / "link.txt").symlink_to(data_dir / "secret.txt")

    assert run(app, job("index_document", {"path": "link.txt"}))[0].state is State.FAILED


def test_a_failure_after_the_work_does_the_work_again_and_harms_nothing(app: Packhorse, data_dir: Path) -> None:
    records = run(
        app,
        job("index_document", {"path": "json/decoder.py"}, "after:2"),
        job("email", {"to": "a@example.com", "subject": "Hi"}, "after:2"),
        job("notification", {"message": "hello"}, "after:2"),
    )

    assert [(record.state, record.attempt) for record in records] == [(State.SUCCEEDED, 3)] * 3
    assert {error.kind for record in records for error in record.errors} == {"InjectedFault"}
    assert paths(data_dir) == ["json/decoder.py"]
    assert len(mailbox.Maildir(data_dir / "mail")) == 1
    (line,) = (data_dir / "outbox.jsonl").read_text().splitlines()
    assert json.loads(line)["message"] == "hello"


def test_faults_for_good(app: Packhorse, data_dir: Path) -> None:
    never, always = run(
        app,
        job("index_document", {"path": "json/decoder.py"}, "never"),
        job("index_document", {"path": "json/scanner.py"}, "before:1000"),
    )

    assert (never.state, never.attempt) == (State.FAILED, 1)
    assert (always.state, always.attempt) == (State.FAILED, 3)
    assert paths(data_dir) == []


def test_messages_may_be_plain_text(app: Packhorse, data_dir: Path) -> None:
    mail, notice = run(
        app, job("email", "send welcome email to user@example.com"), job("notification", "the shelf was sorted")
    )

    assert result(mail)["to"] == "user@example.com"
    assert result(notice) == {"to": "everybody", "new": True}


def test_an_address_that_is_none_is_not_tried_again(app: Packhorse) -> None:
    (record,) = run(app, job("email", {"to": "nobody"}))

    assert (record.state, record.attempt, record.errors[0].kind) == (State.FAILED, 1, "Unfit")


def test_math(app: Packhorse) -> None:
    small, large, bad = run(
        app,
        job("math", {"operation": "fibonacci", "value": 10}),
        job("math", {"operation": "factorial", "value": 30}),
        job("math", {"operation": "fibonacci", "value": -1}),
    )

    assert result(small) == 55
    assert result(large) == "265252859812191058636308480000000"
    assert bad.state is State.FAILED


@pytest.mark.parametrize(
    ("job_type", "payload"),
    [
        ("math", {"operation": "divide", "value": 1}),
        ("math", {"operation": "fibonacci", "value": "10"}),
        ("math", {"operation": "fibonacci", "value": 10, "extra": 1}),
        ("email", {"subject": "to nobody"}),
        ("notification", {"message": "x", "colour": "red"}),
        ("image_resize", {"source": "rgb.png"}),
        ("index_document", {}),
    ],
)
def test_arguments_are_checked_before_anything_is_stored(app: Packhorse, job_type: str, payload: Any) -> None:
    with pytest.raises(InvalidPayload):
        app.spec(job_type, payload)


def test_a_picture_is_scaled_in_a_process_of_its_own(app: Packhorse, data_dir: Path) -> None:
    (data_dir / "images").mkdir()
    picture = png.Image(4, 2, 3, bytes(range(24)))
    (data_dir / "images" / "small.png").write_bytes(png.encode(picture))

    (record,) = run(app, job("image_resize", {"source": "small.png", "width": 2, "height": 1}))

    written = data_dir / result(record)["file"]
    assert png.decode(written.read_bytes()) == png.resize(picture, 2, 1)


@pytest.mark.parametrize(
    ("source", "width", "height"),
    [
        ("broken.png", 2, 2),
        ("nothing.png", 2, 2),
        ("../outside.png", 2, 2),
        ("good.png", 0, 2),
        ("good.png", 1 << 40, 2),
    ],
)
def test_pictures_that_cannot_be_scaled_fail_for_good(
    app: Packhorse, data_dir: Path, source: str, width: int, height: int
) -> None:
    good = png.encode(png.Image(2, 2, 1, b"abcd"))
    (data_dir / "images").mkdir()
    (data_dir / "images" / "good.png").write_bytes(good)
    (data_dir / "images" / "broken.png").write_bytes(good[:-5])
    (data_dir / "outside.png").write_bytes(good)

    (record,) = run(app, job("image_resize", {"source": source, "width": width, "height": height}))

    assert (record.state, record.attempt) == (State.FAILED, 1)


def test_a_report_counts_what_is_in_the_index(app: Packhorse, data_dir: Path) -> None:
    run(app, *[job("index_document", {"path": f"{i}", "text": "horse " * i}) for i in range(1, 4)])

    (record,) = run(app, job("report", {"name": "all", "top": 2}))

    assert result(record) == {"documents": 3, "bytes": 36, "files": ["reports/all.md", "reports/all.csv"]}
    assert "| horse | 6 | 3 |" in (data_dir / "reports" / "all.md").read_text()
    assert "word,horse,6" in (data_dir / "reports" / "all.csv").read_text()


@pytest.mark.parametrize("payload", [{"name": "../x"}, {"name": ""}, {"top": 0}, {"top": 1_001}])
def test_reports_with_bad_names_or_sizes_are_refused(app: Packhorse, payload: dict[str, Any]) -> None:
    assert run(app, job("report", payload))[0].state is State.FAILED


def test_every_job_type_says_what_it_does(app: Packhorse) -> None:
    assert set(app.tasks) == {
        "email",
        "notification",
        "report",
        "math",
        "image_resize",
        "index_document",
        "delete_document",
    }
    assert all(task.description and task.defaults["timeout_ms"] <= 30_000 for task in app.tasks.values())
