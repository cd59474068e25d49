"""`/api/v1/rate-limits`, `/concurrency-limits` and `/limits`."""

from __future__ import annotations

from pathlib import Path

from .api import Api, asking, on_stores


@on_stores
def test_a_rate_is_set_shown_and_lifted(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        rate = "/api/v1/rate-limits/email"
        assert await api.done("POST", rate, {"limit": 100, "burst": 10}) == {
            "type": "email",
            "key": None,
            "rate": "100/s",
            "burst": 10,
            "concurrency": None,
            "source": "operator",
            "known": False,
        }
        await api.done("POST", "/api/v1/concurrency-limits/email", {"limit": 3})
        shown = await api.done("GET", rate)
        assert (shown["rate"], shown["concurrency"]) == ("100/s", 3)
        assert (await api.done("POST", rate, {"limit": 5, "period": "10s"}))["rate"] == "5/10s"
        assert (await api.done("DELETE", rate))["rate"] == "5/10s"
        await api.refused("GET", rate, status=404)
        await api.refused("DELETE", rate, status=404)
        (left,) = (await api.done("GET", "/api/v1/limits"))["items"]
        assert (left["rate"], left["concurrency"]) == (None, 3)
        await api.done("DELETE", "/api/v1/concurrency-limits/email")
        assert (await api.done("GET", "/api/v1/limits"))["items"] == []

    asking(store, tmp_path, scenario)


@on_stores
def test_limits_of_a_key_and_of_each_key_stand_beside_that_of_the_type(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        concurrency = "/api/v1/concurrency-limits/work"
        await api.done("POST", concurrency, {"limit": 5})
        await api.done("POST", concurrency, {"limit": 2}, params={"key": "*"})
        await api.done("POST", concurrency, {"limit": 1}, params={"key": "tenant 7"})
        assert (await api.done("GET", concurrency, params={"key": "tenant 7"}))["concurrency"] == 1
        await api.enqueue(key="tenant 7")
        assert len(await api.claim()) == 1
        live = await api.done("GET", "/api/v1/limits/work", params={"key": "tenant 7"})
        assert [(limit["key"], limit["running"], limit["opens_in_ms"]) for limit in live["items"]] == [
            (None, 1, 0),
            ("tenant 7", 1, None),
        ]
        assert (await api.done("DELETE", "/api/v1/limits/work", params={"key": "*"}))["concurrency"] == 2
        await api.refused("DELETE", "/api/v1/limits/work", status=404, params={"key": "*"})
        assert len((await api.done("GET", "/api/v1/limits"))["items"]) == 2

    asking(store, tmp_path, scenario)


@on_stores
def test_a_limit_out_of_bounds_is_refused_with_the_place(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        rate = "/api/v1/rate-limits/email"
        for body, place in (
            ({"limit": 0}, "/limit"),
            ({"limit": -1}, "/limit"),
            ({"limit": 10**9}, "/limit"),
            ({"limit": 1.5}, "/limit"),
            ({"limit": "100"}, "/limit"),
            ({"limit": 10**30}, "/limit"),
            ({"limit": True}, "/limit"),
            ({"limit": 5, "burst": 0}, "/burst"),
            ({"limit": 5, "period": -1}, "/period"),
            ({"burst": 5}, ""),
            ({"limit": 5, "per": "1s"}, ""),
        ):
            await api.refused("POST", rate, body, status=422, at=place)
        for period in ("0s", "367d", "soon"):
            await api.refused("POST", rate, {"limit": 5, "period": period}, status=422)
        for limit in (0, 10**9):
            await api.refused("POST", "/api/v1/concurrency-limits/email", {"limit": limit}, status=422, at="/limit")
        for job_type in ("a%20b", "a%00", "%C3%BC"):
            assert (await api.post(f"/api/v1/rate-limits/{job_type}", {"limit": 5})).status_code == 422
            assert (await api.get(f"/api/v1/rate-limits/{job_type}")).status_code == 400
        await api.refused("POST", rate, {"limit": 5}, status=422, params={"key": "a\nb"})
        await api.refused("POST", rate, {"limit": 5}, status=400, params={"keys": "a"}, at="keys")
        assert (await api.done("GET", "/api/v1/limits"))["items"] == []

    asking(store, tmp_path, scenario)
