"""What Redis' part of the doctor asks: how it keeps what it acknowledged, what it may drop, and who it is."""

from __future__ import annotations

import asyncio
from typing import Any

from redis import exceptions as driver

from ...clock import Clock
from ..checkup import DEAD_WORKER, DURABILITY, Checkup, Finding, Line, clock_finding, good_if
from .link import PATIENCE, Link, explain
from .opening import VERSION_MIN

#: Above this part of its memory something will be refused soon.
MEMORY_USED_MAX = 0.9

#: How an append-only file that is synced so keeps what was acknowledged.
_SYNCED = {
    "always": ("synced to its file before it is acknowledged", "yes", "yes"),
    "everysec": ("in its append-only file, synced every second", "yes", "all but the last 1 to 2 s"),
    "no": ("in its append-only file, synced when the system likes", "yes", "no"),
}


async def checkup(link: Link, clock: Clock) -> Checkup:
    """Ask the one server that has the store. `link` is connected. Raises ConfigurationError, Unavailable."""
    try:
        async with asyncio.timeout(PATIENCE * link.location.timeout_s), await link.owner() as client:
            return await _checkup(client.execute_command, link.location.key("store"), clock)
    except (driver.RedisError, OSError, EOFError) as error:
        raise explain(error, link.location) from error


async def _checkup(ask: Any, store_key: str, clock: Clock) -> Checkup:
    info = _info(await ask("INFO"))
    config = await _config(ask, "appendfsync", "maxmemory-policy", "stop-writes-on-bgsave-error")
    before_ms = clock.now_ms()
    seconds, micros = await ask("TIME")
    findings = [
        _version(info),
        clock_finding(int(seconds) * 1000 + int(micros) // 1000, before_ms, clock.now_ms()),
        _loading(info),
        *_persistence(info, config),
        *_memory(info, config),
        *_replication(info),
    ]
    if info.get("cluster_enabled") == "1":
        findings.append(_cluster(_info(await ask("CLUSTER", "INFO"))))
    made = bool(await ask("EXISTS", store_key))
    if not made:
        what = "there is no store of this prefix yet"
        findings.append(good_if(False, "schema", "none", what, "it is made when first used", warn=True))
    return Checkup(promise=_promise(info, config), findings=tuple(findings), ready=made and _is_master(info))


def _info(reply: Any) -> dict[str, str]:
    """Answer the lines `name:value` of INFO, whether the driver has read them already or not."""
    if isinstance(reply, dict):
        return {str(name): str(value) for name, value in reply.items()}
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
    return dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)


async def _config(ask: Any, *names: str) -> dict[str, str]:
    """Answer settings; without those that this user or this provider does not let us see."""
    found: dict[str, str] = {}
    for name in names:
        try:
            reply = await ask("CONFIG", "GET", name)
        except driver.ResponseError:  # renamed, or no right to it
            continue
        pairs = list(reply.values()) if isinstance(reply, dict) else list(reply)[1::2]
        if pairs:
            value = pairs[0]
            found[name] = value.decode() if isinstance(value, bytes) else str(value)
    return found


def _version(info: dict[str, str]) -> Finding:
    if "valkey_version" in info:
        return Finding(check="Valkey", value=info["valkey_version"])
    text = info.get("redis_version", "not known")
    parts = text.split(".")
    old = all(part.isdigit() for part in parts[:2]) and tuple(map(int, parts[:2])) < VERSION_MIN
    return good_if(not old, "Redis", text, "too old for packhorse", "6.2 or newer, or Valkey")


def _is_master(info: dict[str, str]) -> bool:
    return info.get("role", "master") == "master"


def _promise(info: dict[str, str], config: dict[str, str]) -> dict[Line, str]:
    acknowledged, server_kill, power_cut = "in its memory only", "no", "no"
    if info.get("aof_enabled") == "1":
        how = config.get("appendfsync", "")
        acknowledged, server_kill, power_cut = _SYNCED.get(how, ("in its append-only file", "yes", "not known"))
    return {
        Line.ACKNOWLEDGED: acknowledged,
        Line.SERVER_KILL: server_kill,
        Line.POWER_CUT: power_cut,
        Line.DEAD_WORKER: DEAD_WORKER,
        Line.ORDER: "strict at claim",
    }


def _loading(info: dict[str, str]) -> Finding:
    return good_if(
        info.get("loading", "0") == "0",
        "loading",
        "yes" if info.get("loading", "0") != "0" else "no",
        "it reads its data set after a start, and answers nothing else until then",
        "wait; watch loading_eta_seconds in INFO",
        breaks=[Line.ACKNOWLEDGED],
    )


def _persistence(info: dict[str, str], config: dict[str, str]) -> list[Finding]:
    keeps = info.get("aof_enabled") == "1"
    how = config.get("appendfsync", "not known")
    found = [
        good_if(
            keeps,
            "appendonly",
            "yes" if keeps else "no",
            "jobs are in memory only, or in a snapshot that is minutes old: a crash or restart takes them",
            "appendonly yes, in redis.conf or by CONFIG SET and CONFIG REWRITE",
            breaks=DURABILITY,
        )
    ]
    if keeps:
        found.append(_synced(how))
        found.append(
            good_if(
                info.get("aof_last_write_status", "ok") == "ok",
                "last write of the file",
                info.get("aof_last_write_status", "ok"),
                "its disk is full or failed: writes are refused, or are not kept",
                "see the server's log; free space on its disk",
                breaks=DURABILITY,
            )
        )
    refuses = config.get("stop-writes-on-bgsave-error", "yes") == "yes"
    found.append(
        good_if(
            info.get("rdb_last_bgsave_status", "ok") == "ok",
            "last snapshot",
            info.get("rdb_last_bgsave_status", "ok"),
            "it failed: every write is refused until one succeeds" if refuses else "it failed",
            "see the server's log: no space on its disk, or no memory for the fork",
            breaks=[Line.ACKNOWLEDGED] if refuses else [],
            warn=not refuses,
        )
    )
    return found


def _synced(how: str) -> Finding:
    if how == "no":
        return good_if(
            False,
            "appendfsync",
            how,
            "a power cut takes what the system has not written yet: about 30 s",
            "appendfsync always, or everysec",
            breaks=[Line.POWER_CUT],
        )
    return good_if(
        how == "always",
        "appendfsync",
        how,
        "a power cut takes what was acknowledged in the last 1 to 2 s; so does a crash while the disk is slow"
        if how == "everysec"
        else "CONFIG is not allowed here: ask whoever runs the server",
        "appendfsync always keeps all of it, and is slower",
        warn=True,
    )


def _memory(info: dict[str, str], config: dict[str, str]) -> list[Finding]:
    limit = int(info.get("maxmemory", "0"))
    policy = config.get("maxmemory-policy") or info.get("maxmemory_policy", "not known")
    evicts = policy != "noeviction"
    used = int(info.get("used_memory", "0"))
    room = limit or int(info.get("total_system_memory", "0"))
    return [
        good_if(
            not evicts,
            "maxmemory-policy",
            policy,
            "when its memory is full it drops keys: jobs that were acknowledged"
            if limit
            else "as soon as maxmemory is set it will drop keys: jobs that were acknowledged",
            "maxmemory-policy noeviction; use another Redis as a cache",
            breaks=[Line.ACKNOWLEDGED, *DURABILITY] if limit else [],
            warn=not limit,
        ),
        good_if(
            not room or used < MEMORY_USED_MAX * room,
            "memory",
            f"{_mib(used)} of {_mib(room)}" if room else _mib(used),
            "once it is full nothing is taken any more, and workers cannot settle",
            "raise maxmemory, drain the queues, or keep ended jobs for a shorter time",
            warn=True,
        ),
    ]


def _replication(info: dict[str, str]) -> list[Finding]:
    found = [
        good_if(
            _is_master(info),
            "takes writes",
            "yes" if _is_master(info) else "no, a replica",
            "nothing can be enqueued, claimed or settled here",
            "name the master in the URL, or its sentinels: redis+sentinel://…",
            breaks=[Line.ACKNOWLEDGED],
        )
    ]
    replicas = int(info.get("connected_slaves", "0"))
    if replicas:
        found.append(
            good_if(
                False,
                "replicas",
                replicas,
                "they follow a moment behind: a failover may take back what was acknowledged last",
                "accept it for failovers, and set min-replicas-to-write 1 so that a cut-off master stops taking jobs",
                warn=True,
            )
        )
    return found


def _cluster(state: dict[str, str]) -> Finding:
    value = state.get("cluster_state", "not known")
    return good_if(
        value == "ok",
        "cluster",
        f"{value}, shards: {state.get('cluster_size', '?')}",
        "slots are not served: the store may be out of reach",
        "see CLUSTER INFO and CLUSTER NODES",
        breaks=[Line.ACKNOWLEDGED],
    )


def _mib(count: int) -> str:
    return f"{count / 1024 / 1024:,.0f} MiB"
