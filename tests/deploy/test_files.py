"""The other files of deploy/: they parse, what they name is there, and what needs no other program is checked."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from packhorse.cli.main import root
from packhorse.settings import _READERS, Settings
from packhorse.worker.options import HOOKS_CLOSE_MS_MAX, HOOKS_MS_MAX, SETTLE_MS_MAX, WorkerOptions

from ..servers import needed
from .files import DEPLOY, ROOT
from .test_rules import promtool

UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
UNIT = pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)

#: How long a worker may take to end, s: its jobs, those that ignore their stop, settling, failure hooks, a margin; then
#: the keeper's own moves, if the store is away.
RUNNER_STOPS_MS = WorkerOptions().stop_grace_ms + SETTLE_MS_MAX + HOOKS_MS_MAX + HOOKS_CLOSE_MS_MAX + 2_000
WORKER_STOPS_S = (Settings().shutdown_timeout_ms + RUNNER_STOPS_MS + SETTLE_MS_MAX) / 1000


def read(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text())


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def test_all_yaml_parses_and_repeats_no_key() -> None:
    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value if key.value != "<<"]
            assert len(set(keys)) == len(keys), f"{node.start_mark}: a key is there twice"
            return super().construct_mapping(node, deep)

    found = [*DEPLOY.glob("**/*.y*ml")]
    assert len(found) > 10
    for path in found:
        assert yaml.load(path.read_text(), Strict), path  # a safe loader, only stricter


# ---- compose ---------------------------------------------------------------------------------------------------


def services() -> dict[str, dict[str, Any]]:
    return read("compose.yaml")["services"]


def test_compose_opens_ports_to_this_machine_only() -> None:
    """FAILURES C26."""
    for name, service in services().items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), (name, port)


def test_what_compose_names_is_there() -> None:
    whole = read("compose.yaml")
    for name, service in whole["services"].items():
        assert set(service.get("depends_on", {})) <= set(whole["services"])
        assert set(service.get("secrets", [])) <= set(whole["secrets"])
        assert "build" in service or re.fullmatch(r"[\w./-]+:v?\d[\w.-]*", service["image"]), f"{name}: pin its image"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in whole["volumes"], volume
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()
            assert service["command"][0] in root.list_commands(None)


def test_settings_that_compose_gives_exist() -> None:
    known = {f"PACKHORSE_{name.upper()}" for name in _READERS}
    for service in services().values():
        given = {name for name in service.get("environment", {}) if name.startswith("PACKHORSE_")}
        assert given <= known, given - known


def test_passwords_and_tokens_are_not_in_the_files() -> None:
    """FAILURES C20, C21."""
    for name, service in services().items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKENS", key):
                assert re.search(r"\$\{\w+:\?", value), f"{name}: {key} has to come from outside"
    assert re.search(r":\$\{POSTGRES_PASSWORD:\?[^}]*\}@", services()["worker"]["environment"]["PACKHORSE_URL"])


def test_compose_lets_jobs_come_to_their_end() -> None:
    for name in ("server", "worker"):
        assert seconds(services()[name]["stop_grace_period"]) >= WORKER_STOPS_S


def test_prometheus_of_compose_is_the_plain_one_elsewhere() -> None:
    done = promtool("check", "config", "--syntax-only", "compose.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    there, plain = read("prometheus/compose.yml"), read("prometheus/prometheus.yml")
    assert (there["global"], there["rule_files"]) == (plain["global"], plain["rule_files"])
    jobs = {job["job_name"]: job for job in there["scrape_configs"]}
    assert {job["job_name"] for job in plain["scrape_configs"]} <= set(jobs)
    assert jobs["packhorse-worker"]["dns_sd_configs"][0]["names"][0] in services()
    for target in [
        target for job in jobs.values() for group in job.get("static_configs", []) for target in group["targets"]
    ]:
        assert target.split(":")[0] in services()


def test_grafana_finds_its_sources_and_dashboards() -> None:
    sources = {source["uid"]: source for source in read("grafana/provisioning/datasources.yaml")["datasources"]}
    for source in sources.values():
        host, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()
        assert host in services()
        assert any(f":{port}" in each for each in services()[host]["ports"])
    leads_to = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"][0]["datasourceUid"]
    assert sources[leads_to]["type"] == "jaeger"
    (provider,) = read("grafana/provisioning/dashboards.yaml")["providers"]
    mounted = [volume.split(":")[1] for volume in services()["grafana"]["volumes"] if ".json" in volume]
    assert mounted
    assert all(Path(path).parent == Path(provider["options"]["path"]) for path in mounted)


def test_what_the_image_is_built_from_is_sent_to_docker() -> None:
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
        for source in copied.split():
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignore, source
    extras = re.search(r"/source\[([\w,]+)\]", dockerfile)[1].split(",")
    declared = re.search(
        r"\[project.optional-dependencies\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.DOTALL
    )
    assert set(extras) <= set(re.findall(r"^(\w+) =", declared[1], re.MULTILINE))


# ---- collector and Jaeger --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["otel-collector/config.yaml", "jaeger/config.yaml"])
def test_pipelines_are_made_of_parts_that_are_configured_and_all_of_them_are_used(path: str) -> None:
    config = read(path)
    connectors = set(config.get("connectors", {}))
    used: dict[str, set[str]] = {"receivers": set(), "processors": set(), "exporters": set()}
    for name, pipeline in config["service"]["pipelines"].items():
        assert name.split("/")[0] in {"traces", "metrics", "logs"}
        assert set(pipeline) <= set(used)
        for kind, parts in pipeline.items():
            assert set(parts) <= set(config[kind]) | connectors, (name, kind)
            used[kind] |= set(parts)
    for kind, parts in used.items():
        assert parts - connectors == set(config[kind]), f"{kind} that no pipeline has"
    assert connectors <= used["receivers"] & used["exporters"]
    assert set(config["service"].get("extensions", [])) == set(config.get("extensions", {}))


def test_spans_go_from_packhorse_over_the_collector_to_jaeger() -> None:
    collector = read("otel-collector/config.yaml")
    host, port = re.fullmatch(r"http://(\w+):(\d+)", services()["worker"]["environment"]["PACKHORSE_TRACING"]).groups()
    assert host in services()
    assert collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].endswith(f":{port}")
    next_host, next_port = collector["exporters"]["otlp/jaeger"]["endpoint"].split(":")
    assert next_host in services()
    assert read("jaeger/config.yaml")["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].endswith(f":{next_port}")
    store = read("jaeger/config.yaml")
    backends = set(store["extensions"]["jaeger_storage"]["backends"])
    assert store["exporters"]["jaeger_storage_exporter"]["trace_storage"] in backends
    assert store["extensions"]["jaeger_query"]["storage"]["traces"] in backends


# ---- systemd ---------------------------------------------------------------------------------------------------


def unit_of(path: Path) -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names are told apart by case
    parser.read_string(path.read_text())
    return parser["Service"]


@UNIT
def test_a_unit_stops_its_processes_gently(unit: Path) -> None:
    service = unit_of(unit)
    assert service["Type"] == "exec"
    assert service["KillMode"] == "mixed"  # SIGTERM to the keeper alone: its runners are its own business
    assert service["Restart"] == "always"
    assert service["RestartPreventExitStatus"] == "2"
    command = service["ExecStart"].split()[1]
    assert command in root.list_commands(None)
    assert seconds(service["TimeoutStopSec"]) >= (WORKER_STOPS_S if command == "worker" else 10)


@UNIT
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/packhorse/bin/packhorse", shutil.which("true") or ""))
    done = subprocess.run(
        [needed("systemd-analyze"), "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- the app ---------------------------------------------------------------------------------------------------


PROGRAM = """
import asyncio, shop

async def main():
    async with shop.app as app:
        await shop.customers_come.aenqueue()
        await shop.charge.aenqueue(number=50)
        await app.worker(burst=True, define_schedules=False).run()
        states = (await app.acounts())["default"].states
        print(*(f"{state}={count}" for state, count in states.items() if count))

asyncio.run(main())
"""


def test_the_app_of_the_image_runs(tmp_path: Path) -> None:
    """Customers come and pay, one is refused; each payment that went through is confirmed by mail."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PYTHONPATH": str(DEPLOY / "app"), "PYTHONDONTWRITEBYTECODE": "1", "PACKHORSE_URL": "memory://"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = dict(part.split("=") for part in done.stdout.split())
    assert set(counts) <= {"succeeded", "failed", "scheduled"}  # a mail may wait to be sent again
    assert int(counts["failed"]) in {1, 2}
    assert int(counts["succeeded"]) >= 1 + 9 + 8
