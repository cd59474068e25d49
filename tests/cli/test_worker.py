"""`packhorse worker`: what the keeper is told, and what is refused before any process starts."""

from __future__ import annotations

import sys

import pytest

from packhorse.worker import keeper, launch

from .kit import Cli


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[keeper.KeeperOptions]:
    found: list[keeper.KeeperOptions] = []

    def run(options: keeper.KeeperOptions, launched: list[object], endpoint: object) -> int:
        assert len(launched) == options.processes
        found.append(options)
        return 0

    monkeypatch.setattr(keeper, "run_keeper", run)
    monkeypatch.setattr(launch, "launch", CalledOff)
    CalledOff.alive = 0
    return found


class CalledOff:
    """Stands for a runner process that was launched, and counts those that were not ended."""

    alive = 0

    def __init__(self) -> None:
        type(self).alive += 1
        self.process = self.end = self.page = self.inspection_end = self

    def kill(self) -> None:
        type(self).alive -= 1

    def wait(self) -> None:
        pass

    close = wait


def test_nothing_but_the_app(cli: Cli, told: list[keeper.KeeperOptions]) -> None:
    cli("worker", "shop.jobs:app")
    (options,) = told
    assert options == keeper.KeeperOptions(app="shop.jobs:app")
    assert "shop" not in sys.modules


def test_every_option_reaches_the_keeper(cli: Cli, told: list[keeper.KeeperOptions]) -> None:
    cli(
        *("worker", "jobs", "--url", "clitest://other", "-q", "a, b", "-q", "c", "-c", "7", "-p", "3", "--burst"),
        *("--lease", "10s", "--shutdown-timeout", "1m", "--poll-interval", "250ms", "--max-jobs", "1000"),
        *("--max-memory", "512MB", "--log-level", "debug", "--log-format", "json"),
    )
    assert told == [
        keeper.KeeperOptions(
            app="jobs",
            url="clitest://other",
            processes=3,
            overrides={
                "queues": ("a", "b", "c"),
                "concurrency": 7,
                "burst": True,
                "lease_ms": 10_000,
                "shutdown_timeout_ms": 60_000,
                "poll_interval_ms": 250,
                "jobs_max": 1000,
                "memory_bytes_max": 512_000_000,
            },
            log_level="debug",
            log_format="json",
        )
    ]


def test_settings_stand_where_no_option_is_given(
    cli: Cli, told: list[keeper.KeeperOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACKHORSE_PROCESSES", "4")
    monkeypatch.setenv("LOG_FORMAT", "json")
    monkeypatch.setenv("LOG_LEVEL", "warning")
    cli("worker", "jobs")
    assert (told[0].processes, told[0].log_format, told[0].log_level) == (4, "json", "warning")
    cli("--url", "clitest://root", "worker", "jobs", "-p", "2")
    assert (told[1].processes, told[1].url) == (2, "clitest://root")


@pytest.mark.parametrize(("text", "size"), [("1KB", 1000), ("1kib", 1024), ("2 GiB", 2 << 30), ("3g", 3 * 10**9)])
def test_sizes(cli: Cli, told: list[keeper.KeeperOptions], text: str, size: int) -> None:
    cli("worker", "jobs", "--max-memory", text)
    assert told[0].overrides["memory_bytes_max"] == size


@pytest.mark.parametrize("code", [0, 2])
def test_the_keeper_decides_the_exit_code(
    cli: Cli, told: list[keeper.KeeperOptions], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(keeper, "run_keeper", lambda options, launched, endpoint: code)
    cli("worker", "jobs", code=code)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "Missing argument 'APP'"),
        (("jobs.py",), "is a file"),
        (("shop/jobs:app",), "is a file"),
        (("jobs:",), "module:attribute"),
        ((":app",), "module:attribute"),
        (("a b",), "module:attribute"),
        (("os:system('x')",), "module:attribute"),
        (("",), "module:attribute"),
        (("jobs", "more"), "unexpected extra argument"),
        (("jobs", "-q", "a b"), "cannot name a queue"),
        (("jobs", "-q", ","), "names no queue"),
        (("jobs", "-c", "0"), "--concurrency"),
        (("jobs", "-c", "100001"), "--concurrency"),
        (("jobs", "-c", "x"), "--concurrency"),
        (("jobs", "-p", "0"), "--processes"),
        (("jobs", "--lease", "999ms"), "lease"),
        (("jobs", "--lease", "2d"), "lease"),
        (("jobs", "--lease", "soon"), "--lease: 'soon' is not a duration"),
        (("jobs", "--shutdown-timeout", "-1"), "--shutdown-timeout"),
        (("jobs", "--poll-interval", "x"), "--poll-interval"),
        (("jobs", "--max-jobs", "0"), "--max-jobs"),
        (("jobs", "--max-memory", "512"), "write 512MB"),
        (("jobs", "--max-memory", "0MB"), "write 512MB"),
        (("jobs", "--max-memory", "-1MB"), "write 512MB"),
        (("jobs", "--log-level", "loud"), "--log-level"),
        (("jobs", "--log-format", "xml"), "--log-format"),
        (("jobs", "--url", "memory://"), "live inside one process"),
    ],
)
def test_wrong_use(cli: Cli, told: list[keeper.KeeperOptions], args: tuple[str, ...], says: str) -> None:
    assert says in cli("worker", *args, code=2).stderr
    assert told == []
    assert CalledOff.alive == 0


def test_runners_that_were_started_too_soon_are_ended(cli: Cli) -> None:
    """With real processes: none is left, which the test run would report as a ResourceWarning."""
    assert "lease" in cli("worker", "jobs", "-p", "2", "--lease", "1ms", code=2).stderr
