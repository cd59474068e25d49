"""A full-text index of documents in one SQLite file, which many processes may write to at once.

Every change is safe to repeat: a document is known by its path, and putting it again leaves one. What `put` and
`remove` have answered is on disk (a committed transaction, synchronous=FULL).
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..errors import ConfigurationError

DOCUMENT_BYTES_MAX = 4 << 20

#: One transaction takes about this much text, so that other processes do not wait long for their turn.
_BATCH_DOCUMENTS_MAX = 64
_BATCH_CHARS_MAX = 2_000_000
_BUSY_S = 20.0
_QUERY_WORDS_MAX = 16

# A rollback journal, not WAL: several processes write, and SQLite before 3.51.3 may damage a WAL that two
# connections check-point at the same moment (FAILURES A, SQLite). Readers here are few and short.
_SETTINGS = "PRAGMA journal_mode = TRUNCATE; PRAGMA synchronous = FULL; PRAGMA cache_size = -16000;"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL UNIQUE,
    bytes INTEGER NOT NULL,
    lines INTEGER NOT NULL,
    digest BLOB NOT NULL
);
CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5 (path, body, tokenize = 'unicode61');
CREATE VIRTUAL TABLE IF NOT EXISTS vocabulary USING fts5vocab (texts, 'row');
"""


class Document(msgspec.Struct, frozen=True):
    """A text under the path it is found by."""

    path: str
    text: str


class Hit(msgspec.Struct, frozen=True):
    """A document that a search found; `snippet` shows the words between `[` and `]`."""

    path: str
    snippet: str


class Word(msgspec.Struct, frozen=True):
    """A word, how often it occurs, and in how many documents."""

    word: str
    occurrences: int
    documents: int


class Summary(msgspec.Struct, frozen=True):
    """The index in numbers; `longest` are the paths and sizes of the largest documents."""

    documents: int
    bytes: int
    lines: int
    longest: list[tuple[str, int]]
    words: list[Word]


class TextIndex:
    """One connection to an index. Use it from one thread at a time."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._connection = sqlite3.connect(file, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            self._connection.executescript(_SETTINGS)
            # Asked first: making sure takes the write lock, which others may hold for long.
            if not self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'vocabulary'").fetchone():
                self._make_tables()
        except BaseException:
            self._connection.close()
            raise

    def _make_tables(self) -> None:
        try:
            with _Transaction(self._connection):
                for statement in _SCHEMA.split(";"):
                    self._connection.execute(statement)
        except sqlite3.OperationalError as error:
            if "no such module: fts5" in str(error):
                raise ConfigurationError("this Python's SQLite was built without FTS5, which the demo needs") from None
            raise

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._connection.close()

    def put(self, documents: Sequence[Document]) -> list[bool]:
        """Store documents, each in place of the one with its path; answers which of them changed the index."""
        with _Transaction(self._connection):
            return [self._put(document) for document in documents]

    def _put(self, document: Document) -> bool:
        data = document.text.encode(errors="replace")
        digest = hashlib.blake2b(data, digest_size=16).digest()
        found = self._connection.execute("SELECT id, digest FROM documents WHERE path = ?", (document.path,)).fetchone()
        if found is not None:
            if found[1] == digest:
                return False
            self._forget(found[0])
        lines = document.text.count("\n") + (not document.text.endswith("\n") and document.text != "")
        row = self._connection.execute(
            "INSERT INTO documents (path, bytes, lines, digest) VALUES (?, ?, ?, ?)",
            (document.path, len(data), lines, digest),
        )
        self._connection.execute(
            "INSERT INTO texts (rowid, path, body) VALUES (?, ?, ?)",
            (row.lastrowid, document.path, data.decode()),
        )
        return True

    def _forget(self, row: int) -> None:
        self._connection.execute("DELETE FROM texts WHERE rowid = ?", (row,))
        self._connection.execute("DELETE FROM documents WHERE id = ?", (row,))

    def remove(self, path: str) -> bool:
        """Forget a document; answers whether it was there."""
        with _Transaction(self._connection):
            found = self._connection.execute("SELECT id FROM documents WHERE path = ?", (path,)).fetchone()
            if found is not None:
                self._forget(found[0])
            return found is not None

    def search(self, query: str, limit: int = 5) -> list[Hit]:
        """Answer the documents that hold all words of `query`, best first. Any text is a valid query."""
        words = [word for word in query.replace("\0", " ").split()[:_QUERY_WORDS_MAX] if word]
        if not words:
            return []
        # Each word in quotes is a plain string to FTS5: nothing in it is syntax.
        match = " ".join('"' + word.replace('"', '""') + '"' for word in words)
        rows = self._connection.execute(
            "SELECT path, snippet(texts, 1, '[', ']', ' … ', 12) FROM texts WHERE texts MATCH ? ORDER BY rank LIMIT ?",
            (match, limit),
        )
        return [Hit(path, " ".join(snippet.split())) for path, snippet in rows]

    def has(self, path: str) -> bool:
        """Answer whether a document of that path is there."""
        return self._connection.execute("SELECT 1 FROM documents WHERE path = ?", (path,)).fetchone() is not None

    def paths(self) -> list[str]:
        """Answer the paths of all documents, as often as the full text holds them."""
        return [path for (path,) in self._connection.execute("SELECT path FROM texts ORDER BY path")]

    def summary(self, top: int = 20) -> Summary:
        """Answer the index in numbers, as of one moment."""
        with _Transaction(self._connection, "BEGIN"):
            run = self._connection.execute
            documents, size, lines = run(
                "SELECT count(*), coalesce(sum(bytes), 0), coalesce(sum(lines), 0) FROM documents"
            ).fetchone()
            longest = run("SELECT path, bytes FROM documents ORDER BY bytes DESC, path LIMIT ?", (top,)).fetchall()
            words = run(
                "SELECT term, cnt, doc FROM vocabulary WHERE length(term) > 3 ORDER BY cnt DESC, term LIMIT ?", (top,)
            ).fetchall()
        return Summary(documents, size, lines, longest, [Word(*row) for row in words])

    def commonest(self) -> str:
        """Answer the most frequent word of all documents; empty if they hold none."""
        found = self._connection.execute("SELECT term FROM vocabulary ORDER BY cnt DESC, term LIMIT 1").fetchone()
        return str(found[0]) if found is not None else ""

    def check(self) -> str | None:
        """Answer what is wrong with the index; None if its two halves agree and it is sound."""
        try:
            self._connection.execute("INSERT INTO texts (texts) VALUES ('integrity-check')")
        except sqlite3.DatabaseError as error:
            return f"the full text is damaged: {error}"
        lone = self._connection.execute(
            "SELECT (SELECT count(*) FROM documents) - (SELECT count(*) FROM texts), "
            "(SELECT count(*) FROM documents d JOIN texts t ON t.rowid = d.id WHERE t.path IS NOT d.path)"
        ).fetchone()
        return None if lone == (0, 0) else f"the list of documents and the full text differ by {lone}"


class _Transaction:
    """`BEGIN IMMEDIATE` to `COMMIT`: a deferred one that turns to writing fails at once when another writes."""

    def __init__(self, connection: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> None:
        self._connection = connection
        self._begin = begin

    def __enter__(self) -> None:
        self._connection.execute(self._begin)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._connection.execute("COMMIT" if kind is None else "ROLLBACK")


class GroupWriter:
    """Puts the documents of many jobs of one event loop into few transactions.

    While one transaction is being written, documents gather for the next: alone a document waits for nothing, and
    under load the cost of a commit is shared.
    """

    def __init__(self, index: TextIndex) -> None:
        self.index = index
        self._waiting: list[tuple[Document, asyncio.Future[bool]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def put(self, document: Document) -> bool:
        """Store a document; answers, once it is on disk, whether that changed the index."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((document, future))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write())
        return await future

    async def drained(self) -> None:
        """Wait until nothing is being written."""
        while self._writing is not None and not self._writing.done():
            await asyncio.wait([self._writing])

    async def _write(self) -> None:
        while self._waiting:
            batch = self._next_batch()
            try:
                changed = await asyncio.to_thread(self.index.put, [document for document, _ in batch])
            except Exception as error:  # each job of the batch gets it, and decides by its own retries
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), answer in zip(batch, changed, strict=True):
                    if not future.done():  # its job may have been stopped meanwhile
                        future.set_result(answer)

    def _next_batch(self) -> list[tuple[Document, asyncio.Future[bool]]]:
        chars = count = 0
        for document, _ in self._waiting[:_BATCH_DOCUMENTS_MAX]:
            chars += len(document.text)
            count += 1
            if chars >= _BATCH_CHARS_MAX:
                break
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch
