"""`post_failures`: failures posted from the worker, signed, to addresses that are meant (FAILURES C12)."""

from __future__ import annotations

import hashlib
import hmac
import logging
from typing import Any

import pytest
from working import new_app, until, work

from packhorse import ConfigurationError, Packhorse, post_failures
from packhorse.posting import deliveries
from packhorse.posting.failures import PostFailures
from tests.server.test_webhooks import Receiver, receiving
from tests.witness import at_most

SECRET = "s3cret-canary-0123456789"
HERE = ("127.0.0.0/8",)


def posting_app(*hooks: PostFailures, **choice: Any) -> Packhorse:
    app = new_app()
    for hook in hooks:
        app.on_failure(hook, **choice)

    @app.task("broken", max_attempts=1)
    async def broken(text: str = "") -> None:
        raise ValueError("it broke")

    return app


async def burst(app: Packhorse, count: int = 1) -> None:
    await app.aenqueue_many([("broken", {"text": f"payload-canary-{n}"}) for n in range(count)])
    await app.worker(burst=True).run()


def test_a_failure_is_posted_signed_and_without_payload_and_traceback():
    """C20 for what is sent."""

    async def scenario() -> None:
        receiver = Receiver()
        async with receiving(receiver) as url:
            app = posting_app(post_failures(url, secret=SECRET, allow=HERE))
            async with app:
                job = await app.aenqueue("broken", {"text": "payload-canary"}, key="tenant", tags=["red"])
                await app.worker(burst=True).run()
        (post,) = receiver.posts
        failure = post.data["failure"]
        assert failure["id"] == job.id
        assert (failure["type"], failure["queue"], failure["key"], failure["tags"]) == (
            "broken",
            "default",
            "tenant",
            ["red"],
        )
        assert (failure["attempt"], failure["max_attempts"], failure["final"]) == (1, 1, True)
        assert failure["error"] == {"kind": "ValueError", "message": "it broke"}
        assert failure["failed_at"].endswith("Z")
        assert post.header("packhorse-delivery") == post.data["delivery"]
        parts = dict(part.split("=", 1) for part in post.header("packhorse-signature").split(","))
        expected = hmac.new(SECRET.encode(), f"{parts['t']}.".encode() + post.body, hashlib.sha256).hexdigest()
        assert parts["v1"] == expected
        assert b"canary" not in post.body
        assert b"Traceback" not in post.body

    work(scenario)


def test_the_traceback_is_sent_where_that_is_asked_for():
    async def scenario() -> None:
        receiver = Receiver()
        async with receiving(receiver) as url:
            app = posting_app(post_failures(url, secret=SECRET, allow=HERE, traceback=True))
            async with app:
                await burst(app)
        assert 'raise ValueError("it broke")' in receiver.posts[0].data["failure"]["error"]["traceback"]

    work(scenario)


def test_what_nobody_took_is_sent_again_with_the_same_id(monkeypatch):
    monkeypatch.setattr(deliveries, "BACKOFF_MS", 1)
    monkeypatch.setattr(deliveries, "BACKOFF_MS_MAX", 4)
    answers = [500, 302, 204]

    async def scenario() -> None:
        receiver = Receiver(lambda _: answers.pop(0))
        async with receiving(receiver) as url:
            app = posting_app(post_failures(url, secret=SECRET, allow=HERE))
            async with app, app.worker():
                await app.aenqueue("broken")
                await until(lambda: len(receiver.posts) == 3)
        assert len({post.header("packhorse-delivery") for post in receiver.posts}) == 1

    work(scenario)


def test_a_receiver_that_says_nothing_holds_up_neither_jobs_nor_the_stop(monkeypatch, caplog):
    from packhorse.posting import failures

    monkeypatch.setattr(failures, "_LAST_S", 0.1)

    async def scenario() -> None:
        receiver = Receiver(lambda _: None)
        async with receiving(receiver) as url:
            app = posting_app(post_failures(url, secret=SECRET, allow=HERE))
            async with app:
                await burst(app, 5)

    with caplog.at_level(logging.WARNING, "packhorse.failures"), at_most(5):
        work(scenario)
    assert "5 deliveries are lost with this stop" in caplog.text
    assert "canary" not in caplog.text


def test_a_name_that_stands_for_an_address_that_is_not_public_gets_nothing(caplog):
    """C12: as for the server's webhooks."""

    async def scenario() -> None:
        receiver = Receiver()
        async with receiving(receiver) as url:
            app = posting_app(post_failures(url.replace("127.0.0.1", "localhost"), secret=SECRET))
            async with app:
                await burst(app)
        assert receiver.posts == []

    work(scenario)
    assert "is not public (loopback" in caplog.text
    assert "post_failures(allow=…)" in caplog.text


@pytest.mark.parametrize(
    ("url", "given", "said"),
    [
        ("http://127.0.0.1/", {}, "is not public"),
        ("http://169.254.169.254/latest", {}, "is not public"),
        ("ftp://example.com/", {}, "must begin with https://"),
        ("https://user:secret-canary@example.com/", {}, "must not have a user"),
        ("https://example.com/", {"secret": "short"}, "16 to 512 characters"),
        ("https://example.com/", {"concurrency": 9}, "from 1 to 4"),
        ("https://example.com/", {"allow": ["nonsense"]}, "is no network"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_registered(url, given, said):
    with pytest.raises(ConfigurationError, match=said) as refused:
        post_failures(url, **{"secret": SECRET, **given})
    assert "canary" not in str(refused.value)


def test_nothing_of_it_is_shown():
    assert "canary" not in repr(post_failures("https://example.com/canary?canary", secret=SECRET))
