"""What something that is no server of ours may answer: an error in words that say what to do, and nothing hangs."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from packhorse import __version__
from packhorse.backends.base import Capabilities
from packhorse.backends.http import link, wire
from packhorse.backends.opening import open_backend
from packhorse.errors import ConfigurationError, PackhorseError, Refused, Unavailable
from packhorse.job import JobSpec
from tests.witness import Witness, boot_s

from .kit import opened
from .strangers import answering, head, response, stranger

HTML = b"<html><body>Bad Gateway</body></html>"


def contract(revision: int = wire.REVISION, version: str = __version__) -> bytes:
    """Write what a server answers when it is asked what it speaks."""
    document = {
        "product": "packhorse",
        "version": version,
        "revision": revision,
        "capabilities": Capabilities(durable=True, shared=True),
    }
    return response(200, msgspec.json.encode(document), "application/json")


GREETING = contract()


def run(coroutine) -> None:
    asyncio.run(coroutine)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (response(200, HTML), "is no server of packhorse"),
        (response(404, HTML), "give the URL where `packhorse serve` listens"),
        (response(200, b"{}", "application/json"), "is no server of packhorse"),
        (response(200, b"[" * 100_000, "application/json"), "is no server of packhorse"),
        (response(200, b"\xff\xfe", "application/json"), "is no server of packhorse"),
        (response(301, b"", "text/html", "Location: https://elsewhere/\x1b[31m"), "redirects to .* not followed"),
        (response(302), "redirects, which is not followed"),
        (response(401, HTML), "something in between refuses us"),
        (response(407, HTML), "the proxy wants a login"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not answer in HTTP"),
        (contract(revision=999, version="9.9.9"), r"runs packhorse 9\.9\.9 \(protocol 999\), this is packhorse"),
        (
            response(404, b'{"type":"urn:packhorse:not-found","title":"x","status":404}', "application/problem+json"),
            "not of this version, or the path is not its own",
        ),
        (
            response(401, b'{"type":"urn:packhorse:unauthorized","detail":"who?"}', "application/problem+json"),
            "refuses the token, or there is none; give one that is good there in PACKHORSE_TOKEN",
        ),
    ],
)
def test_what_is_no_server_of_ours_is_told_by_name(answer: bytes, words: str) -> None:
    async def main() -> None:
        async with stranger(answering(answer)) as url:
            with pytest.raises(ConfigurationError, match=words) as raised:
                async with opened(url):
                    pass
            assert "\x1b" not in str(raised.value)

    run(main())


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (response(502, HTML), Unavailable, "something in between answered 502"),
        (response(503, HTML), Unavailable, "something in between answered 503"),
        (response(504, HTML), Unavailable, "something in between answered 504"),
        (response(200, HTML), Unavailable, "something in between answered 200"),
        (response(302), Unavailable, "something in between answered 302"),
        (response(404, HTML), Unavailable, "something in between answered 404"),
        (response(413, HTML), Refused, "client_max_body_size"),
        (response(200, b"\xc1nonsense", wire.MEDIA_TYPE), Unavailable, "cannot be read"),
        (response(200, b"\xdd\xff\xff\xff\xff", wire.MEDIA_TYPE), Unavailable, "cannot be read"),
        (response(200, b"\x91" * 1_000_000, wire.MEDIA_TYPE), Unavailable, "cannot be read"),
        (response(200, b"\x81\xa1a\x01", wire.MEDIA_TYPE), Unavailable, "cannot be read"),
        (response(500, b"not json", "application/problem+json"), Unavailable, "answered 500"),
        (response(418, b'{"detail":"tea"}', "application/problem+json"), Refused, "tea"),
        (
            response(429, b'{"title":"Too many","detail":"wait"}', "application/problem+json"),
            Unavailable,
            "Too many: wait",
        ),
        (
            response(401, b'{"type":"urn:packhorse:unauthorized"}', "application/problem+json"),
            Unavailable,
            "refuses the token",
        ),
        (
            response(422, b'{"type":"urn:packhorse:queue-full","queue":7,"errors":3}', "application/problem+json"),
            Unavailable,
            "answered 422",
        ),
    ],
)
def test_later_on_the_same_passes_and_is_worth_another_try(
    answer: bytes, kind: type[PackhorseError], words: str
) -> None:
    """No end of a job may depend on it: what is Unavailable is tried again by whoever has to."""

    async def main() -> None:
        async with stranger(answering(GREETING, answer)) as url, opened(url) as backend:
            with pytest.raises(kind, match=words):
                await backend.enqueue([JobSpec(id="a", type="t")])

    run(main())


def test_an_answer_without_an_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "ANSWER_BYTES_MAX", 1 << 20)

    async def endless(reader, writer) -> None:
        path, _ = await head(reader)
        if path == wire.PATH:
            writer.write(GREETING)
            await head(reader)
        writer.write(response(200, b"", wire.MEDIA_TYPE).replace(b"Content-Length: 0", b"Content-Length: 99999999999"))
        while True:
            writer.write(b"\x00" * 65_536)
            await writer.drain()

    async def main() -> None:
        async with stranger(endless) as url, opened(url) as backend:
            with pytest.raises(Unavailable, match="an answer of more than"):
                await backend.counts()

    run(main())


def test_a_compressed_answer_is_not_unpacked() -> None:
    """C14: ten kilobytes may stand for ten gigabytes."""
    answer = response(200, b"\x1f\x8b" + bytes(100), wire.MEDIA_TYPE, "Content-Encoding: gzip")

    async def main() -> None:
        async with stranger(answering(GREETING, answer)) as url, opened(url) as backend:
            with pytest.raises(Unavailable):
                await backend.counts()

    run(main())


def test_nobody_there_says_what_to_start() -> None:
    async def main() -> None:
        with pytest.raises(Unavailable, match="is `packhorse serve` running there"):
            async with opened("http://127.0.0.1:1"):
                pass

    run(main())


def test_a_server_that_never_answers_is_unavailable_in_bounded_time(witness: Witness) -> None:
    async def silent(reader, writer) -> None:
        await reader.read()

    async def main() -> None:
        async with stranger(silent) as url:
            began = boot_s()
            with pytest.raises(Unavailable, match=r"did not answer within 0\.2 s"):
                async with opened(f"{url}?timeout=0.2"):
                    pass
            assert witness.since_s(began) < 2

    run(main())


def test_an_answer_that_trickles_is_bounded_all_the_same() -> None:
    async def trickle(reader, writer) -> None:
        await head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)

    async def main() -> None:
        async with stranger(trickle) as url:
            with pytest.raises(Unavailable, match="did not answer within"):
                async with opened(f"{url}?timeout=0.3"):
                    pass

    run(main())


def test_no_proxy_of_the_environment_gets_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """B40, C20: proxies only from the URL."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def main() -> None:
        async with stranger(answering(GREETING)) as url:
            async with opened(url):
                pass
            async with (
                stranger(answering(GREETING)) as proxy,
                opened(f"http://jobs.example.invalid/?proxy={proxy}"),
            ):
                pass  # by way of the proxy, which is asked for a name that does not exist

    run(main())


def test_the_token_is_sent_in_a_header_and_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """B40, C17: neither in the URL on the wire, nor in messages, nor in logs."""
    seen = []

    async def note(reader, writer) -> None:
        while True:
            seen.append((await head(reader))[1])
            writer.write(GREETING if len(seen) == 1 else response(502, HTML))
            await writer.drain()

    async def main() -> None:
        async with stranger(note) as url:
            for place in ("http://:canary%2Fsecret@", "http://canary%2Fsecret@", "http://anybody:canary%2Fsecret@"):
                seen.clear()
                async with opened(url.replace("http://", place)) as backend:
                    with pytest.raises(Unavailable) as raised:
                        await backend.counts()
                    assert "canary" not in f"{raised.value!r} {backend.location.base} {backend.location.shown}"
                for request in seen:
                    assert b"\r\nAuthorization: Bearer canary/secret\r\n" in request
                    assert request.count(b"canary") == 1
        assert "canary" not in caplog.text

    run(main())


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "https:///path",
        "http://host:notaport/",
        "http://host/a b",
        "http://ho\\st/",
        "http://host/#frag",
        "http://host?nonsense=1",
        "http://host?timeout=0",
        "http://host?timeout=nan",
        "http://host?verify=/a.pem",
        "https://host?verify=/does/not/exist.pem",
        "https://host?proxy=socks5://a:1",
        "https://host?proxy=",
        "https://:two words@host",
        "https://:%0d%0aX-Evil:1@host",
        "https://:pass@wo/rd@host",
    ],
)
def test_a_url_that_cannot_work_is_refused_in_words(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        asyncio.run(open_backend(url).open())
    assert "word" not in str(raised.value).replace("password", "")
