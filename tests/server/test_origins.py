"""Which names are ours and which pages may ask: rebinding, forged requests, CORS (FAILURES C2, C3)."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from packhorse.server.door.origins import Hosts, is_local

from ..worker.working import work
from .guarded import METHODS, PATHS, SETTING, bearer, guarded, headers_of, status_of


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def is_cors(response: httpx.Response) -> bool:
    return any(name.startswith("access-control-") for name in headers_of(response))


# ---- C2: pages of other sites ------------------------------------------------------------------------------

FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:3000"},  # another port of the same machine is another site
    {"Origin": "http://127.0.0.1:8080.evil.example"},
    {"Origin": "http://localhost:8080"},  # it asked for 127.0.0.1
    {"Origin": "file://"},
    {"Origin": ""},
    {"Origin": "127.0.0.1:8080"},
    {"Origin": "chrome-extension://127.0.0.1:8080"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "something-new"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"},
    {"Origin": "http://127.0.0.1:8080", "Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.parametrize("tokens", [None, SETTING], ids=["open", "tokens"])
@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
def test_c2_a_page_of_another_site_is_refused_on_every_method_and_path(tokens: str | None, content_type: str) -> None:
    async def scenario() -> None:
        async with guarded(tokens=tokens) as server, server.client() as client:
            for headers in FOREIGN:
                for method in METHODS:
                    for path in PATHS:
                        response = await client.request(
                            method,
                            path,
                            headers={**headers, **bearer(), "Content-Type": content_type},
                            content=b'{"type": "x"}',
                        )
                        assert response.status_code == 403, (method, path, headers)
                        assert not is_cors(response)
            assert (await client.get("/api/v1/jobs", headers=bearer())).json()["items"] == []

    work(scenario)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://127.0.0.1:8080"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "HTTP://127.0.0.1:8080", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"},
    ],
)
def test_c2_programs_and_pages_of_this_server_come_in(headers: dict[str, str]) -> None:
    async def scenario() -> None:
        async with guarded() as server, server.client() as client:
            stored = await client.post("/api/v1/jobs", json={"type": "x"}, headers=headers)
            assert stored.status_code == 201
            assert (await client.get("/api/v1/jobs", headers=headers)).status_code == 200

    work(scenario)


@pytest.mark.parametrize("method", METHODS)
def test_c2_a_link_from_elsewhere_opens_a_page_and_does_nothing_else(method: str) -> None:
    async def scenario() -> None:
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        async with guarded() as server, server.client() as client:
            response = await client.request(method, "/", headers=link)
            assert (response.status_code == 200) is (method in {"GET", "HEAD"})

    work(scenario)


def test_c2_a_form_cannot_carry_json() -> None:
    async def scenario() -> None:
        async with guarded() as server, server.client() as client:
            for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
                response = await client.post(
                    "/api/v1/jobs", content=b'{"type":"x"}', headers={"Content-Type": content_type}
                )
                assert response.status_code == 415
            assert (await client.get("/api/v1/jobs")).json()["items"] == []

    work(scenario)


# ---- C2: names ---------------------------------------------------------------------------------------------

REBINDING = [
    "evil.example",
    "evil.example:8080",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "127.0.0.1.evil.example:8080",
    "169.254.169.254",
    "10.0.0.5:8080",
    "[::2]:8080",
    "0.0.0.0",
    "localhost.",
    "localhost:",
    "localhost:80a",
    "localhost:8080:8080",
    "user@localhost",
    "localhost/",
    "local host",
    "",
    "2130706433",
    "x" * 5_000,
]


@pytest.mark.parametrize("tokens", [None, SETTING], ids=["open", "tokens"])
@pytest.mark.parametrize("host", REBINDING)
def test_c2_a_name_that_is_not_ours_is_refused_on_every_method_and_path(host: str, tokens: str | None) -> None:
    async def scenario() -> None:
        async with guarded(tokens=tokens) as server, server.client() as client:
            for method in METHODS:
                for path in PATHS:
                    response = await client.request(method, path, headers={"Host": host, **bearer()})
                    assert response.status_code == 403, (method, path)
                    assert response.headers["content-type"] == "application/problem+json"

    work(scenario)


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8080", "127.0.0.1:1", "[::1]", "[::1]:8080"])
def test_the_names_of_the_loopback_are_ours_at_any_port(host: str) -> None:
    async def scenario() -> None:
        async with guarded() as server, server.client() as client:
            assert (await client.get("/livez", headers={"Host": host})).status_code == 200

    work(scenario)


@pytest.mark.parametrize(
    ("listening", "allowed", "host", "taken"),
    [
        (["0.0.0.0"], [], b"192.168.1.7:8080", True),
        (["::"], [], b"[fd00::7]:8080", True),
        (["::"], [], b"192.168.1.7", True),
        (["0.0.0.0"], [], b"jobs.example.com", False),
        (["0.0.0.0"], [], b"999.1.1.1", False),
        (["10.0.0.5"], [], b"10.0.0.5:8080", True),
        (["10.0.0.5"], [], b"10.0.0.6", False),
        (["fd00::7"], [], b"[FD00::7]", True),
        (["myhost", "10.0.0.5"], [], b"MyHost:80", True),
        (["127.0.0.1"], ["jobs.example.com"], b"Jobs.Example.com", True),
        (["127.0.0.1"], ["jobs.example.com"], b"jobs.example.com:444", True),
        (["127.0.0.1"], ["jobs.example.com:444"], b"jobs.example.com:445", False),
        (["127.0.0.1"], ["jobs.example.com:444"], b"jobs.example.com:444", True),
        (["127.0.0.1"], ["*.example.com"], b"a.b.example.com:1", True),
        (["127.0.0.1"], ["*.example.com"], b"example.com", False),
        (["127.0.0.1"], ["*.example.com"], b"evilexample.com", False),
        (["127.0.0.1"], ["*.example.com"], b".example.com", False),
    ],
)
def test_names_are_ours_by_address_or_by_the_setting(
    listening: list[str], allowed: list[str], host: bytes, taken: bool
) -> None:
    hosts = Hosts(listening, allowed)
    assert [hosts.takes(host) for _ in range(2)] == [taken, taken]


def test_verdicts_on_names_do_not_pile_up() -> None:
    hosts = Hosts()
    for number in range(5_000):
        assert not hosts.takes(b"h%d" % number)
    assert len(hosts._verdicts) <= 256
    assert hosts.takes(b"localhost")


@pytest.mark.parametrize(
    ("origin", "own"),
    [
        (b"https://jobs.example.com", True),
        (b"http://backend:8080", True),
        (b"https://jobs.example.com:444", False),
        (b"https://x.wild.example", False),  # a wildcard allows names, not each others' pages
    ],
)
def test_behind_a_proxy_that_sends_another_host_the_allowed_names_are_own_origins(origin: bytes, own: bool) -> None:
    hosts = Hosts(["127.0.0.1"], ["jobs.example.com", "backend", "*.wild.example"])
    assert hosts.is_own(origin, b"backend:8080") is own


def test_a_request_without_or_with_two_hosts_is_no_request() -> None:
    async def scenario() -> None:
        async with guarded() as server:
            for headers in ([], [(b"host", b"localhost"), (b"host", b"evil.example")]):
                assert await status_of(server.application, headers) == 400
            two = [(b"host", b"localhost"), (b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")]
            assert await status_of(server.application, two) == 400
            assert await status_of(server.application, [(b"host", b"localhost")]) == 200

    work(scenario)


# ---- C3: CORS ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [None, "http://127.0.0.1:8080", "http://evil.example", "null"])
@pytest.mark.parametrize("asked", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("tokens", [None, SETTING], ids=["open", "tokens"])
def test_c3_options_grants_nothing_and_no_answer_has_a_cors_header(
    origin: str | None, asked: str, tokens: str | None
) -> None:
    async def scenario() -> None:
        async with guarded(tokens=tokens) as server, server.client() as client:
            headers = {"Access-Control-Request-Method": asked, "Access-Control-Request-Headers": "authorization"}
            if origin is not None:
                headers["Origin"] = origin
            for path in [*PATHS, "*"]:
                for extra in ({}, bearer()):
                    response = await client.options(path, headers={**headers, **extra})
                    assert response.status_code in {401, 403, 404, 405}
                    assert not is_cors(response)
                    response = await client.request(asked, path, headers={**headers, **extra}, json={})
                    assert not is_cors(response)

    work(scenario)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        (b"localhost:80", True),
        (b"app.localhost", True),
        (b"127.0.0.2", True),
        (b"[::1]:80", True),
        (b"[::ffff:127.0.0.1]", True),
        (b"10.0.0.1", False),
        (b"localhost.evil.example", False),
        (b"", False),
        (b"[zz]", False),
    ],
)
def test_what_names_this_machine(host: bytes, local: bool) -> None:
    assert is_local(host) is local
