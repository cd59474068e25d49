"""What makes two failures the same: their kind, the text without what varies, and where it happened. No I/O.

Every pattern here is possessive or of bounded length, and the text is bounded too: hostile errors cost linear time
(FAILURES C24).
"""

from __future__ import annotations

import re
from hashlib import blake2b

import msgspec

from .job import LAPSED, JobError

#: Of a message, so much is looked at; of what is left without what varies, so much counts.
_MESSAGE_CHARS_READ = 16_384
_TEXT_CHARS_KEPT = 500
_TITLE_CHARS_MAX = 160
_NAME_CHARS_MAX = 100

#: What stands for something that varies.
HOLE = "#"


class Fingerprint(msgspec.Struct, frozen=True, gc=False):
    """`hash` is the same for errors that are the same, now and in later versions; `title` is for people."""

    hash: str
    title: str


#: The failure of a job that has no error on record.
NONE = Fingerprint("none", "(no error on record)")

# In the order in which they are tried at each place. A quote opens only where no word goes on, so that the apostrophe
# of "can't" is none; if it does not close before the next one or the end of the line, it is left as it is.
_VARIABLE = re.compile(
    r"""
      (?P<quoted>(?<!\w)(?:'[^'\n]*+'(?!\w) | "[^"\n]*+"(?!\w) | `[^`\n]*+`(?!\w) | “[^“”\n]*+” | «[^«»\n]*+»))
    | (?P<uuid>\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b)
    | (?P<url>(?<!\w)(?:https?|ftp|wss?|postgresql|redis|amqp|nats)://[^\s<>"']++)
    | (?P<path>(?<![\w/\\.])(?:~|\.{1,2}|[A-Za-z]:)?[/\\][^\s:,;'"()<>\[\]]++)
    | (?P<mail>(?<![^\s<>(,;:=])[^\s@<>(),;:="'#]{1,256}+@[^\s@<>(),;:="']{1,256}+)
    | (?P<word>\w++)
    """,
    re.VERBOSE,
)
_HOLES = re.compile(r"#(?:[.,:+-]?#)++")
_SPACE = re.compile(r"\s++")
_HEX_CHARS_MIN = 8
_HEX = frozenset("0123456789abcdefABCDEF")


def fingerprint(error: JobError | None, job_type: str) -> Fingerprint:
    """Answer what identifies an error: kind, message without what varies, file and function where it was raised.

    A lapse was raised nowhere: there the type of the job counts. A job that ends its process takes those beside it
    along, and all of them have the same error.
    """
    if error is None:
        return NONE
    text = generalize(error.message)
    place = innermost(error.traceback)
    if not place and error.kind == LAPSED:
        place = job_type
    data = "\0".join((error.kind, text, place)).encode("utf-8", "surrogatepass")
    title = f"{error.kind[:_NAME_CHARS_MAX]}: {text}" if text else error.kind[:_NAME_CHARS_MAX]
    if len(title) > _TITLE_CHARS_MAX:
        title = title[: _TITLE_CHARS_MAX - 1] + "…"
    return Fingerprint(blake2b(data, digest_size=6).hexdigest(), f"{title} ({place})" if place else title)


def generalize(message: str) -> str:
    """Answer a message with `#` in place of numbers, ids, quoted text, addresses and what varies in paths."""
    text = _VARIABLE.sub(_without, message[:_MESSAGE_CHARS_READ])
    return _SPACE.sub(" ", _HOLES.sub(HOLE, text)).strip()[:_TEXT_CHARS_KEPT]


def _without(match: re.Match[str]) -> str:
    text = match[0]
    match match.lastgroup:
        case "word":
            has_digit = any(map(str.isdigit, text))
            return HOLE if has_digit or (len(text) >= _HEX_CHARS_MIN and _HEX.issuperset(text)) else text
        case "path":
            return _path(text)
        case "url":
            scheme, _, rest = text.partition("://")
            return f"{scheme}://{_host(rest)}"
        case _:
            return HOLE


def _path(text: str) -> str:
    """Keep where a path begins and what kind of file it names: `/srv/in/7/report.pdf` is `/srv/#.pdf`."""
    text = text.rstrip(".")
    parts = [part for part in text.replace("\\", "/").split("/") if part]
    if len(parts) < 2:
        return text if text in {"/", "\\"} or not any(map(str.isdigit, text)) else HOLE
    root = "/" if text[0] in "/\\" else ""
    _, dot, suffix = parts[-1].rpartition(".")
    kind = f".{suffix}" if dot and suffix.isalpha() and len(suffix) <= 8 else ""
    first = HOLE if any(map(str.isdigit, parts[0])) else parts[0]
    return f"{root}{first}/{HOLE}{kind}"


def _host(rest: str) -> str:
    host = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2].partition(":")[0]
    return HOLE if any(map(str.isdigit, host)) else host


def innermost(traceback: str) -> str:
    """Answer file and function of the innermost frame, `mail.py:send`; nothing if there is none."""
    at = traceback.rfind('File "')
    while at > 0 and traceback[traceback.rfind("\n", 0, at) + 1 : at].strip(" |+"):
        at = traceback.rfind('File "', 0, at)  # it stands in a line of code, not at the head of a frame
    if at < 0:
        return ""
    line = traceback[at + 6 : at + 6 + 4_096].partition("\n")[0]
    path, _, rest = line.rpartition('", line ')
    name = path.replace("\\", "/").rpartition("/")[2][:_NAME_CHARS_MAX]
    function = rest.partition(", in ")[2].strip()[:_NAME_CHARS_MAX]
    return f"{name}:{function}" if function else name
