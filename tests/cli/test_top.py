"""What `top` shows of given looks at a store: rates, columns, frames, keys. No store, no terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len

from packhorse.backends.base import QueueCounts, WorkerInfo
from packhorse.cli.top import choices as chosen
from packhorse.cli.top.choices import Choices, press, read_keys
from packhorse.cli.top.document import document
from packhorse.cli.top.drawing import Frame, Scene, frame
from packhorse.cli.top.history import SPAN_MS, TRACKED_MAX, History
from packhorse.cli.top.lines import Paint, paint_for
from packhorse.cli.top.panels import number, rate
from packhorse.cli.top.samples import Arrived, ErrorGroup, Failure, Failures, Run, Sample
from packhorse.job import State

FRAMES = Path(__file__).parent / "frames"
NOW_MS = 1_700_000_000_000
SIZES = ((80, 24), (120, 40), (50, 16))
SCENE = Scene(store="sqlite:///jobs.db", at_ms=0)


def counts(oldest_ms: int | None = None, paused: bool = False, **states: int) -> QueueCounts:
    return QueueCounts(
        states={State(name): count for name, count in states.items()}, oldest_pending_ms=oldest_ms, paused=paused
    )


def sample(at_ms: int, came: dict[str, int] | None = None, at_least: bool = False, **fields: Any) -> Sample:
    queues = fields.pop("queues", {})
    return Sample(
        at_ms=at_ms,
        now_ms=NOW_MS + at_ms,
        answer_ms=3,
        queues=queues,
        arrived=None if came is None else Arrived(came, at_least),
        **fields,
    )


def busy() -> History:
    """A shop in trouble: mail that fails, a queue that nobody takes from, a worker that is blocked."""
    history = History()
    for second in range(9):
        history.add(
            sample(
                second * 1_000,
                {"mail": 100 + 20 * (second % 3)} if second else None,
                queues={
                    "mail": counts(192_000, pending=1_204 + 10 * second, running=20, failed=12 + second, succeeded=9),
                    "images": counts(7_200_000, pending=400),
                    "reports": counts(60_000, paused=True, pending=1, scheduled=3, waiting=2),
                    "idle": counts(succeeded=70_000),
                },
                workers=(
                    WorkerInfo(
                        id="w1",
                        host="web-1",
                        pid=4711,
                        queues=("mail", "reports"),
                        concurrency=24,
                        busy=20,
                        running=454,
                        started_at_ms=NOW_MS - 9_999_000,
                        lease_left_ms=24_000,
                    ),
                    WorkerInfo(
                        id="w2",
                        host="web-2",
                        pid=4712,
                        queues=("mail",),
                        concurrency=24,
                        started_at_ms=NOW_MS - 9_000,
                        lease_left_ms=4_000,
                        trouble="event loop blocked for 3 s in shop.py:31",
                    ),
                ),
                running=(
                    Run(
                        id="01a2039b-8824-7122-8a88-9eca0b5ea34b",
                        type="email",
                        queue="mail",
                        worker="w1",
                        attempt=1,
                        max_attempts=4,
                        started_at_ms=NOW_MS - 100_000,
                    ),
                ),
                failures=Failures(
                    (
                        failure(1, "ValueError: no such address: nobody@example.com"),
                        failure(2, "ConnectionError: the mail server is away", retries=True, attempt=1),
                    ),
                    (
                        ErrorGroup(
                            fingerprint="0123456789ab",
                            title="ValueError: no such address: # (mail.py:send)",
                            jobs=20,
                            first_at_ms=NOW_MS - 900_000,
                            last_at_ms=NOW_MS - 1_000,
                            types=("email",),
                        ),
                    ),
                    20,
                ),
            )
        )
    return history


def failure(seconds_ago: int, error: str, retries: bool = False, attempt: int = 4) -> Failure:
    return Failure(
        id=f"f{seconds_ago}",
        type="email",
        queue="mail",
        attempt=attempt,
        max_attempts=4,
        at_ms=NOW_MS - 1_000 * seconds_ago,
        error=error,
        retries=retries,
    )


def draw(history: History, width: int = 80, height: int = 24, **fields: Any) -> Frame:
    scene = msgspec.structs.replace(SCENE, **{name: fields.pop(name) for name in list(fields) if hasattr(SCENE, name)})
    paint = fields.pop("paint", Paint())
    drawn = frame(history, Choices(**fields), scene, width, height, paint)
    assert len(drawn.lines) <= height
    for line in drawn.lines:
        text = "".join(piece.text for piece in line)
        assert cell_len(text) <= width, text
        assert text.isprintable(), text
    return drawn


# ---- rates -------------------------------------------------------------------------------------------------


def test_rates_are_what_came_and_ended_in_the_last_five_seconds() -> None:
    history = History()
    history.add(sample(0, queues={"a": counts(pending=100), "b": counts()}))
    assert history.rates().came is None  # one look says nothing of rates
    history.add(sample(1_000, {"a": 50}, queues={"a": counts(pending=120, succeeded=30), "b": counts()}))
    assert history.rates() == history.rates("a") == type(history.rates())(50, 30, 0)
    assert history.rates("b").came == 0
    history.add(sample(5_000, {"a": 50}, queues={"a": counts(pending=170, succeeded=30), "b": counts()}))
    assert (history.rates("a").came, history.rates("a").ended) == (100 / 5, 30 / 5)
    history.add(sample(6_000, {}, queues={"a": counts(pending=170, succeeded=30), "b": counts()}))
    assert history.rates("a").came == 50 / 5  # the first second is longer ago than that


def test_ended_jobs_that_are_dropped_do_not_hide_the_rate() -> None:
    """A day after the first job as many successes are dropped as there are new ones."""
    history = History()
    history.add(sample(0, queues={"a": counts(pending=5, succeeded=1_000)}))
    history.add(sample(1_000, {"a": 70}, queues={"a": counts(pending=5, succeeded=1_000)}))
    assert (history.rates().came, history.rates().ended) == (70, 70)


def test_jobs_that_fail_for_good_have_a_rate_and_dead_letters_grow() -> None:
    history = History()
    for second in range(5):
        queues = {"a": counts(failed=3 * second, pending=5)}
        history.add(sample(second * 1_000, {"a": 3} if second else None, queues=queues))
    assert (history.rates().failed, history.rates().ended) == (3, 3)
    assert history.dead_grew_by == 12


def test_dead_letters_are_compared_with_those_two_minutes_ago() -> None:
    history = History()
    for second in range(0, 241, 10):
        history.add(sample(second * 1_000, {}, queues={"a": counts(failed=second)}))
    assert history.dead_grew_by == SPAN_MS // 1_000


def test_a_job_that_comes_while_the_store_is_asked_is_counted_once() -> None:
    history = History()
    history.add(sample(0, queues={"a": counts(pending=1)}))
    history.add(sample(1_000, {"a": 1, "new": 1}, queues={"a": counts(pending=1)}))  # after the counts were made
    history.add(sample(2_000, {}, queues={"a": counts(pending=2), "new": counts(pending=1)}))
    assert (history.rates().came, history.rates().ended) == (1, 0)


def test_a_queue_that_is_gone_has_ended_its_jobs() -> None:
    history = History()
    history.add(sample(0, queues={"a": counts(pending=4)}))
    history.add(sample(1_000, {}, queues={}))
    assert history.rates().ended == 4


def test_sparklines_hold_the_time_between_two_looks() -> None:
    history = History()
    for second in (0, 10, 20, 30):
        history.add(sample(second * 1_000, {"a": second} if second else None, queues={"a": counts(pending=second)}))
    assert history.window_ms == 30_000
    assert history.came(6) == [1, 1, 2, 2, 3, 3]
    assert history.depth("a", 3) == [10, 20, 30]
    assert history.depth("other", 2) == [None, None]
    history.add(sample(31_000, {}, queues={"a": counts(pending=30)}))
    assert history.window_ms == 60_000
    assert history.came(60)[:28] == [None] * 28


# ---- frames ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_frame_of_a_shop_in_trouble(width: int, height: int) -> None:
    """Read the files to see what `top` shows. After a change on purpose: `python -m tests.cli.test_top` writes them."""
    assert draw(busy(), width, height).text() == (FRAMES / f"{width}x{height}.txt").read_text(encoding="utf-8")


def test_the_guide_shows_what_top_shows() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "top.md").read_text(encoding="utf-8")
    shown = (FRAMES / "80x24.txt").read_text(encoding="utf-8").replace("\n\n\n", "\n\n")
    assert f"$ packhorse top\n{shown}" in guide


def test_the_view_of_failures_and_that_of_workers() -> None:
    text = draw(busy(), view=chosen.FAILURES).text()
    assert "SAME ERROR" in text
    assert "no such address: nobody@ex" in text
    assert "QUEUES" not in text
    text = draw(busy(), view=chosen.WORKERS).text()
    assert (
        text.index("web-2 4712") < text.index("! event loop blocked for 3 s in shop.py:31") < text.index("web-1 4711")
    )
    assert "SAME ERROR" not in text


def test_help_names_every_key() -> None:
    text = draw(busy(), view=chosen.HELP).text()
    for key in ("q", "p", "+ -", "j k", "f", "w", "?", "Esc"):
        assert f"{key:>5}  " in text


@pytest.mark.parametrize("width", range(1, 200, 7))
@pytest.mark.parametrize("height", [1, 7, 8, 9, 12, 24, 60])
def test_every_size_is_kept(width: int, height: int) -> None:
    for view in (chosen.ALL, chosen.FAILURES, chosen.WORKERS, chosen.HELP):
        draw(busy(), width, height, view=view, offset=3)


def test_hostile_names_and_errors_do_not_break_the_frame() -> None:
    """C22: what steers a terminal, what is wide, what has no width, what is endless."""
    evil = [
        "\x1b[2J\x1b]0;owned\x07",
        "a\nQUEUE forged\r\n",
        "\u202egnp.exe",
        "日本語" * 500,
        "e" + "\u0301" * 900,
        "👩‍👩‍👧" * 40,
        "[bold red]x[/]",
        "\ud800\udfff\x00\x9b31m",
        " " * 3_000,
        "",
    ]
    history = History()
    for second in range(2):
        history.add(
            sample(
                second * 1_000,
                dict.fromkeys(evil, 1) if second else None,
                queues={text: counts(5, pending=1) for text in evil},
                workers=tuple(
                    WorkerInfo(id=str(at), host=text, queues=(text,), trouble=text, concurrency=-1, running=10**9)
                    for at, text in enumerate(evil)
                ),
                running=tuple(
                    Run(id=text, type=text, queue=text, worker=text, attempt=1, max_attempts=1, started_at_ms=0)
                    for text in evil
                ),
                failures=Failures(tuple(msgspec.structs.replace(failure(1, text), type=text) for text in evil)),
            )
        )
    history.away("\x1b[31m" + "x" * 5_000, 2_000)
    for width in (30, 80, 200):
        for paint in (Paint(), paint_for("ascii")):
            text = draw(history, width, 60, paint=paint, store="\x1b[2J").text()
            assert "\x1b" not in text
            if paint.ascii:
                assert text.isascii()
    assert r"\x1b[2J\x1b]0;owned\x07" in draw(history, 200, 60).text()
    assert r"a\nQUEUE forged" in draw(history, 200, 60).text()


def test_a_store_that_does_not_answer_is_said_and_the_last_figures_stay() -> None:
    history = busy()
    history.away("the server cannot be reached", 9_000)
    history.away("the server cannot be reached", 10_000)
    text = draw(history, at_ms=20_000).text()
    assert "does not answer for 12s" in text
    assert "the server cannot be reached" in text
    assert "1,284" in text
    history.add(sample(21_000, {}, queues={}))
    assert "answers in 3ms" in draw(history, at_ms=21_000).text()


def test_a_store_that_hangs_is_said_before_it_is_given_up() -> None:
    assert "answers in 3ms" in draw(busy(), at_ms=10_000, asking_since_ms=9_000).text()
    assert "does not answer for 4s" in draw(busy(), at_ms=13_000, asking_since_ms=9_000).text()


def test_a_slow_store_is_asked_less_often_and_that_is_said() -> None:
    assert "asked every 5s" in draw(busy(), pause_ms=5_000).text()
    assert "asked every" not in draw(busy(), pause_ms=900).text()


def test_pause_says_how_old_the_figures_are() -> None:
    assert "paused, as of 7s ago" in draw(busy(), at_ms=15_000, paused=True).text()


def test_more_than_could_be_counted_is_marked() -> None:
    history = History()
    history.add(sample(0, queues={"a": counts()}))
    history.add(sample(1_000, {"a": 1_000}, at_least=True, queues={"a": counts(pending=1_000)}))
    assert "in ≥ 1,000/s" in draw(history).text()
    assert "in > 1,000/s" in draw(history, paint=paint_for("latin-1")).text()


def test_an_empty_store_is_a_frame_too() -> None:
    history = History()
    assert "asking the store" in draw(history).text()
    history.add(sample(0))
    text = draw(history).text()
    for said in ("no queues", "none alive", "nothing failed", "nothing runs"):
        assert said in text


def test_ten_thousand_queues_are_scrolled_and_drawn_in_bounded_time() -> None:
    history = History()
    began = time.process_time()
    for second in range(3):
        queues = {f"q{at}": counts(5, pending=at % 7, succeeded=second) for at in range(10_000)}
        history.add(sample(second * 1_000, {f"q{at}": 1 for at in range(500)} if second else None, queues=queues))
    taken = (time.process_time() - began) / 3
    assert taken < 0.5, f"{taken * 1000:.0f} ms a look"
    began = time.process_time()
    drawn = draw(history)
    taken = time.process_time() - began
    assert taken < 0.25, f"{taken * 1000:.0f} ms a frame"
    assert "QUEUE 1-9 of 10,000 " in drawn.text()
    assert f"QUEUE {drawn.last + 1:,}/10,000 " in draw(history, offset=drawn.last).text()
    assert "/10,000 " in draw(history, 120, offset=10_000).text()
    assert len(history._points[-1].queues) == TRACKED_MAX


def test_numbers_have_their_width() -> None:
    assert [number(value) for value in (0, 999_999, 1_234_567, 99_999_999, 4_200_000_000)] == [
        "0",
        "999,999",
        "1.23M",
        "100.00M",
        "4.20G",
    ]
    assert [rate(value) for value in (None, 0, 0.01, 0.25, 9.94, 9.96, 1234.5)] == [
        "-",
        "0",
        "<0.1",
        "0.2",
        "9.9",
        "10",
        "1,234",
    ]


# ---- the document ------------------------------------------------------------------------------------------


def test_the_document_has_the_figures_of_the_screen() -> None:
    history = busy()
    assert history.sample is not None
    shown = document(history, history.sample, "sqlite:///jobs.db")
    assert list(shown) == [
        "store",
        "at",
        "answer_ms",
        "span_ms",
        "states",
        "rates",
        "queues",
        "workers",
        "dead_letters",
        "failures",
        "running",
    ]
    assert shown["states"]["pending"] == 1_685
    assert shown["rates"]["in"] == history.rates().came
    assert shown["queues"]["images"]["has_worker"] is False
    assert shown["queues"]["mail"]["has_worker"] is True
    assert [worker["trouble"] for worker in shown["workers"]] == [None, "event loop blocked for 3 s in shop.py:31"]
    assert shown["dead_letters"]["grew_by"] == 8
    assert shown["dead_letters"]["groups"][0]["jobs"] == 20
    assert shown["running"][0]["running_ms"] == 108_000
    assert shown["running"][0]["worker_name"] == "web-1 4711"


# ---- keys --------------------------------------------------------------------------------------------------


def test_keys() -> None:
    start = Choices()
    assert press(start, "q").quit
    assert press(start, "p").paused
    assert not press(press(start, "p"), "p").paused
    assert press(start, "f").view == chosen.FAILURES
    assert press(press(start, "f"), "f").view == chosen.ALL
    assert press(press(start, "f"), "w").view == chosen.WORKERS
    assert press(press(start, "?"), "escape").view == chosen.ALL
    assert press(start, "x") == start
    assert press(start, "+").interval_ms == 2_000
    assert press(start, "-").interval_ms == 1_000
    assert press(Choices(interval_ms=3_000), "-").interval_ms == 2_000
    assert press(Choices(interval_ms=60_000), "+").interval_ms == 60_000


def test_scrolling_stays_inside() -> None:
    start = Choices()
    assert press(start, "k", 5).offset == 0
    assert press(start, "j", 5).offset == 1
    assert press(start, "page down", 5).offset == 5
    assert press(press(start, "G", 10_000), "j", 10_000).offset == 10_000
    assert press(Choices(offset=7), "g", 10).offset == 0
    assert press(Choices(offset=9), "j", 0).offset == 0  # the list has become shorter


def test_what_terminals_send() -> None:
    assert read_keys(b"jq") == ["j", "q"]
    assert read_keys(b"\x1b[A\x1b[B\x1bOA") == ["k", "j", "k"]
    assert read_keys(b"\x1b[5~\x1b[6~") == ["page up", "page down"]
    assert read_keys(b"\x1b") == ["escape"]
    assert read_keys(b"\x1b[1;5Cq\x1b[200~p") == ["q", "p"]  # unknown ones are passed over whole
    assert read_keys(b"\xff\xfe") == []
    assert read_keys(b"\x1b[") == []


if __name__ == "__main__":
    for size in SIZES:
        (FRAMES / f"{size[0]}x{size[1]}.txt").write_text(draw(busy(), *size).text(), encoding="utf-8")
