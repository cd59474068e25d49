"""Sessions: a token for a cookie, worth no more than the token, of use to no other page (FAILURES C2, C17)."""

from __future__ import annotations

from http.cookies import SimpleCookie
from pathlib import Path

import pytest

from packhorse.clock import ManualClock
from packhorse.server.access import Role
from packhorse.server.door.sessions import (
    SESSION_MS,
    SESSIONS_A_TOKEN_MAX,
    SESSIONS_MAX,
    Sessions,
    session_id_in,
    set_cookie,
)
from packhorse.server.door.tokens import Tokens, TokensFile, create_token, new_token, revoke_tokens

from ..worker.working import new_app, work
from .guarded import SETTING, TOKENS, bearer, guarded

OWN_PAGE = {"Origin": "http://127.0.0.1:8080"}


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_page_shows_its_token_once_and_works_with_the_cookie() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        async with guarded(app=new_app(clock=clock, tokens=SETTING)) as server, server.client() as page:
            begun = await page.post("/api/v1/session", json={"token": TOKENS["work@mail+sms"]}, headers=OWN_PAGE)
            assert begun.status_code == 201
            assert begun.json() == {
                "name": "setting-6",
                "role": "work",
                "queues": ["mail", "sms"],
                "expires_at": "2023-11-15T10:13:20.000Z",
            }
            assert TOKENS["work@mail+sms"] not in begun.text + str(begun.headers)
            assert (await page.get("/api/v1/session")).json() == begun.json()
            made = await page.post("/api/v1/jobs", json={"type": "x", "queue": "mail"}, headers=OWN_PAGE)
            assert made.status_code == 201
            ended = await page.delete("/api/v1/session", headers=OWN_PAGE)
            assert ended.status_code == 204
            assert not page.cookies
            assert (await page.get("/api/v1/session")).status_code == 401
            assert len(server.service.door.sessions) == 0

    work(scenario)


@pytest.mark.parametrize(
    ("host", "secure"),
    [("127.0.0.1:8080", False), ("localhost", False), ("[::1]:80", False), ("jobs.example.com", True)],
)
def test_no_script_and_no_other_site_can_use_the_cookie(host: str, secure: bool) -> None:
    async def scenario() -> None:
        async with guarded(tokens=SETTING, allowed_hosts="jobs.example.com") as server, server.client() as page:
            begun = await page.post("/api/v1/session", json={"token": TOKENS["admin"]}, headers={"Host": host})
            (cookie,) = SimpleCookie(begun.headers["set-cookie"]).values()
            assert cookie.key == ("__Host-packhorse_session" if secure else "packhorse_session")
            assert len(cookie.value) == 64
            assert cookie["httponly"]
            assert cookie["samesite"] == "Strict"
            assert cookie["path"] == "/"
            assert cookie["domain"] == ""
            assert bool(cookie["secure"]) is secure
            page.cookies.clear()
            sent = {"Host": host, "Cookie": f"a=b; {cookie.key}={cookie.value}; c"}
            assert (await page.get("/api/v1/session", headers=sent)).status_code == 200
            other = {"Host": "jobs.example.com" if not secure else "127.0.0.1", "Cookie": sent["Cookie"]}
            assert (await page.get("/api/v1/session", headers=other)).status_code == 401

    work(scenario)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_c2_what_a_cookie_changes_must_come_from_a_page_of_this_server(method: str) -> None:
    async def scenario() -> None:
        async with guarded(tokens=SETTING) as server, server.client() as page:
            await page.post("/api/v1/session", json={"token": TOKENS["admin"]})
            for headers in ({}, {"Sec-Fetch-Site": "none"}, {"Referer": "http://127.0.0.1:8080/"}):
                assert (await page.request(method, "/nothing", headers=headers)).status_code == 403, headers
            for headers in (OWN_PAGE, {"Sec-Fetch-Site": "same-origin"}):
                assert (await page.request(method, "/nothing", headers=headers)).status_code == 404, headers
            # A token in a header is a proof of its own: no page can send one without having it.
            assert (await page.request(method, "/nothing", headers=bearer())).status_code == 404
            assert (await page.get("/api/v1/jobs")).status_code == 200

    work(scenario)


def test_the_token_in_the_header_counts_where_there_is_a_cookie_too() -> None:
    async def scenario() -> None:
        async with guarded(tokens=SETTING) as server, server.client() as page:
            await page.post("/api/v1/session", json={"token": TOKENS["admin"]})
            shown = (await page.get("/api/v1/session", headers=bearer("read"))).json()
            assert (shown["role"], shown["expires_at"]) == ("read", None)
            wrong = {"Authorization": "Bearer wrong"}
            assert (await page.get("/api/v1/session", headers=wrong)).status_code == 401

    work(scenario)


@pytest.mark.parametrize("body", [{}, {"token": 3}, {"token": "x" * 513}, {"token": "a", "more": 1}, [], "x"])
def test_what_is_no_token_is_refused(body: object) -> None:
    async def scenario() -> None:
        async with guarded(tokens=SETTING) as server, server.client() as page:
            assert (await page.post("/api/v1/session", json=body)).status_code == 422

    work(scenario)


@pytest.mark.parametrize("token", ["", "wrong", "ü\u0001", TOKENS["admin"] + " ", "ph_" + "0" * 40])
def test_a_wrong_token_begins_no_session_and_counts_as_a_try(token: str) -> None:
    async def scenario() -> None:
        async with guarded(app=new_app(clock=ManualClock(), tokens=SETTING)) as server, server.client() as page:
            answers = [await page.post("/api/v1/session", json={"token": token}) for _ in range(21)]
            assert [answer.status_code for answer in answers] == [401] * 20 + [429]
            assert "set-cookie" not in answers[0].headers
            assert answers[0].content == (await page.get("/api/v1/jobs")).content

    work(scenario)


def test_a_session_ends_with_its_token_and_at_its_time(directory: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        file = TokensFile(directory / "packhorse-tokens.json")
        secrets = {name: create_token(file, name, Role.READ)[0] for name in ("a", "b")}
        async with guarded(app=new_app(clock=clock)) as server, server.client() as a, server.client() as b:
            for page, name in ((a, "a"), (b, "b")):
                await page.post("/api/v1/session", json={"token": secrets[name]})
                assert (await page.get("/api/v1/session")).json()["name"] == name
            revoke_tokens(file, ["a"])
            clock.advance(1_000)
            assert (await a.get("/api/v1/session")).status_code == 401
            assert (await b.get("/api/v1/session")).status_code == 200
            assert len(server.service.door.sessions) == 1
            clock.advance(SESSION_MS - 1_001)
            assert (await b.get("/api/v1/session")).status_code == 200
            clock.advance(1)
            assert (await b.get("/api/v1/session")).status_code == 401

    work(scenario)


def test_without_tokens_one_is_local_and_has_no_session() -> None:
    async def scenario() -> None:
        async with guarded() as server, server.client() as page:
            local = {"name": "local", "role": "admin", "queues": None, "expires_at": None}
            assert (await page.get("/api/v1/session")).json() == local
            assert (await page.post("/api/v1/session", json={"token": "x"})).status_code == 401
            assert (await page.delete("/api/v1/session")).status_code == 204

    work(scenario)


def test_sessions_are_bounded_in_all_and_for_each_token() -> None:
    tokens = []
    for number in range(12):
        tokens.append(new_token(f"t{number}")[1])
    known = Tokens(tokens)
    grants = [known.still(bytes.fromhex(token.sha256)) for token in tokens]
    sessions = Sessions(known, ManualClock())
    assert grants[0] is not None
    first = sessions.begin(grants[0])[0]
    for _ in range(SESSIONS_A_TOKEN_MAX):
        sessions.begin(grants[0])
    assert len(sessions) == SESSIONS_A_TOKEN_MAX
    assert sessions.find(first.encode()) is None
    for grant in grants[1:]:
        assert grant is not None
        for _ in range(SESSIONS_A_TOKEN_MAX):
            last = sessions.begin(grant)[0]
    assert len(sessions) == SESSIONS_MAX
    assert sessions.find(last.encode()) is not None


def test_the_id_is_kept_as_a_hash_and_ended_sessions_are_forgotten() -> None:
    clock = ManualClock()
    known = Tokens([new_token("t")[1]], clock=clock)
    (grant,) = known._grants.values()
    sessions = Sessions(known, clock)
    session_id, lasts_ms = sessions.begin(grant)
    assert lasts_ms == SESSION_MS
    assert session_id not in repr(sessions._kept)
    assert session_id.encode() not in b"".join(sessions._kept)
    clock.advance(SESSION_MS)
    sessions.begin(grant)
    assert len(sessions) == 1
    for wrong in (b"", b"x", b"\xff" * 64, b"0" * 64, session_id.encode() * 2):
        assert sessions.find(wrong) is None
    sessions.end(b"nobody")


def test_cookies_are_read_as_browsers_send_them() -> None:
    headers = [(b"cookie", b"x=1;packhorse_session=a"), (b"cookie", b" __Host-packhorse_session=b ; y")]
    assert session_id_in(headers, secure=False) == b"a"
    assert session_id_in(headers, secure=True) == b"b"
    assert session_id_in([(b"cookie", b"packhorse_session")], secure=False) is None
    assert session_id_in([(b"cookie", b"packhorse_sessions=a; Packhorse_Session=b")], secure=False) is None
    assert set_cookie("", 0, secure=False).startswith("packhorse_session=; Path=/; Max-Age=0;")
