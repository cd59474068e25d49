"""Verbs as scripts: what to ask of the server, step by step, without saying who asks and how (no I/O).

A script is a generator: it yields a `Statement`, is sent the rows it came to,
    and returns the answer of its verb. All of
it belongs into one transaction, which it never ends: the pool of a backend runs it in one of its own, `bind` in the
caller's. It may be run again from the start where that transaction failed.

Parameters are native (`$1`) and cast in the SQL: int, float, str, bytes, bool, None, and lists of these.
The SQL names the schema `packhorse`; `Tx.sql` puts the one of the URL in its place.
"""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

from ..rate_limited import RateLimited
from .placing import Places

T = TypeVar("T")


class Statement(NamedTuple):
    """Something to ask of the server. `ahead` goes before it in the same message, and its rows are not wanted.

    After one that is `last` the transaction may be committed at once; a script that goes on does so in another.
    """

    sql: str
    params: tuple[Any, ...] = ()
    ahead: tuple[Statement, ...] = ()
    last: bool = False


Rows = list[tuple[Any, ...]]
Script = Generator[Statement, Rows, T]


class Again(Exception):  # not an error: a sign to roll back and run the script again
    """Another transaction did the same at the same time; what this script looked up is out of date."""


DEFAULT_SCHEMA = "packhorse"
#: What the server takes as a name, in bytes.
_NAME_MAX = 63

#: The server's clock, ms; never now(), which stands still in a transaction. A backend that was given another clock
#: (tests) sends what that says.
NOW = "coalesce({}::bigint, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)"

_BEGIN = f"""
SELECT {NOW.format("$1")}, EXISTS (SELECT 1 FROM packhorse.edges),
    ARRAY(SELECT type FROM packhorse.limited WHERE live ORDER BY type),
    ARRAY(SELECT by_key FROM packhorse.limited WHERE live ORDER BY type)
"""


class Store:
    """What all scripts of one backend share: which schema, the tokens, and how topics are told to others."""

    def __init__(self, schema: str, first_token: int, payload: Callable[[Iterable[str]], str | None]) -> None:
        self.schema = schema
        #: Answers what to send with NOTIFY so that the topics ring elsewhere once the transaction is committed; None:
        #: that is taken care of otherwise.
        self.payload = payload
        self.channel = _channel(schema)
        self.rate_limited = RateLimited()  # what claims found shut
        self._token = first_token
        self._sql: dict[str, str] = {}

    def new_token(self) -> int:
        """Answer a number that no other claim was ever given."""
        self._token += 1
        return self._token

    def sql(self, text: str) -> str:
        """Put our schema's name into a statement."""
        if self.schema == DEFAULT_SCHEMA:
            return text
        found = self._sql.get(text)
        if found is None:
            found = text.replace("packhorse.", f'"{self.schema}".')
            if len(self._sql) < 1_000:
                self._sql[text] = found
        return found

    def lock_key(self, *parts: str) -> int:
        """Answer the number of an advisory lock: of this schema and what `parts` name. 64 bits of a hash, signed."""
        text = "\0".join((self.schema, *parts))
        return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), signed=True)


def _channel(schema: str) -> str:
    name = f"packhorse_{schema}" if schema != DEFAULT_SCHEMA else DEFAULT_SCHEMA
    if len(name) <= _NAME_MAX:
        return name
    return f"packhorse_{blake2b(schema.encode(), digest_size=16).hexdigest()}"


class Tx:
    """What a script works with: the time, and what to tell whom after COMMIT."""

    __slots__ = (
        "_families",
        "ended",
        "is_bound",
        "lapses",
        "limited",
        "now_ms",
        "places",
        "sent_now_ms",
        "settles",
        "store",
        "told",
        "topics",
    )

    def __init__(self, store: Store, now_ms: int | None, *, is_bound: bool = False) -> None:
        self.store = store
        self.sent_now_ms = now_ms  # None: the server's clock counts
        self.is_bound = is_bound  # in a caller's transaction, which may be committed much later
        self.now_ms = now_ms if now_ms is not None else 0
        self.topics: set[str] = set()
        self.told = False  # others hear of `topics` with the commit
        self.settles = False  # running jobs with lanes were settled,
        self.lapses = False  # or jobs were taken from their worker: limits may let others start
        self.ended: list[int] = []  # seqs of jobs that ended, whose children are to be told: families.serve
        self._families = False
        self.limited: dict[str, bool] = {}  # the types that have limits, True where some are by key
        self.places = Places(self)

    def statement(self, sql: str, *params: Any) -> Statement:
        """Make a statement of ours."""
        return Statement(self.store.sql(sql), params)

    def ask(self, sql: str, *params: Any) -> Script[Rows]:
        """Ask, and answer the rows."""
        return (yield Statement(self.store.sql(sql), params))

    def begin(self) -> Script[None]:
        """Learn the time, and what kinds of jobs there are."""
        rows = yield from self.ask(_BEGIN, self.sent_now_ms)
        self.now_ms, self._families, types, by_key = rows[0]
        self.limited = dict(zip(types, by_key, strict=True))

    @property
    def families(self) -> bool:
        """Tell whether any job has a parent: where none has, nothing is done about families."""
        return self._families

    def join_families(self) -> None:
        """From here on there are families."""
        self._families = True

    def lock(self, *keys: int) -> Script[None]:
        """Wait for advisory locks until the end of the transaction, in an order that all keep."""
        if keys:
            yield from self.ask(LOCK_ALL, sorted(set(keys)))

    def finish(self) -> Script[None]:
        """Write down and find out what is only known at the end, and tell others. The last step of a script."""
        yield from self.places.write()
        if self.lapses or self.settles:
            rows = yield from self.ask(QUEUES_WITH_LANES)
            self.topics.update(f"queue:{queue}" for (queue,) in rows)
        payload = self.store.payload(self.topics) if self.topics else None
        self.told = payload is not None
        if payload is not None:
            yield from self.ask(NOTIFY, self.store.channel, payload)


#: In the order given, one after the other.
LOCK_ALL = "SELECT pg_advisory_xact_lock(k) FROM unnest($1::bigint[]) AS k"
LOCK = "SELECT pg_advisory_xact_lock($1::bigint)"
LOCK_SHARED = "SELECT pg_advisory_xact_lock_shared($1::bigint)"
NOTIFY = "SELECT pg_notify($1::text, $2::text)"

# One step in the index for each queue that has jobs in lanes, not for each of the jobs.
_QUEUES = """
WITH RECURSIVE found (queue) AS (
    (SELECT queue FROM packhorse.jobs WHERE state = 3 AND lane {0} ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (SELECT j.queue FROM packhorse.jobs AS j WHERE j.state = 3 AND j.lane {0} AND j.queue > found.queue
            ORDER BY j.queue LIMIT 1)
    FROM found WHERE found.queue IS NOT NULL
)
SELECT queue FROM found WHERE queue IS NOT NULL
"""
QUEUES_WITH_LANES = _QUEUES.format("IS NOT NULL")
OPEN_QUEUES = _QUEUES.format("IS NULL")
