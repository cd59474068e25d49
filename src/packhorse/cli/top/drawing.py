"""Puts a frame together: which parts, and how many lines of each fit. Pure: the same values make the same text."""

from __future__ import annotations

import msgspec

from ...clock import to_rfc3339
from ...job import State
from ..output import age
from . import panels
from .choices import FAILURES, HELP, WORKERS, Choices
from .history import History
from .lines import Line, Paint, Piece, beside, crop
from .samples import Sample

#: A terminal smaller than this is only told so.
WIDTH_MIN, HEIGHT_MIN = 24, 8

#: A look that takes longer is called no answer, ms.
_SLOW_MS = 3_000

_KEYS = "q quit  p pause  +/- speed  j/k scroll  f failures  w workers  ? help"
_SHORT_KEYS = "q quit  ? help"


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """What stands around the numbers. `at_ms` is the boot clock now; `store` and texts of errors have no secrets."""

    store: str
    at_ms: int
    asking_since_ms: int | None = None
    pause_ms: int = 0  # between looks, where the store is too slow for the interval
    queue: str | None = None
    is_live: bool = True  # keys work


class Frame(msgspec.Struct, frozen=True):
    """Lines, `height` of them at most, and the largest offset that the list can be scrolled to."""

    lines: list[Line]
    last: int = 0

    def text(self) -> str:
        """Answer the frame without styles, no blanks at the ends of lines."""
        return "".join("".join(piece.text for piece in line).rstrip() + "\n" for line in self.lines)


def frame(history: History, choices: Choices, scene: Scene, width: int, height: int, paint: Paint) -> Frame:
    """Draw a frame."""
    if width < WIDTH_MIN or height < HEIGHT_MIN:
        return Frame([crop(paint, [Piece(f"too small: {WIDTH_MIN} x {HEIGHT_MIN} at least")], max(1, width))])
    lines = _head(history, choices, scene, width, paint)
    foot = _foot(choices, scene, width, paint) if scene.is_live else []
    room = height - len(lines) - len(foot)
    sample = history.sample
    if choices.view == HELP:
        body, last = _scrolled([[], *panels.help_lines()], choices.offset, room)
    elif sample is None:
        body, last = [[], [Piece("asking the store")]], 0
    elif choices.view == WORKERS:
        body, last = _list(panels.worker_lines(sample, paint, width), choices.offset, room)
    elif choices.view == FAILURES:
        body, last = _failures(sample, choices, width, room, paint)
    else:
        body, last = _all(history, sample, choices, width, room, paint)
    body = [crop(paint, line, width) for line in body[:room]]
    padding: list[Line] = [[] for _ in range(room - len(body))] if foot else []
    return Frame([*lines, *body, *padding, *foot], last)


# ---- head and foot -----------------------------------------------------------------------------------------


def _head(history: History, choices: Choices, scene: Scene, width: int, paint: Paint) -> list[Line]:
    status, style = _status(history, choices, scene)
    room = width - len(status) - 2
    where = scene.store if scene.queue is None else f"{scene.store}, queue {scene.queue}"
    title: Line = [Piece("packhorse top ", "bold")] if room >= 30 else []
    title.append(Piece(paint.text(where, max(1, room - sum(len(piece.text) for piece in title)))))
    lines = [beside(paint, title, status, width, style)]
    if history.trouble:
        lines.append([Piece(paint.text(history.trouble, width), "red")])
    if history.sample is None:
        return lines
    return [*lines, _totals(history, width, paint), _rates(history, width, paint)]


def _status(history: History, choices: Choices, scene: Scene) -> tuple[str, str]:
    since_ms = history.away_since_ms
    if since_ms is None and scene.asking_since_ms is not None and scene.at_ms - scene.asking_since_ms >= _SLOW_MS:
        since_ms = scene.asking_since_ms
    if since_ms is not None:
        return f"does not answer for {age(max(0, scene.at_ms - since_ms))}", "bold red"
    if history.sample is None:
        return "", ""
    if choices.paused:
        return f"paused, as of {age(max(0, scene.at_ms - history.sample.at_ms))} ago", "bold yellow"
    slow = f", asked every {age(scene.pause_ms)}" if 2 * scene.pause_ms >= 3 * choices.interval_ms else ""
    clock = to_rfc3339(history.sample.now_ms)[11:19] + "Z"
    return f"answers in {age(history.sample.answer_ms)}{slow}  {clock}", "green" if not slow else "yellow"


def _totals(history: History, width: int, paint: Paint) -> Line:
    """Draw jobs by state, as many states as have room."""
    line: Line = []
    room = width
    for state in (State.PENDING, State.RUNNING, State.FAILED, State.SCHEDULED, State.WAITING, State.SUCCEEDED):
        count = history.count(state)
        bad = state is State.FAILED and count > 0
        part = [Piece(f"{state} "), Piece(panels.number(count), "bold red" if bad else "bold")]
        if bad and history.dead_grew_by:
            grown = f" {history.dead_grew_by:+,} in {age(max(1000, history.span_ms))}"
            part.append(Piece(grown, "bold red" if history.dead_grew_by > 0 else ""))
        room -= sum(len(piece.text) for piece in part)
        if room < 0:
            break
        line += [*part, Piece("  ")]
        room -= 2
    return crop(paint, line, width)


def _rates(history: History, width: int, paint: Paint) -> Line:
    rates = history.rates()
    least = ("> " if paint.ascii else "≥ ") if history.at_least else ""
    cells = max(4, min(30, (width - 3 * 15) // 3))
    line: Line = []
    for word, value, past, style in (
        ("in", rates.came, history.came(cells), "cyan"),
        ("out", rates.ended, history.ended(cells), "green"),
        ("failed", rates.failed, history.failed(cells), "red"),
    ):
        mark = least if word != "failed" and value is not None else ""
        shown = f"{mark}{panels.rate(value)}/s"
        line += [Piece(f"{word} "), Piece(f"{shown:<8} ", "bold"), Piece(paint.spark(past), style), Piece(" ")]
    return crop(paint, line[:-1], width)


def _foot(choices: Choices, scene: Scene, width: int, paint: Paint) -> list[Line]:
    pace = f"every {age(choices.interval_ms)}"
    keys = _KEYS if width >= len(_KEYS) + len(pace) + 2 else _SHORT_KEYS
    return [beside(paint, [Piece(keys, "dim")], pace, width)]


# ---- the views ---------------------------------------------------------------------------------------------


def _all(
    history: History, sample: Sample, choices: Choices, width: int, room: int, paint: Paint
) -> tuple[list[Line], int]:
    """Draw the parts one below the other, each as large as the room allows."""
    workers = panels.worker_lines(sample, paint, width)
    failures = panels.failure_lines(sample, paint, width)
    running = panels.running_lines(sample, paint, width)
    others = [workers, failures, running]
    if room >= 30 and len(sample.failures.groups) > 0:
        others.insert(1, panels.group_lines(sample, paint, width))
    count = len(sample.queues)
    turns = [2, 2 if any(worker.trouble for worker in sample.workers) else 1]  # who is in trouble has two lines
    while True:
        wanted = [max(1, count), *(len(part) - 1 for part in others)]
        shares = _share(wanted, turns, room - 2 * len(wanted))  # each has a head and an empty line above it
        if shares[-1] or not others:
            break
        others.pop()
    offset = min(choices.offset, max(0, count - shares[0]))
    lines: list[Line] = [[], *panels.queues(history, sample, paint, width, offset, shares[0])]
    if count > shares[0] > 0:
        lines[1] = _with_place(lines[1], offset, shares[0], count)
    for part, share in zip(others, shares[1:], strict=True):
        lines += [[], *part[: share + 1]]
    return lines, max(0, count - shares[0])


def _with_place(head: Line, offset: int, shown: int, count: int) -> Line:
    """Say in the head of the queues which of them are shown, if the column of names has room."""
    first, *rest = head
    name = first.text
    room = len(name) - len(name[5:].lstrip(" ")) if name.startswith("QUEUE") else 0
    begin, end = f"QUEUE {offset + 1:,}", f"{min(count, offset + shown):,}"
    for place in (f"{begin}-{end} of {count:,} ", f"{begin}/{count:,} "):
        if len(place) <= room:
            return [Piece(place + name[len(place) :], first.style), *rest]
    return head


def _share(wanted: list[int], turns: list[int], room: int) -> list[int]:
    """Deal lines out, so many to each in its turn (one, where `turns` ends), as long as somebody wants one."""
    shares = [0] * len(wanted)
    while room > 0 and shares != wanted:
        for at, most in enumerate(wanted):
            given = min(turns[at] if at < len(turns) else 1, most - shares[at], room)
            shares[at] += given
            room -= given
    return shares


def _failures(sample: Sample, choices: Choices, width: int, room: int, paint: Paint) -> tuple[list[Line], int]:
    groups = panels.group_lines(sample, paint, width)
    latest = panels.failure_lines(sample, paint, width)
    shares = _share([len(groups) - 1, len(latest) - 1], [], room - 4)
    body, last = _list(latest, choices.offset, room - shares[0] - 2)
    return [[], *groups[: shares[0] + 1], *body], last


def _list(lines: list[Line], offset: int, room: int) -> tuple[list[Line], int]:
    """Draw an empty line, the head, and the rest scrolled."""
    rows, last = _scrolled(lines[1:], offset, max(0, room - 2))
    return [[], lines[0], *rows], last


def _scrolled(lines: list[Line], offset: int, room: int) -> tuple[list[Line], int]:
    last = max(0, len(lines) - max(1, room))
    start = min(offset, last)
    return lines[start : start + room], last
