"""The connections to a server, and the errors of them in words that say what to do.

No call is made again after its connection broke: whether it was done is not known, and that is what Unavailable means.
A call that found its connection closed before it was sent goes out over a new one; the driver looks before it sends.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import cache
from typing import Any

from redis import exceptions as driver
from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ...chance import CHANCE
from ...clock import SYSTEM_CLOCK, Clock
from ...errors import ConfigurationError, InvalidOption, PackhorseError, StoreFull, Unavailable
from ...wording import quantity
from .location import Location
from .records import pack
from .scripts import script

#: Calls under way at once, each on a connection of its own; the others wait here.
CALLS_MAX = 8
#: Verbs that wait for no other call: leases depend on them, and a worker makes one of each at a time.
URGENT = frozenset({"heartbeat", "retire", "tick"})
#: A call may take so many times the time-out of a single answer: it may have to connect, or to ask three sentinels.
PATIENCE = 3
#: What one call may send. Servers take no more than 512 MiB at once, and a script holds it several times over.
CALL_BYTES_MAX = 128 * 1024 * 1024

#: What the driver raises; that of a Cluster it cannot reach is of another family.
ERRORS = (driver.RedisError, driver.RedisClusterException)


class Link:
    """One backend's connections: calls of scripts, a few plain commands, and a client for listening."""

    def __init__(self, location: Location, clock: Clock) -> None:
        self.location = location
        self._clock = clock if clock is not SYSTEM_CLOCK else None
        self._client: Any = None
        self._sentinel: Sentinel | None = None
        self._calls = asyncio.Semaphore(CALLS_MAX)
        self._sent: set[asyncio.Task[Any]] = set()
        self._key = location.key("store")

    @property
    def is_open(self) -> bool:
        """Whether calls can be made."""
        return self._client is not None

    def connect(self) -> None:
        """Make the client; it connects with the first call."""
        if self._client is None:
            self._calls = asyncio.Semaphore(CALLS_MAX)
            self._client = self._make()

    async def disconnect(self) -> None:
        """Close all connections. Idempotent."""
        while self._sent:
            await asyncio.wait(self._sent)
        client, self._client = self._client, None
        sentinel, self._sentinel = self._sentinel, None
        if client is not None:
            await _closed(client, self.location.timeout_s)
        for one in sentinel.sentinels if sentinel is not None else ():
            await _closed(one, self.location.timeout_s)

    async def listener(self) -> Redis:
        """Answer a client of its own, for one connection that listens."""
        if self.location.kind != "cluster":
            client: Redis = self._make()
            return client
        if not self._client.get_primaries():
            await self._client.initialize()
        node = CHANCE.choice(self._client.get_primaries())  # each of them hears what is published on any
        return Redis(host=node.host, port=node.port, **self._options())

    async def owner(self) -> Redis:
        """Answer a client of its own for the server that has the store, to ask it about itself."""
        if self.location.kind != "cluster":
            client: Redis = self._make()
            return client
        if not self._client.get_primaries():
            await self._client.initialize()
        node = self._client.get_node_from_key(self._key)
        return Redis(host=node.host, port=node.port, **self._options())

    async def run(self, verb: str, args: Any) -> Any:
        """Run the script of a verb; a server that does not know it, or lost it, is given it."""
        source, sha = script(verb)
        now = "" if self._clock is None else str(self._clock.now_ms())
        packed = pack(args)
        if len(packed) > CALL_BYTES_MAX:
            raise InvalidOption(
                f"{quantity(len(packed), 'byte')} in one call; send fewer jobs a call, of {CALL_BYTES_MAX:,} in all"
            )
        try:
            return await self._call("EVALSHA", sha, 1, self._key, packed, now, is_urgent=verb in URGENT)
        except driver.NoScriptError:
            pass
        except ERRORS as error:
            raise explain(error, self.location) from error
        return await self.command("EVAL", source, 1, self._key, packed, now, is_urgent=verb in URGENT)

    async def command(self, *args: Any, is_urgent: bool = False) -> Any:
        """Make a plain call."""
        try:
            return await self._call(*args, is_urgent=is_urgent)
        except ERRORS as error:
            raise explain(error, self.location) from error

    async def _call(self, *args: Any, is_urgent: bool = False) -> Any:
        client = self._client
        if client is None:
            raise Unavailable(f"{self.location.shown!r} is not open; call open() first")
        limit = nullcontext() if is_urgent else self._calls
        # In a task of its own: the driver swallows a cancellation that comes while it reads, and who is cancelled must
        # hear of it. The call goes on to its end, which is bounded.
        task = asyncio.get_running_loop().create_task(self._send(client, limit, args))
        self._sent.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    async def _send(self, client: Any, limit: AbstractAsyncContextManager[None], args: tuple[Any, ...]) -> Any:
        try:
            async with asyncio.timeout(PATIENCE * self.location.timeout_s), limit:
                return await client.execute_command(*args)
        except (OSError, EOFError) as error:  # TimeoutError too, which is asyncio's
            raise explain(error, self.location) from error

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._sent.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked may be gone

    # ---- clients -------------------------------------------------------------------------------------------

    def _options(self) -> dict[str, Any]:
        options = self.location.options
        timeout_s = self.location.timeout_s
        return {
            **{name: value for name, value in options.items() if name != "db"},
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "socket_keepalive": True,
            "health_check_interval": 30,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 3,
            **_driver_options(),
        }

    def _make(self) -> Any:
        location = self.location
        options = self._options()
        try:
            if location.kind == "cluster":
                return self._make_cluster(options)
            options["db"] = location.options.get("db", 0)
            if location.kind == "sentinel":
                if self._sentinel is None:
                    self._sentinel = self._make_sentinel(options)
                return self._sentinel.master_for(location.master, **options)
            if location.kind == "unix":
                return Redis(unix_socket_path=location.path, **options)
            ((host, port),) = location.hosts
            return Redis(host=host, port=port, **options)
        except (driver.RedisError, ValueError, TypeError, OSError) as error:
            raise ConfigurationError(f"{location.shown!r}: {_words(error)}") from error

    def _make_cluster(self, options: dict[str, Any]) -> Any:
        from redis.asyncio.cluster import ClusterNode

        nodes = [ClusterNode(host, port) for host, port in self.location.hosts]
        # One slot is enough for us: the store's own shard may work while another is down.
        return RedisCluster(startup_nodes=nodes, require_full_coverage=False, **options)

    def _make_sentinel(self, options: dict[str, Any]) -> Sentinel:
        keep = ("socket_timeout", "socket_connect_timeout", "retry", "protocol", "ssl")
        kept = {name: value for name, value in options.items() if name in keep or name.startswith("ssl_")}
        untyped: Any = Sentinel  # the driver gives it no types
        made: Sentinel = untyped(list(self.location.hosts), sentinel_kwargs={**kept, **self.location.sentinel_options})
        return made


@cache
def _driver_options() -> dict[str, Any]:
    """Answer options that only newer drivers know. Where one listens for notices of maintenance, it takes a connection
    that the server has closed for one that has such a notice, and sends into nothing."""
    try:
        from redis.maint_notifications import MaintNotificationsConfig
    except ImportError:
        return {}
    return {"maint_notifications_config": MaintNotificationsConfig(enabled=False)}


async def _closed(client: Any, timeout_s: float) -> None:
    """Close a client; one whose server does not answer is let go."""
    try:
        async with asyncio.timeout(timeout_s):
            await client.aclose()
    except (*ERRORS, OSError):
        pass


# ---- errors ------------------------------------------------------------------------------------------------

_WRONG_LOGIN = "the server refuses the user name or password; correct them in the URL"
_RIGHTS = (
    "the user of the URL may not do this; it needs EVALSHA, EVAL, PUBLISH, SUBSCRIBE, and all keys and channels of the "
    "prefix: ~{prefix}:* &{prefix}:*"
)
_MEMORY = "the server is out of memory; raise its maxmemory, or remove jobs and keep ended ones for a shorter time"
_REPLICA = "the server is a replica, which cannot be written to; after a failover this passes, else name the master"
_LOADING = "the server is still loading its data; this passes"
_DOWN = "the Cluster is down: it serves no slots until its failover is done"

#: What to do about errors that only a change of settings ends, by what they contain.
_REFUSED = (
    ("WRONGPASS", _WRONG_LOGIN),
    ("invalid username-password", _WRONG_LOGIN),
    ("NOAUTH", "the server asks for a password; write redis://user:password@host"),
    ("Authentication required", "the server asks for a password; write redis://user:password@host"),
    ("NOPERM", _RIGHTS),
    ("can't publish", _RIGHTS),
    ("The user executing the script", _RIGHTS),
    ("without any password configured", "the server has no password, but the URL has one; leave it out"),
    ("DB index is out of range", "the server has no database of that number; name another one"),
    ("WRONGTYPE", "keys of this prefix belong to something else; choose another prefix="),
    ("wrong kind of value", "keys of this prefix belong to something else; choose another prefix="),
)
#: And about those that may pass.
_AWAY = (
    ("OOM", _MEMORY),
    ("READONLY", _REPLICA),
    ("MISCONF", "the server cannot save its data and refuses writes; look at its disk and its log"),
    ("NOREPLICAS", "the server has too few replicas and refuses writes until they are back"),
    ("LOADING", _LOADING),
    ("MASTERDOWN", "the server has lost its master; this passes with the failover"),
    ("CLUSTERDOWN", _DOWN),
    ("TRYAGAIN", "the Cluster is moving this store's slot; this passes"),
    ("BUSY", "a script of somebody else holds the server; end it with SCRIPT KILL"),
    ("max number of clients", "the server has no connection left; raise its maxclients"),
)
#: The driver takes the sign off some answers and makes a class of it.
_KINDS: tuple[tuple[type[Exception], type[PackhorseError], str], ...] = (
    (driver.AuthenticationError, ConfigurationError, _WRONG_LOGIN),
    (driver.NoPermissionError, ConfigurationError, _RIGHTS),
    (driver.OutOfMemoryError, StoreFull, _MEMORY),
    (driver.ReadOnlyError, Unavailable, _REPLICA),
    (driver.BusyLoadingError, Unavailable, _LOADING),
    (driver.ClusterDownError, Unavailable, _DOWN),
    (driver.TryAgainError, Unavailable, "the Cluster is moving this store's slot; this passes"),
    (driver.NoScriptError, Unavailable, "the server loses scripts as fast as it gets them"),
)


def _words(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:300]


def explain(error: BaseException, location: Location) -> PackhorseError:
    """Answer what an error of the driver means to the caller. Passwords are in none of them."""
    words = _words(error)
    for sign, remedy in _REFUSED:
        if sign in words:
            return ConfigurationError(f"{location.shown!r}: {remedy}")
    for kind, meaning, remedy in _KINDS:
        if isinstance(error, kind):
            return meaning(f"{location.shown!r}: {remedy}")
    for sign, remedy in _AWAY:
        if sign in words:
            kind = StoreFull if sign == "OOM" else Unavailable
            return kind(f"{location.shown!r}: {remedy}")
    if isinstance(error, driver.TimeoutError | TimeoutError):
        return Unavailable(f"{location.shown!r} did not answer within {location.timeout_s:g} s")
    if isinstance(error, driver.ResponseError):
        return PackhorseError(f"{location.shown!r} answered with an error: {words}")
    return Unavailable(f"{location.shown!r} cannot be reached: {words}")
