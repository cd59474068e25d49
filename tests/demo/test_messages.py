"""Mail and notifications: real files, delivered once for each job however often it runs."""

from __future__ import annotations

import json
import mailbox
import os
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from packhorse.demo.files import Unfit, append_line, replace_file
from packhorse.demo.mail import BODY_CHARS_MAX, Mail, deliver, read_mail, render

NOW_MS = 1_700_000_000_000


def test_a_mail_is_read_back_as_it_was_meant(tmp_path: Path) -> None:
    mail = Mail(to="a.b+c@example.com", subject="Grüße ☺", body="Line one\n.\nFrom here\nümläut\n")

    assert deliver(render(mail, "job-1", NOW_MS), tmp_path / "mail", "job-1") is True

    (file,) = (tmp_path / "mail" / "new").iterdir()
    message = message_from_bytes(file.read_bytes(), policy=policy.default)
    assert message["To"] == "a.b+c@example.com"
    assert message["Subject"] == "Grüße ☺"
    assert message["Message-ID"] == "<job-1@packhorse.invalid>"
    assert message["Date"].datetime.timestamp() * 1000 == NOW_MS
    assert message.get_content() == mail.body  # type: ignore[attr-defined]


def test_delivering_again_leaves_one_even_when_it_was_read_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "mail"
    message = render(Mail(to="a@example.com"), "job-1", NOW_MS)
    deliver(message, folder, "job-1")
    assert deliver(message, folder, "job-1") is False
    (folder / "new" / "job-1").rename(folder / "cur" / "job-1:2,S")  # as a mail reader does
    assert deliver(message, folder, "job-1") is False

    assert len(mailbox.Maildir(folder)) == 1


def test_a_box_whose_maker_was_killed_half_way_is_made_whole(tmp_path: Path) -> None:
    folder = tmp_path / "mail"
    (folder / "tmp").mkdir(parents=True)
    mail = Mail(to="a@example.com", subject="Hi")
    assert deliver(render(mail, "job-1", NOW_MS), folder, "job-1") is True
    assert len(mailbox.Maildir(folder, create=False)) == 1


@pytest.mark.parametrize(
    ("line", "to", "subject"),
    [
        ("send welcome email to user@example.com", "user@example.com", "send welcome email"),
        ("a@b.example", "a@b.example", "Hello"),
        ("ask a@b.example\r\nBcc: c@d.example", "a@b.example", "ask Bcc: c@d.example"),
    ],
)
def test_a_line_of_text_is_a_mail_too(line: str, to: str, subject: str) -> None:
    mail = read_mail(line)

    assert (mail.to, mail.subject) == (to, subject)
    assert render(mail, "job-1", NOW_MS)["To"] == to


@pytest.mark.parametrize(
    "mail",
    [
        Mail(to="nobody at example.com"),
        Mail(to="a@example.com, b@example.com"),
        Mail(to="a@example.com\nBcc: b@example.com"),
        Mail(to="a@example.com", subject="Hi\nBcc: b@example.com"),
        Mail(to="a@example.com", subject="Hi\r\n\r\nbody"),
        Mail(to="a@example.com", subject="x" * 501),
        Mail(to="a@example.com", body="x" * (BODY_CHARS_MAX + 1)),
        Mail(to=f"{'a' * 65}@example.com"),
        Mail(to=""),
    ],
)
def test_what_is_no_mail_is_refused_for_good(mail: Mail) -> None:
    with pytest.raises(Unfit):
        render(mail, "job-1", NOW_MS)


def test_text_without_an_address_is_refused() -> None:
    with pytest.raises(Unfit):
        read_mail("send it to somebody")


def test_a_line_is_appended_once_where_asked(tmp_path: Path) -> None:
    file = tmp_path / "outbox.jsonl"

    assert append_line(file, b'{"id":"1"}', unless=b'"id":"1"') is True
    assert append_line(file, b'{"id":"1"}', unless=b'"id":"1"') is False
    assert append_line(file, b'{"id":"2"}') is True
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ["1", "2"]


def test_a_line_cut_short_by_a_crash_spoils_no_other_and_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "outbox.jsonl"
    file.write_bytes(b'{"id":"0"}\n{"id":"1","mess')

    assert append_line(file, b'{"id":"1"}', unless=b'"id":"1"') is True
    assert file.read_bytes() == b'{"id":"0"}\n{"id":"1","mess\n{"id":"1"}\n'


def test_a_line_break_within_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unfit):
        append_line(tmp_path / "outbox.jsonl", b"a\nb")


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "folder" / "report.md"
    replace_file(file, b"old")

    def no_room(fd: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="space"):
        replace_file(file, b"new")

    assert file.read_bytes() == b"old"
    assert list(file.parent.iterdir()) == [file]
