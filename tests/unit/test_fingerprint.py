"""Which failures are the same, and that hostile ones cost no more than others."""

from __future__ import annotations

import pytest

from packhorse.clock import process_cpu_ms
from packhorse.fingerprint import NONE, fingerprint, generalize, innermost
from packhorse.job import LAPSED, JobError

TRACE = """Traceback (most recent call last):
  File "/srv/app/jobs.py", line 12, in handle
    send(to)
  File "/srv/app/mail.py", line {line}, in send
    raise ValueError(to)
ValueError: no"""


def error(message: str, kind: str = "ValueError", traceback: str = "") -> JobError:
    return JobError(attempt=1, at_ms=0, kind=kind, message=message, traceback=traceback)


@pytest.mark.parametrize(
    ("one", "other", "text"),
    [
        ("took 31.5 s", "took 7 s", "took # s"),
        ("order 17 of 20", "order 3 of 1,000", "order # of #"),
        ("no user 'bob'", "no user 'alice o''neil'", "no user #"),
        ('key "a" missing', 'key "b/c d" missing', "key # missing"),
        (
            "job 01a2019d-6b3c-73bf-bddf-27e959b44e92 gone",
            "job aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee gone",
            "job # gone",
        ),
        ("commit deadbeefcafe", "commit 0123456789ab", "commit #"),
        ("at 0x7f30aa", "at 0x1", "at #"),
        ("cannot open /data/in/2024/report-alice.pdf", "cannot open /data/x.pdf", "cannot open /data/#.pdf"),
        ("cannot open /tmp/tmpab1/x", "cannot open /tmp/tmpzz", "cannot open /tmp/#"),
        (r"cannot open C:\jobs\a.txt", r"cannot open C:\jobs\b\c.txt", "cannot open C:/#.txt"),
        ("GET https://api.example.com/v1/users/7?x=1: 500", "GET https://api.example.com/v2: 503", None),
        ("refused by bob@example.com", "refused by al+x@test.org", "refused by #"),
        ("connect to 10.0.0.1:5432 failed", "connect to 192.168.1.20:5433 failed", "connect to # failed"),
        ("expected 3 but\n  got 4", "expected 5 but got 6", "expected # but got #"),
        ("between 2024-01-02T03:04:05Z and now", "between 2023-11-12T13:14:15Z and now", "between # and now"),
    ],
)
def test_what_varies_does_not_count(one: str, other: str, text: str | None) -> None:
    assert generalize(one) == generalize(other)
    assert text is None or generalize(one) == text
    assert fingerprint(error(one), "mail") == fingerprint(error(other), "mail")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (error("no such address"), error("no such mailbox")),
        (error("no"), error("no", kind="KeyError")),
        (error("no", traceback=TRACE), error("no")),
        (error("no", traceback=TRACE), error("no", traceback=TRACE.replace("in send", "in post"))),
        (error("can't open"), error("can't close")),
        (error("cannot open /data/a.pdf"), error("cannot open /data/a.csv")),
        (error("GET https://a.example/x"), error("GET https://b.example/x")),
    ],
)
def test_what_differs_does_count(one: JobError, other: JobError) -> None:
    assert fingerprint(one, "mail").hash != fingerprint(other, "mail").hash


def test_the_line_and_the_directory_of_the_code_do_not_count() -> None:
    one = fingerprint(error("no", traceback=TRACE.format(line=7)), "mail")
    other = fingerprint(error("no", traceback=TRACE.format(line=99).replace("/srv/app", "/srv/release-8")), "mail")
    assert one == other
    assert one.title == "ValueError: no (mail.py:send)"


@pytest.mark.parametrize(
    ("traceback", "place"),
    [
        ("", ""),
        ("a\n  b", ""),
        (TRACE, "mail.py:send"),
        ('  File "<string>", line 1, in <module>', "<string>:<module>"),
        ('  File "x.py", line 1', "x.py"),
        (r'  File "C:\app\jobs.py", line 1, in run', "jobs.py:run"),
        ('  | File "x.py", line 1, in one', "x.py:one"),
        ('  File "a.py", line 1, in run\n    print(\'File "b.py", line 2, in no\')', "a.py:run"),
        ('  File "', ""),
        ('File "a.py", line 1, in run', "a.py:run"),
    ],
)
def test_the_innermost_frame(traceback: str, place: str) -> None:
    assert innermost(traceback) == place


def test_the_hash_is_the_same_in_every_process_and_version() -> None:
    assert fingerprint(error("no user 'bob'", traceback=TRACE), "mail").hash == "268f1e014e66"
    assert fingerprint(None, "mail") is NONE


def test_a_lapse_is_told_apart_by_the_type_of_its_job() -> None:
    """One job that ends its process takes those beside it along: the group that is larger names the culprit."""
    lapse = error("its runner ended with exit code 139", kind=LAPSED)
    culprit, victim = fingerprint(lapse, "convert"), fingerprint(lapse, "mail")
    assert culprit.hash != victim.hash
    assert culprit.title == "LeaseLapsed: its runner ended with exit code # (convert)"
    assert fingerprint(error("its runner ended with exit code 7", kind=LAPSED), "convert") == culprit


def test_the_type_of_the_job_counts_for_nothing_else() -> None:
    raised = error("no", traceback=TRACE)
    assert fingerprint(raised, "convert") == fingerprint(raised, "mail")


def test_a_title_is_short_whatever_the_error() -> None:
    found = fingerprint(
        error("word " * 5_000, kind="K" * 10_000, traceback='  File "' + "f" * 9_000 + '", line 1, in g'), "mail"
    )
    assert len(found.title) < 400
    assert fingerprint(error("", kind="Empty"), "mail").title == "Empty"


@pytest.mark.parametrize(
    "unit",
    [
        *("C:", "../", "((", "\n", " ", "'\n", "ab'", "“«", "\ud800", "9" * 50 + "-", "deadbeef-dead-"),
        "'",
        '"',
        "'a'b ",
        "`",
        "“",
        "a@",
        "@",
        "a",
        "1",
        "1.",
        "#.",
        "/",
        "/a",
        "\\",
        "-",
        "0a1b2c3d-",
        "https://",
        "x" * 200,
    ],
)
def test_hostile_text_costs_linear_time(unit: str) -> None:
    """C24: twice the text, about twice the time, and far below a second for all there may be."""
    text = unit * (200_000 // len(unit))
    started_ms = process_cpu_ms()
    fingerprint(error(text, traceback=text), "mail")
    fingerprint(error(text, traceback='File "' * 3_000), "mail")
    fingerprint(error("x" + text, traceback='a File "' * 2_000), "mail")
    assert process_cpu_ms() - started_ms < 500
