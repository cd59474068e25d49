"""The demo's app: job types that do real work, with the standard library only.

`packhorse worker packhorse.demo.jobs:app` runs them. All files lie in the directory that `PACKHORSE_DEMO_DIR` names,
else `demo-data`. Every handler may run twice for one job: its effect is the same as if it ran once.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import msgspec

from .. import Context, Packhorse
from . import files, mail, png, reporting, sums
from .faults import inject_faults
from .files import Unfit
from .mail import Mail
from .sums import Operation
from .textindex import Document, GroupWriter, TextIndex

#: Delays between attempts: short, so that a demo shows them.
BACKOFF_BASE, BACKOFF_MAX = "50ms", "1s"

_REPORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def default_url() -> str | None:
    """Answer the URL of the demo's own store; None where the environment names another."""
    return None if os.environ.get("PACKHORSE_URL") else files.store_url(files.data_dir())


app = Packhorse(default_url())


@app.lifespan
async def _open_index(app: Packhorse) -> AsyncIterator[GroupWriter]:
    """Keep one connection to the index open in each worker process."""
    files.data_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
    writer = GroupWriter(await asyncio.to_thread(TextIndex, files.index_file()))
    try:
        yield writer
    finally:
        await writer.drained()
        writer.index.close()


def _writer(ctx: Context) -> GroupWriter:
    writer: GroupWriter = ctx.state
    return writer


app.provide(GroupWriter, _writer)
app.middleware(inject_faults)


# ---- documents ---------------------------------------------------------------------------------------------


@app.task(
    "index_document",
    timeout="20s",
    backoff=BACKOFF_BASE,
    backoff_max=BACKOFF_MAX,
    fail_on=(Unfit, FileNotFoundError),
    description="Put a text file, or a text given with its path, into the full-text index",
)
async def index_document(path: str, writer: GroupWriter, text: str | None = None) -> dict[str, Any]:
    """Put `text`, or else the file called `path`, into the full-text index under `path`."""
    if not 1 <= len(path) <= 500:
        raise Unfit("a path has 1 to 500 characters")
    if text is None:
        text = await asyncio.to_thread(files.read_document, path)
    changed = await writer.put(Document(path, text))
    return {"path": path, "characters": len(text), "changed": changed}


@app.task(
    "delete_document",
    timeout="20s",
    backoff=BACKOFF_BASE,
    backoff_max=BACKOFF_MAX,
    description="Remove a document from the full-text index",
)
def delete_document(path: str) -> dict[str, Any]:
    """Remove the document of that path; one that is not there is no error, since a run may be repeated."""
    with closing(TextIndex(files.index_file())) as index:
        return {"path": path, "removed": index.remove(path)}


@app.task(
    "report",
    timeout="30s",
    backoff=BACKOFF_BASE,
    backoff_max=BACKOFF_MAX,
    fail_on=Unfit,
    description="Write a report on the index: sizes, longest documents, most frequent words (Markdown and CSV)",
)
def report(name: str = "report", top: int = 20) -> dict[str, Any]:
    """Write reports/`name`.md and .csv with the `top` longest documents and most frequent words."""
    if not _REPORT_NAME.fullmatch(name) or not 1 <= top <= 1_000:
        raise Unfit("a report's name has up to 64 of A-Z a-z 0-9 _ -, and lists 1 to 1000 entries")
    with closing(TextIndex(files.index_file())) as index:
        summary = index.summary(top)
    written = reporting.write_report(summary, files.data_dir() / "reports", name)
    return {
        "documents": summary.documents,
        "bytes": summary.bytes,
        "files": [str(path.relative_to(files.data_dir())) for path in written],
    }


# ---- messages ----------------------------------------------------------------------------------------------


@app.task(
    "email",
    timeout="10s",
    backoff=BACKOFF_BASE,
    backoff_max=BACKOFF_MAX,
    fail_on=Unfit,
    description="Write a mail and deliver it to the maildir of the demo; takes an object or a line of text",
)
def email(payload: Mail | str, ctx: Context) -> dict[str, Any]:
    """Deliver a mail to the local maildir, once for each job."""
    letter = mail.read_mail(payload)
    message = mail.render(letter, ctx.id, ctx.app.clock.now_ms())
    new = mail.deliver(message, files.data_dir() / "mail", ctx.id)
    return {"to": letter.to, "message_id": str(message["Message-ID"]), "new": new}


class Notice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the job type `notification` takes."""

    message: str
    to: str = "everybody"
    channel: str = "log"


@app.task(
    "notification",
    timeout="10s",
    backoff=BACKOFF_BASE,
    backoff_max=BACKOFF_MAX,
    fail_on=Unfit,
    description="Append a notification to the outbox of the demo; takes an object or a line of text",
)
def notification(payload: Notice | str, ctx: Context) -> dict[str, Any]:
    """Append one JSON line to outbox.jsonl, once for each job."""
    notice = Notice(payload) if isinstance(payload, str) else payload
    name = f'"id":"{ctx.id}"'.encode()
    line = msgspec.json.encode({"id": ctx.id, "at_ms": ctx.app.clock.now_ms(), **msgspec.structs.asdict(notice)})
    # Only a second run can find the line of a first one.
    new = files.append_line(files.data_dir() / "outbox.jsonl", line, unless=name if ctx.attempt > 1 else None)
    return {"to": notice.to, "new": new}


# ---- computing ---------------------------------------------------------------------------------------------


@app.task(
    "math",
    timeout="5s",
    backoff=BACKOFF_BASE,
    backoff_max=BACKOFF_MAX,
    fail_on=Unfit,
    description="Compute fibonacci, factorial, is_prime of value; gcd, lcm, power of value and other",
)
def calculate(operation: Operation, value: int, other: int | None = None) -> int | bool | str:
    """Answer the exact result; as text where it is beyond signed 64 bits."""
    return sums.calculate(operation, value, other)


@app.task(
    "image_resize",
    timeout="20s",
    executor="process",
    backoff=BACKOFF_BASE,
    backoff_max=BACKOFF_MAX,
    fail_on=(Unfit, png.InvalidImage, FileNotFoundError),
    description="Scale a PNG picture of the demo's images directory to width x height, in a process of its own",
)
def image_resize(source: str, width: int, height: int) -> dict[str, Any]:
    """Scale images/`source` to images/resized/`name`-`width`x`height`.png."""
    png.check_size(width, height)
    folder = files.data_dir() / "images"
    path = files.locate(source, [folder])
    if path.stat().st_size > png.FILE_BYTES_MAX:
        raise Unfit(f"{source!r} has more than {png.FILE_BYTES_MAX:,} bytes")
    scaled = png.resize(png.decode(path.read_bytes()), width, height)
    target = folder / "resized" / f"{path.stem[:100]}-{width}x{height}.png"
    data = png.encode(scaled)
    files.replace_file(target, data)
    return {"file": str(target.relative_to(files.data_dir())), "bytes": len(data)}
