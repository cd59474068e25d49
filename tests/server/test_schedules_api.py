"""`/api/v1/schedules` and `/api/v1/slots`."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import pytest

from packhorse.clock import process_cpu_ms

from ..unit.test_schedule_hostile import MALFORMED, NEVER
from .api import Api, asking, on_stores

PATH = "/api/v1/schedules"
JSON = {"Content-Type": "application/json"}


@on_stores
def test_a_schedule_is_made_changed_and_shown(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        ask = {
            "type": "email",
            "payload": {"to": "a@example.com"},
            "cron": "0 9 * * mon-fri",
            "tz": "Europe/Paris",
            "missed": "all",
            "jitter": "30s",
            "priority": "low",
            "tags": ["daily"],
        }
        made = await api.ask("PUT", f"{PATH}/morning", json=ask)
        assert (made.status_code, made.json()["answer"]) == (201, "added")
        again = await api.ask("PUT", f"{PATH}/morning", json=ask)
        assert (again.status_code, again.json()["answer"]) == (200, "unchanged")
        changed = await api.done("PUT", f"{PATH}/morning", {**ask, "cron": "0 10 * * *"})
        assert (changed["answer"], changed["cron"]) == ("changed", "0 10 * * *")
        shown = await api.done("GET", f"{PATH}/morning")
        assert [shown[name] for name in ("tz", "missed", "jitter_ms", "priority", "queue", "paused")] == [
            "Europe/Paris",
            "all",
            30_000,
            8,
            "mail",  # the task's own
            False,
        ]
        assert shown == {name: value for name, value in changed.items() if name != "answer"}
        assert (await api.done("GET", PATH))["items"] == [shown]
        await api.refused("GET", f"{PATH}/evening", status=404)
        assert (await api.done("PUT", f"{PATH}/null", {"type": "w", "every": "1h", "payload": None}))["payload"] is None

    asking(store, tmp_path, scenario)


@on_stores
def test_a_schedule_is_paused_resumed_run_and_removed(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.done("PUT", f"{PATH}/ping", {"type": "ping", "every": "1h", "overlap": "skip", "paused": True})
        assert (await api.done("GET", f"{PATH}/ping"))["next"] is None
        assert await api.done("POST", f"{PATH}/ping/resume") == {"name": "ping", "paused": False}
        assert (await api.done("GET", f"{PATH}/ping"))["next"] is not None
        assert await api.done("POST", f"{PATH}/ping/pause") == {"name": "ping", "paused": True}
        first = await api.post(f"{PATH}/ping/run")
        again = await api.post(f"{PATH}/ping/run")
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.json() == {"id": first.json()["id"], "created": False}
        assert (await api.done("GET", f"/api/v1/jobs/{first.json()['id']}"))["schedule"] == "ping"
        assert (await api.ask("DELETE", f"{PATH}/ping")).status_code == 204
        for method, tail in (
            ("GET", ""),
            ("DELETE", ""),
            ("GET", "/next"),
            ("POST", "/run"),
            ("POST", "/pause"),
            ("POST", "/resume"),
        ):
            await api.refused(method, f"{PATH}/ping{tail}", status=404)

    asking(store, tmp_path, scenario)


@on_stores
def test_the_next_slots_are_those_of_the_zone(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        night = {"cron": "30 2 * * *", "tz": "Europe/Berlin", "from": "2026-03-28T00:00:00Z", "count": 2}
        slots = (await api.done("GET", "/api/v1/slots", params=night))["items"]
        assert slots == [
            {"at": "2026-03-28T01:30:00.000Z", "local": "2026-03-28T02:30:00+01:00"},
            {"at": "2026-03-29T01:00:00.000Z", "local": "2026-03-29T03:00:00+02:00"},  # there is no 02:30 that night
        ]
        await api.done("PUT", f"{PATH}/night", {"type": "report", **{name: night[name] for name in ("cron", "tz")}})
        same = await api.done("GET", f"{PATH}/night/next", params={"from": night["from"], "count": 2})
        assert same["items"] == slots
        every = await api.done("GET", "/api/v1/slots", params={"every": "90s", "count": 1_000})
        assert len(every["items"]) == 1_000

    asking(store, tmp_path, scenario)


@on_stores
def test_what_cannot_be_a_schedule_is_refused_with_the_place(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for body, place in (
            ({"type": "x"}, ""),
            ({"type": "x", "cron": "* * * * *", "every": "5s"}, ""),
            ({"type": "x", "every": "10ms"}, "/every"),
            ({"type": "x", "cron": "* * * * *", "tz": "Mars/Olympus"}, "/tz"),
            ({"type": "x", "every": "5s", "missed": "some"}, "/missed"),
            ({"type": "x", "cron": "0 0 31 2 *"}, "/cron"),
            ({"type": "x", "every": "5s", "at": "2030-01-31T09:00:00Z"}, ""),
            ({"type": "x", "every": "5s", "priority": "soon"}, "/priority"),
            ({"type": "x", "every": "5s", "tags": ["a b"]}, "/tags"),
            ({"type": "email", "every": "5s", "payload": {"to": 7}}, "/payload/to"),
            ({"type": "a b", "every": "5s"}, "/type"),
        ):
            await api.refused("PUT", f"{PATH}/s", body, status=422, at=place)
        await api.refused("PUT", f"{PATH}/a%20b", {"type": "x", "every": "5s"}, status=422)
        assert (await api.done("GET", PATH))["items"] == []

    asking(store, tmp_path, scenario)


@pytest.mark.parametrize("where", ["schedule", "slots", "recurring"])
def test_no_expression_takes_long_wherever_it_is_sent(where: str, tmp_path: Path) -> None:
    """C23: a million fields, impossible dates, `*/0`."""
    hostile = [
        *NEVER,
        *MALFORMED,
        "* " * 100_000,
        "*/" + "1" * 5_000 + " * * * *",
        ",".join(["*"] * 2_000) + " * * * *",
    ]

    async def scenario(api: Api) -> None:
        for cron in hostile:
            started_ms = process_cpu_ms()
            if where == "schedule":
                content = json.dumps({"type": "x", "cron": cron})
                response = await api.ask("PUT", f"{PATH}/s", content=content, headers=JSON)
            elif where == "slots":
                response = await api.get(f"/api/v1/slots?cron={quote(cron[:15_000], errors='surrogatepass')}")
            else:
                content = json.dumps({"type": "x", "recurring": {"cron_expression": cron}})
                response = await api.ask("POST", "/api/v1/jobs", content=content, headers=JSON)
            assert response.status_code in {400, 414, 422}, cron[:100]
            assert process_cpu_ms() - started_ms < 100, cron[:100]
        assert (await api.done("GET", PATH))["items"] == []

    asking("memory", tmp_path, scenario)
