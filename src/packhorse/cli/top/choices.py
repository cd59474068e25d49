"""What whoever watches has chosen, and what each key makes of it. Pure."""

from __future__ import annotations

import msgspec

#: The steps of `+` and `-`, ms. A store is asked once a second at most.
INTERVALS_MS = (1_000, 2_000, 5_000, 10_000, 30_000, 60_000)
INTERVAL_MS_MIN, INTERVAL_MS_MAX = 1_000, 3_600_000

#: Lines that Page Up and Page Down go.
_PAGE = 10

ALL, FAILURES, WORKERS, HELP = "all", "failures", "workers", "help"

#: What terminals send for keys that are no letters.
_SEQUENCES = {
    "\x1b[A": "k",
    "\x1bOA": "k",
    "\x1b[B": "j",
    "\x1bOB": "j",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[H": "g",
    "\x1b[1~": "g",
    "\x1b[F": "G",
    "\x1b[4~": "G",
}
_STEPS = {"j": 1, "k": -1, "page down": _PAGE, "page up": -_PAGE, "g": -(10**9), "G": 10**9}


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """How the screen is. `view` is one of ALL, FAILURES, WORKERS, HELP; `offset` is the first line of its list."""

    interval_ms: int = 1_000
    view: str = ALL
    offset: int = 0
    paused: bool = False
    quit: bool = False


def press(choices: Choices, key: str, last: int = 0) -> Choices:
    """Answer what a key makes of the choices; unknown ones change nothing. `last` is the largest offset there is."""
    step = _STEPS.get(key)
    if step is not None:
        return msgspec.structs.replace(choices, offset=max(0, min(last, choices.offset + step)))
    match key:
        case "q":
            return msgspec.structs.replace(choices, quit=True)
        case "p" | " ":
            return msgspec.structs.replace(choices, paused=not choices.paused)
        case "+" | "=":
            return msgspec.structs.replace(choices, interval_ms=_next_interval(choices.interval_ms, 1))
        case "-" | "_":
            return msgspec.structs.replace(choices, interval_ms=_next_interval(choices.interval_ms, -1))
        case "f":
            return _turn_to(choices, FAILURES)
        case "w":
            return _turn_to(choices, WORKERS)
        case "?" | "h":
            return _turn_to(choices, HELP)
        case "escape":
            return msgspec.structs.replace(choices, view=ALL, offset=0)
    return choices


def _turn_to(choices: Choices, view: str) -> Choices:
    """Show a view; where it is shown already, all of them again."""
    return msgspec.structs.replace(choices, view=ALL if choices.view == view else view, offset=0)


def _next_interval(interval_ms: int, direction: int) -> int:
    if direction > 0:
        return next((step for step in INTERVALS_MS if step > interval_ms), interval_ms)
    return next((step for step in reversed(INTERVALS_MS) if step < interval_ms), interval_ms)


def read_keys(data: bytes) -> list[str]:
    """Answer the keys that a terminal sent: letters as they are, arrows as the letters that do the same."""
    text = data.decode("utf-8", "ignore")
    keys: list[str] = []
    while text:
        sequence = next((each for each in _SEQUENCES if text.startswith(each)), None)
        if sequence is not None:
            keys.append(_SEQUENCES[sequence])
            text = text[len(sequence) :]
        elif text[0] == "\x1b" and len(text) > 1:
            text = text[_unknown(text) :]
        else:
            keys.append("escape" if text[0] == "\x1b" else text[0])
            text = text[1:]
    return keys


def _unknown(text: str) -> int:
    """Answer how long an escape sequence is that means nothing here: up to its final letter."""
    end = 2
    if text[1] in "[O":
        while end < len(text) and not "\x40" <= text[end] <= "\x7e":
            end += 1
        end += 1
    return end
