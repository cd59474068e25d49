"""Rules and alerts: promtool finds nothing wrong, each alert fires when it should and names a way out."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from packhorse.cli.main import root
from packhorse.observe.metrics import METRICS, Kind

from ..servers import needed
from .files import GUIDE, PROMETHEUS, alerts, every_expression, metrics_of, rules

UNIT_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))

#: What the store holds, told by every process: to add it up is to count it several times.
OF_THE_STORE = {
    "packhorse_queue_depth",
    "packhorse_queue_latency_seconds",
    "packhorse_queue_paused",
    "packhorse_queue_workers",
    "packhorse_type_workers",
    "packhorse_dead_letter_size",
    "packhorse_workers",
    "packhorse_schedule_late_seconds",
    "packhorse_store_up",
}


def promtool(*args: str, directory: Path = PROMETHEUS) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [needed("promtool"), *args], cwd=directory, capture_output=True, text=True, timeout=60, check=False
    )


def test_promtool_finds_nothing_wrong_with_configuration_and_rules() -> None:
    for command in (["check", "config", "prometheus.yml"], ["check", "rules", "rules.yml", "alerts.yml"]):
        done = promtool(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SUCCESS" in done.stdout


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_the_unit_tests_of_the_rules_pass(path: Path) -> None:
    done = promtool("test", "rules", path.name, directory=path.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_unit_test_that_fails_without_it(tmp_path: Path) -> None:
    """All rules are made ones that never answer: the unit tests must miss each alert, of each severity, and record."""
    copy = tmp_path / "prometheus"
    shutil.copytree(PROMETHEUS, copy)
    for name in ("alerts.yml", "rules.yml"):
        everything = yaml.safe_load((PROMETHEUS / name).read_text())
        for group in everything["groups"]:
            for rule in group["rules"]:
                rule["expr"] = "vector(1) > 2"
        (copy / name).write_text(yaml.safe_dump(everything))
    names = [path.name for path in UNIT_TESTS if path.stem != "healthy"]
    done = promtool("test", "rules", *names, directory=copy / "tests")
    assert done.returncode != 0
    missed = done.stdout + done.stderr
    for alert in alerts():
        pattern = rf'alertname="{alert["alert"]}"[^}}]*severity="{alert["labels"]["severity"]}"'
        assert re.search(pattern, missed), f"no unit test misses {alert['alert']}, {alert['labels']['severity']}"
    for rule in rules("rules.yml"):
        assert rule["record"] in missed, f"no unit test misses {rule['record']}"


def test_no_alert_fires_where_all_is_well() -> None:
    (healthy,) = yaml.safe_load((PROMETHEUS / "tests" / "healthy.yml").read_text())["tests"]
    quiet = {case["alertname"] for case in healthy["alert_rule_test"] if not case.get("exp_alerts")}
    assert quiet == {alert["alert"] for alert in alerts()}


def test_every_alert_says_what_is_wrong_what_to_do_and_where_to_read_on() -> None:
    sections = {line[4:].strip().lower() for line in GUIDE.read_text().splitlines() if line.startswith("### ")}
    for alert in alerts():
        name = alert["alert"]
        assert name.startswith("Packhorse")
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(alert["annotations"]) == {"summary", "description", "runbook"}, name
        assert alert["annotations"]["runbook"] == f"docs/monitoring.md#{name.lower()}"
        assert name.lower() in sections, f"docs/monitoring.md has no section {name}"
    assert len(sections & {alert["alert"].lower() for alert in alerts()}) == len({alert["alert"] for alert in alerts()})


def test_commands_that_alerts_and_guide_name_exist() -> None:
    told = GUIDE.read_text() + " ".join(alert["annotations"]["description"] for alert in alerts())
    named = set(re.findall(r"`packhorse\s+([a-z-]+)", told))
    assert len(named) > 5
    assert named <= set(root.list_commands(None)), named - set(root.list_commands(None))


def test_only_metrics_that_exist_are_asked_for() -> None:
    exposed = set(METRICS)
    for name, metric in METRICS.items():
        if metric.kind is Kind.HISTOGRAM:
            exposed |= {f"{name}_{part}" for part in ("bucket", "count", "sum")}
    recorded = {name for rule in rules("rules.yml") for name in metrics_of(rule["record"])}
    for where, expr in every_expression():
        unknown = metrics_of(expr) - exposed - recorded
        assert not unknown, f"{where} asks for {unknown}"


def test_every_metric_is_looked_at_somewhere() -> None:
    asked = {re.sub(r"_(bucket|count|sum)$", "", name) for _, expr in every_expression() for name in metrics_of(expr)}
    # The name that other engines have for the duration of a run: what we ask for has the queue as a label too.
    assert set(METRICS) - asked <= {"worker_job_duration_seconds"}


def test_what_every_process_tells_of_the_store_is_never_added_up() -> None:
    """The largest is taken before anything is summed, else the figures grow with the number of processes."""
    for where, expr in every_expression():
        for found in re.finditer(r"\b(?:packhorse|worker)_\w+", expr):
            if found[0] in OF_THE_STORE:
                before = expr[: found.start()]
                assert re.search(r"(max|min|count)( by \([\w, ]+\))? ?\($", before), f"{where}: {expr}"
