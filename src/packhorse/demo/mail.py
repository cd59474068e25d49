"""Mail that is really written and really delivered: RFC 5322 messages into a maildir on this machine. No network."""

from __future__ import annotations

import re
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path

import msgspec

from ..clock import to_datetime
from .files import Unfit, replace_file

BODY_CHARS_MAX = 100_000
SUBJECT_CHARS_MAX = 500
SENDER = Address("packhorse demo", "demo", "packhorse.invalid")

_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*")


class Mail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the job type `email` takes."""

    to: str
    subject: str = ""
    body: str = ""


def read_mail(payload: Mail | str) -> Mail:
    """Answer the mail meant by a payload: an object, or a line as "send welcome email to user@example.com"."""
    if isinstance(payload, Mail):
        return payload
    found = _ADDRESS.search(payload)
    if found is None:
        raise Unfit("the text names no mail address")
    subject = (payload[: found.start()] + payload[found.end() :]).strip().removesuffix(" to").strip()
    return Mail(to=found[0], subject=" ".join(subject.split())[:SUBJECT_CHARS_MAX] or "Hello")


def render(mail: Mail, job_id: str, now_ms: int) -> EmailMessage:
    """Make the message. Raises Unfit for an address that is none, and for header text with line breaks."""
    if not _ADDRESS.fullmatch(mail.to) or len(mail.to) > 254:
        raise Unfit(f"{mail.to[:80]!r} is no mail address")
    if len(mail.subject) > SUBJECT_CHARS_MAX or len(mail.body) > BODY_CHARS_MAX:
        raise Unfit(f"a subject has at most {SUBJECT_CHARS_MAX:,}, a body at most {BODY_CHARS_MAX:,} characters")
    message = EmailMessage()
    try:
        message["From"] = SENDER
        message["To"] = Address(addr_spec=mail.to)
        message["Subject"] = mail.subject
        message["Date"] = format_datetime(to_datetime(now_ms))
        message["Message-ID"] = f"<{job_id}@packhorse.invalid>"
    except ValueError as error:  # a line break in a header would let a payload add headers of its own
        raise Unfit(f"cannot be a mail header: {error}") from None
    message.set_content(mail.body or "\n")
    return message


def deliver(message: EmailMessage, folder: Path, job_id: str) -> bool:
    """Put a message into a maildir under the job's own name: delivering again leaves one. Answers whether it is new."""
    # Not mailbox.Maildir: that takes a folder whose maker was killed half-way as made.
    for part in ("tmp", "new", "cur"):
        (folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.glob(f"cur/{job_id}*")) or (folder / "new" / job_id).exists():
        return False
    # Written in tmp/ and renamed into new/: the way a maildir is delivered to without locks.
    written = folder / "tmp" / job_id
    replace_file(written, message.as_bytes())
    written.replace(folder / "new" / job_id)
    return True
