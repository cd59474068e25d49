"""Rights, scopes and TLS: who may do what through a backend, and whom a backend believes."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
from pathlib import Path

import pytest

from packhorse.backends.base import (
    Keep,
    Limit,
    Query,
    QueueChange,
    Schedule,
    ScheduleChange,
    Settlement,
    WorkerInfo,
)
from packhorse.backends.opening import open_backend, redact, secrets_of, store_url, with_token
from packhorse.errors import ConfigurationError, OutOfScope, Refused
from packhorse.job import JobSpec, State
from packhorse.settings import load

from .kit import opened, served
from .strangers import stranger
from .test_strangers import GREETING, answering

TOKENS = {role: f"{role}-0123456789abcdefghij" for role in ("read", "submit", "work", "admin")}


def as_role(url: str, token: str) -> str:
    return url.replace("://", f"://:{token}@")


def test_each_role_may_do_its_part_and_no_more() -> None:
    tokens = [f"{role}:{token}" for role, token in TOKENS.items()]

    async def main() -> None:
        async with served(tokens=tokens) as url:
            async with opened(as_role(url, TOKENS["read"])) as reader:
                assert await reader.find(Query()) is not None
                assert await reader.queues() == {}
                assert await reader.limits() == []
                for call in (
                    reader.enqueue([JobSpec(id="a", type="t")]),
                    reader.claim(["default"], 1, 1_000, "w"),
                    reader.tick(1, Keep()),
                    reader.heartbeat(WorkerInfo(id="w"), 1_000),
                    reader.cancel(["a"]),
                    reader.delete(["a"]),
                    reader.queues([QueueChange(queue="a", paused=True)]),
                    reader.hand_over("there", 1),
                    reader.take_over(),
                    reader.migrate(),
                ):
                    with pytest.raises(Refused, match="this needs the right to"):
                        await call
                assert await reader.schedules() == []
            async with opened(as_role(url, TOKENS["submit"])) as submitter:
                assert (await submitter.enqueue([JobSpec(id="a", type="t")]))[0].created
                with pytest.raises(Refused, match="right to work"):
                    await submitter.claim(["default"], 1, 1_000, "w")
            async with opened(as_role(url, TOKENS["work"])) as worker:
                (job,) = await worker.claim(["default"], 1, 1_000, "w")
                await worker.settle([Settlement(id=job.id, token=job.token, state=State.SUCCEEDED)])
                with pytest.raises(Refused, match="right to steer: use a token of role admin"):
                    await worker.delete(["a"])
            async with opened(as_role(url, TOKENS["admin"])) as admin:
                assert await admin.migrate() == 0
                await admin.delete(["a"])

    asyncio.run(main())


def test_a_worker_declares_what_its_code_says_and_touches_nothing_of_an_operator() -> None:
    tokens = [f"{role}:{token}" for role, token in TOKENS.items()]
    spec = JobSpec(id="x", type="t")

    def define(name: str, source: str) -> ScheduleChange:
        return ScheduleChange(name=name, define=Schedule(name=name, spec=spec, every_ms=60_000, source=source))

    async def main() -> None:
        async with served(tokens=tokens) as url, opened(as_role(url, TOKENS["admin"])) as admin:
            await admin.schedules([define("nightly", "")])
            await admin.queues([QueueChange(queue="bounded", capacity=5)])
            async with opened(as_role(url, TOKENS["work"])) as worker:
                await worker.limits([Limit(type="t", rate=5, source="code")])
                await worker.schedules([define("own", "app:shop")])
                await worker.schedules([define("own", "app:shop"), ScheduleChange(name="own", removed=True)])
                await worker.queues([QueueChange(queue="free", capacity=7)])
                for call in (
                    worker.limits([Limit(type="t", rate=5)]),
                    worker.schedules([define("nightly", "app:shop")]),
                    worker.schedules([define("another", "")]),
                    worker.schedules([ScheduleChange(name="nightly", removed=True)]),
                    worker.schedules([ScheduleChange(name="own", paused=True)]),
                    worker.queues([QueueChange(queue="bounded", capacity=9)]),
                    worker.queues([QueueChange(queue="free", paused=True)]),
                ):
                    with pytest.raises(Refused, match="right to steer"):
                        await call
            async with opened(as_role(url, TOKENS["submit"])) as submitter:
                with pytest.raises(Refused, match="right to steer"):
                    await submitter.limits([Limit(type="t", rate=5, source="code")])
            assert [schedule.name for schedule in await admin.schedules()] == ["nightly"]

    asyncio.run(main())


def test_a_token_for_some_queues_sees_and_touches_no_other() -> None:
    """C19: an id is no authority."""
    tokens = [f"admin@mail:{TOKENS['read']}", f"admin:{TOKENS['admin']}"]

    async def main() -> None:
        async with served(tokens=tokens) as url:
            async with opened(as_role(url, TOKENS["admin"])) as everybody:
                await everybody.enqueue([JobSpec(id="a", type="t", queue="mail"), JobSpec(id="b", type="t")])
            async with opened(as_role(url, TOKENS["read"])) as scoped:
                assert [job.id for job in (await scoped.find(Query())).jobs] == ["a"]
                found, hidden = await scoped.get(["a", "b"])
                assert found is not None
                assert hidden is None
                with pytest.raises(OutOfScope):
                    await scoped.enqueue([JobSpec(id="c", type="t")])
                with pytest.raises(OutOfScope):
                    await scoped.checkup()

    asyncio.run(main())


def test_a_wrong_token_is_refused_when_it_opens() -> None:
    async def main() -> None:
        async with served(tokens=[TOKENS["admin"]]) as url:
            for given in (url, as_role(url, "wrong-0123456789abcdefghij")):
                with pytest.raises(ConfigurationError, match="refuses the token") as raised:
                    async with opened(given):
                        pass
                assert "0123456789" not in str(raised.value)

    asyncio.run(main())


# ---- where the token comes from --------------------------------------------------------------------------------


def test_the_setting_token_is_for_servers_only() -> None:
    """B40: PACKHORSE_TOKEN goes into the URL of a server that has none, and into no other."""
    environ = {"PACKHORSE_TOKEN": "canary/&?#@ü"[:9]}
    assert (
        store_url(load({"url": "https://host/jobs?timeout=3"}, environ))
        == "https://:canary%2F%26%3F@host/jobs?timeout=3"
    )
    assert store_url(load({"url": "https://other@host"}, environ)) == "https://other@host"
    assert store_url(load({"url": "sqlite:///a.db"}, environ)) == "sqlite:///a.db"
    assert with_token("https://host", None) == "https://host"
    made = with_token("https://host", "canary/&?")
    assert open_backend(made).location.token == "canary/&?"  # type: ignore[attr-defined]
    assert "canary" not in redact(made)
    assert secrets_of(made) == {"canary%2F%26%3F", "canary/&?"}


def test_a_token_that_travels_unencrypted_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert open_backend("http://:secret@jobs.example").location.is_secret_in_clear  # type: ignore[attr-defined]
    for safe in ("https://:secret@jobs.example", "http://:secret@127.0.0.1:8080", "http://:secret@[::1]", "http://far"):
        assert not open_backend(safe).location.is_secret_in_clear  # type: ignore[attr-defined]

    async def main() -> None:
        async with (
            stranger(answering(GREETING)) as proxy,
            opened(f"http://:secret@jobs.example.invalid?proxy={proxy}"),
        ):
            pass

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert "the token travels unencrypted" in caplog.text
    assert "secret" not in caplog.text


# ---- TLS -------------------------------------------------------------------------------------------------------


_REQUEST = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key and a certificate of 127.0.0.1 that nobody else knows."""
    directory = tmp_path_factory.mktemp("tls")
    key, cert = directory / "key.pem", directory / "cert.pem"
    subprocess.run(
        [*_REQUEST.split(), "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    return key, cert


def test_a_certificate_is_checked_and_an_own_authority_is_named(certificate: tuple[Path, Path]) -> None:
    key, cert = certificate
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)

    async def main() -> None:
        async with stranger(answering(GREETING), tls) as url:
            with pytest.raises(ConfigurationError, match=r"certificate is not trusted .*verify=FILE"):
                async with opened(url):
                    pass
            async with opened(f"{url}?verify={cert}"):
                pass
            with pytest.raises(ConfigurationError, match="certificate is not trusted"):
                async with opened(f"{url.replace('127.0.0.1', 'localhost')}?verify={cert}"):
                    pass

    asyncio.run(main())


@pytest.mark.parametrize("off", ["0", "false", "no", "none", "off"])
def test_there_is_no_way_to_trust_any_certificate(off: str) -> None:
    with pytest.raises(ConfigurationError, match="must name a file of certificates"):
        asyncio.run(open_backend(f"https://127.0.0.1:1?verify={off}").open())
