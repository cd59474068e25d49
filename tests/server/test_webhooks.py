"""Webhooks: what is sent, to whom, how often, and what a receiver can rely on."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from packhorse import Packhorse
from packhorse.chance import Chance
from packhorse.clock import SYSTEM_CLOCK
from packhorse.errors import ConfigurationError
from packhorse.job import State
from packhorse.posting import deliveries
from packhorse.posting.poster import Poster
from packhorse.server.service import Service
from packhorse.settings import load

from ..docs.test_readme import ROOT, blocks
from ..worker.working import new_app, until
from .hearing import in_loop, listening

SECRET = "s3cret-canary-0123456789"


class Post(NamedTuple):
    """What a receiver got."""

    head: str
    body: bytes

    def header(self, name: str) -> str:
        return next(
            line.partition(": ")[2] for line in self.head.split("\r\n") if line.lower().startswith(name.lower())
        )

    @property
    def data(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """Somebody who takes webhooks; `answer` says with which status, or None: it says nothing at all."""

    def __init__(self, answer: Callable[[Post], int | None] = lambda _: 204) -> None:
        self.posts: list[Post] = []
        self.at_once = self.at_once_max = 0
        self._answer = answer

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        size = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
        post = Post(head, await reader.readexactly(size))
        self.posts.append(post)
        self.at_once += 1
        self.at_once_max = max(self.at_once, self.at_once_max)
        status = self._answer(post)
        if status is None:
            await reader.read()
        await asyncio.sleep(0)
        self.at_once -= 1
        writer.write(b"HTTP/1.1 %d Whatever\r\nContent-Length: 0\r\n\r\n" % (status or 500))
        await writer.drain()

    def about(self, job_id: str) -> list[Post]:
        return [post for post in self.posts if post.data["event"]["id"] == job_id]


@asynccontextmanager
async def receiving(receiver: Receiver) -> AsyncIterator[str]:
    async with listening(receiver.take) as port:
        yield f"http://127.0.0.1:{port}/hook"


def hooked_app(*hooks: dict[str, Any], **settings: Any) -> Packhorse:
    """An app with tasks that end in each way, and webhooks that may go to this machine."""
    app = new_app(webhooks=[{"secret": SECRET, **hook} for hook in hooks], webhooks_allow=["127.0.0.0/8"], **settings)

    @app.task("fine")
    def fine(text: str = "") -> str:
        return "result-canary"

    @app.task("broken", max_attempts=1)
    def broken(text: str = "") -> None:
        raise ValueError("it broke")

    return app


@asynccontextmanager
async def sending(app: Packhorse) -> AsyncIterator[Service]:
    """Send webhooks of an app; yields once it would miss nothing any more."""
    service = Service(app)
    service.webhooks.start()
    try:
        await until(lambda: all(listener.began for listener in service.feed.listeners))
        yield service
    finally:
        await service.close()


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(deliveries, "BACKOFF_MS", 1)
    monkeypatch.setattr(deliveries, "BACKOFF_MS_MAX", 4)


@pytest.fixture
def patient(monkeypatch) -> None:
    """Receivers that say nothing are not given up while a test lasts."""
    monkeypatch.setattr(Poster.__init__, "__kwdefaults__", {**Poster.__init__.__kwdefaults__, "timeout_s": 3_600.0})


async def _run(app: Packhorse, count: int) -> None:
    await app.aenqueue_many([("fine", {"text": str(n)}) for n in range(count)])


@in_loop
async def test_an_outcome_is_posted_signed_and_without_payload_and_result() -> None:
    """C20 for what is sent: the event, never what the job carries."""
    receiver = Receiver()
    async with receiving(receiver) as url:
        app = hooked_app({"url": url})
        async with sending(app), app.worker():
            job = await app.aenqueue("fine", {"text": "payload-canary"}, key="tenant", tags=["red"])
            await until(lambda: receiver.posts)
        (post,) = receiver.posts
        event = post.data["event"]
        assert event["id"] == job.id
        assert (event["state"], event["type"], event["queue"]) == ("succeeded", "fine", "default")
        assert (event["key"], event["tags"], event["attempt"]) == ("tenant", ["red"], 1)
        assert post.header("content-type") == "application/json"
        assert post.header("packhorse-delivery") == post.data["delivery"]
        assert b"canary" not in post.body
        parts = dict(part.split("=", 1) for part in post.header("packhorse-signature").split(","))
        expected = hmac.new(SECRET.encode(), f"{parts['t']}.".encode() + post.body, hashlib.sha256).hexdigest()
        assert parts["v1"] == expected


@in_loop
async def test_states_queues_and_types_say_what_is_told() -> None:
    everything, failures, mail, red = Receiver(), Receiver(), Receiver(), Receiver()
    async with receiving(everything) as a, receiving(failures) as b, receiving(mail) as c, receiving(red) as d:
        app = hooked_app(
            {"url": a},
            {"url": b, "states": ["failed"]},
            {"url": c, "queues": ["mail"]},
            {"url": d, "types": ["broken"], "states": ["succeeded"]},
        )
        async with sending(app), app.worker(queues=["default", "mail"]):
            fine = await app.aenqueue("fine", {}, queue="mail")
            broken = await app.aenqueue("broken", {})
            later = await app.aenqueue("fine", {}, delay=60)
            await later.acancel()
            await until(lambda: len(everything.posts) == 3 and failures.posts and mail.posts)
        assert {post.data["event"]["state"] for post in everything.posts} == {"succeeded", "failed", "cancelled"}
        assert [post.data["event"]["id"] for post in failures.posts] == [broken.id]
        assert failures.posts[0].data["event"]["error"] == "ValueError: it broke"
        assert [post.data["event"]["id"] for post in mail.posts] == [fine.id]
        assert red.posts == []


@pytest.mark.usefixtures("quick")
@in_loop
async def test_what_nobody_took_is_sent_again_with_the_same_id_and_a_new_signature() -> None:
    answers = [500, 302, 429, 204]
    receiver = Receiver(lambda _: answers.pop(0))
    async with receiving(receiver) as url:
        app = hooked_app({"url": url})
        async with sending(app) as service, app.worker():
            await app.aenqueue("fine", {})
            (queue,) = (one.outbox for one in service.webhooks.queues)
            await until(lambda: queue.delivered)
        assert len(receiver.posts) == 4
        assert len({post.header("packhorse-delivery") for post in receiver.posts}) == 1
        assert len({post.body for post in receiver.posts}) == 1
        assert queue.dropped == queue.held == 0


@pytest.mark.usefixtures("quick")
@in_loop
async def test_after_the_last_try_a_delivery_is_dropped_counted_and_logged(caplog) -> None:
    receiver = Receiver(lambda _: 500)
    async with receiving(receiver) as url:
        app = hooked_app({"url": url + "/path-canary"})
        with caplog.at_level(logging.DEBUG, "packhorse"):
            async with sending(app) as service, app.worker():
                await app.aenqueue("fine", {"text": "payload-canary"})
                (queue,) = (one.outbox for one in service.webhooks.queues)
                await until(lambda: queue.dropped)
        assert len(receiver.posts) == deliveries.TRIES_MAX
        assert "1 delivery dropped" in caplog.text
        assert "canary" not in caplog.text, "neither the secret, nor the path, nor the payload"


@pytest.mark.usefixtures("patient")
@in_loop
async def test_a_dead_receiver_hurts_no_other() -> None:
    """One says nothing, one is not there: the third hears of everything at once."""
    silent, lively = Receiver(lambda _: None), Receiver()
    async with receiving(silent) as a, receiving(lively) as c:
        app = hooked_app({"url": a}, {"url": "http://127.0.0.1:9/"}, {"url": c})
        async with sending(app), app.worker():
            await _run(app, 200)
            await until(lambda: len(lively.posts) == 200)
            assert len(silent.posts) <= 2


@pytest.mark.usefixtures("patient")
@in_loop
async def test_what_waits_for_a_receiver_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(deliveries, "HELD_MAX", 20)
    silent = Receiver(lambda _: None)
    async with receiving(silent) as url:
        app = hooked_app({"url": url, "concurrency": 3})
        async with sending(app) as service, app.worker():
            await _run(app, 100)
            (queue,) = (one.outbox for one in service.webhooks.queues)
            await until(lambda: queue.dropped == 80)
            await until(lambda: silent.at_once_max == 3)
            assert queue.held == 20


@in_loop
async def test_a_refused_address_is_not_tried_again(caplog) -> None:
    """C12: the URL was fine when the server started, its name is not."""
    app = new_app(webhooks=[{"url": "http://localhost:9/", "secret": SECRET}])

    @app.task("fine")
    def fine() -> None: ...

    async with sending(app) as service, app.worker():
        await app.aenqueue("fine", {})
        (queue,) = (one.outbox for one in service.webhooks.queues)
        await until(lambda: queue.dropped)
    assert "is not public (loopback" in caplog.text


@in_loop
async def test_two_servers_give_a_delivery_the_same_id() -> None:
    """So a receiver can tell what it has."""
    receiver = Receiver()
    async with receiving(receiver) as url:
        app = hooked_app({"url": url})
        async with sending(app), sending(app), app.worker():
            await app.aenqueue("fine", {})
            await until(lambda: len(receiver.posts) == 2)
        assert len({post.data["delivery"] for post in receiver.posts}) == 1


@in_loop
async def test_what_ended_before_an_orderly_stop_is_told_within_it() -> None:
    receiver = Receiver()
    async with receiving(receiver) as url:
        app = hooked_app({"url": url})
        async with app.worker(), sending(app):
            await _run(app, 50)
            await until(lambda: _all_have_ended(app))
        assert len(receiver.posts) == 50


async def _all_have_ended(app: Packhorse) -> bool:
    return set((await (await app.backend()).counts())["default"].states) == {State.SUCCEEDED}


@pytest.mark.usefixtures("patient")
@in_loop
async def test_stopping_is_quick_and_says_what_is_lost(caplog) -> None:
    silent = Receiver(lambda _: None)
    async with receiving(silent) as url:
        app = hooked_app({"url": url})
        async with sending(app) as service, app.worker():
            await _run(app, 10)
            (queue,) = (one.outbox for one in service.webhooks.queues)
            await until(lambda: queue.held == 10 and len(silent.posts) == 2)
            async with asyncio.timeout(60):  # a delivery takes longer
                await service.webhooks.close()
    assert "10 deliveries are lost with this stop" in caplog.text


def test_the_waits_between_tries_are_by_chance_and_bounded() -> None:
    """Full jitter: the tenth try comes about ten minutes after the first, never all at once."""
    chance = Chance(1)
    total = []
    for _ in range(200):
        waits = [min(deliveries.BACKOFF_MS_MAX, deliveries.BACKOFF_MS << n) for n in range(1, deliveries.TRIES_MAX)]
        total.append(sum(chance.uniform(0, most) for most in waits))
    assert 200_000 < sum(total) / len(total) < 900_000
    assert max(total) < 30 * 60_000


# ---- what the guide says of the signature ------------------------------------------------------------------------

GUIDE = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
BODY = '{"delivery":"1","event":{"error":"é"}}'.encode()


def _judgements(now_s: int) -> list[tuple[str, str, bytes, bool]]:
    good = deliveries.signature(SECRET, now_s, BODY)
    return [
        (SECRET, good, BODY, True),
        (SECRET + "x", good, BODY, False),
        (SECRET, good, BODY + b" ", False),
        (SECRET, good.replace(f"t={now_s}", f"t={now_s + 1}"), BODY, False),
        (SECRET, deliveries.signature(SECRET, now_s - 600, BODY), BODY, False),
        (SECRET, "", BODY, False),
        (SECRET, "t=1,v1=", BODY, False),
        (SECRET, f"t={now_s}", BODY, False),
        (SECRET, "v1=é,t", BODY, False),
    ]


def test_the_check_of_the_guide_in_python_tells_ours_from_others() -> None:
    names: dict[str, Any] = {}
    exec(blocks(GUIDE, "python")[0], names)
    for secret, header, body, expected in _judgements(SYSTEM_CLOCK.now_ms() // 1_000):
        assert names["is_from_packhorse"](secret, header, body) is expected, header


def test_the_check_of_the_guide_in_javascript_tells_ours_from_others() -> None:
    node = shutil.which("node")
    if node is None and not os.environ.get("CI"):
        pytest.skip("node is not there")
    cases = [
        {"secret": secret, "header": header, "body": body.decode(), "expected": expected}
        for secret, header, body, expected in _judgements(SYSTEM_CLOCK.now_ms() // 1_000)
    ]
    script = f"""{blocks(GUIDE, "javascript")[0]}
    for (const {{ secret, header, body, expected }} of {json.dumps(cases)})
      if (isFromPackhorse(secret, header, Buffer.from(body)) !== expected) throw new Error(header);
    """
    subprocess.run([node or "node", "-e", script], check=True, capture_output=True, timeout=60)


# ---- settings --------------------------------------------------------------------------------------------------


def test_without_webhooks_nothing_listens() -> None:
    service = Service(new_app())
    assert not service.settings.webhooks
    service.webhooks.start()
    assert not service.feed.is_following


def test_webhooks_are_read_from_the_file_of_settings_and_from_one_of_their_own(tmp_path: Path) -> None:
    toml = f'[[webhooks]]\nurl = "https://example.com/a"\nsecret = "{SECRET}"\nstates = ["failed"]\n'
    (tmp_path / "packhorse.toml").write_text(toml)
    (hook,) = load({}, {}, tmp_path).webhooks
    assert (hook.url, hook.states, hook.concurrency) == ("https://example.com/a", (State.FAILED,), 2)
    own = tmp_path / "hooks.json"
    own.write_text(json.dumps([{"url": "https://example.com/b", "secret": SECRET, "types": ["email"]}]))
    settings = load({}, {"PACKHORSE_WEBHOOKS": str(own), "PACKHORSE_WEBHOOKS_ALLOW": "10.0.0.0/8,::1"}, tmp_path)
    assert [(hook.url, hook.types) for hook in settings.webhooks] == [("https://example.com/b", ("email",))]
    assert settings.webhooks_allow == ("10.0.0.0/8", "::1/128")


def test_settings_never_show_a_secret_or_a_path() -> None:
    """C20, C21."""
    settings = load({"webhooks": [{"url": "https://example.com/path-canary", "secret": SECRET}]}, {})
    assert "canary" not in f"{settings!r} {settings.webhooks} {settings.webhooks[0]!s}"


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ({"url": "https://example.com/"}, "secret must be"),
        ({"url": "https://example.com/", "secret": "canary"}, "secret must be"),
        ({"url": "https://example.com/", "secret": SECRET, "state": ["failed"]}, "no setting 'state'"),
        ({"url": "https://example.com/", "secret": SECRET, "states": ["pending"]}, "states must be"),
        ({"url": "https://example.com/", "secret": SECRET, "states": []}, "states must be"),
        ({"url": "https://example.com/", "secret": SECRET, "states": "failed"}, "states must be"),
        ({"url": "https://example.com/", "secret": SECRET, "queues": "mail"}, "as a list"),
        ({"url": "https://example.com/", "secret": SECRET, "queues": ["a b"]}, "cannot name a queue"),
        ({"url": "https://example.com/", "secret": SECRET, "concurrency": 5}, "from 1 to 4"),
        ({"url": 5, "secret": SECRET}, "must begin with"),
        ("https://example.com/", "must be a table"),
    ],
)
def test_a_webhook_that_is_not_understood_is_refused_with_words_that_help(hook: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as refusal:
        load({"webhooks": [hook]}, {})
    assert "canary" not in str(refusal.value)


@pytest.mark.parametrize("text", ["{", "[1]", '"hooks.json"', "7", "[" * 100_000])
def test_a_file_that_has_no_webhooks_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hooks.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError):
        load({}, {"PACKHORSE_WEBHOOKS": str(path)}, tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load({}, {"PACKHORSE_WEBHOOKS": str(tmp_path / "none.json")}, tmp_path)


def test_without_aiohttp_webhooks_are_an_error_that_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'packhorse\[http\]'"):
        Service(new_app(webhooks=[{"url": "https://example.com/", "secret": SECRET}]))
