"""A real Prometheus scrapes a real server and worker on a bad day: every panel, rule and alert shows what happened."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from ..servers import needed
from .files import alerts, dashboards, filled, panels, queries, rules
from .scene import Scene

#: Where an alert cannot come true within a minute: what is put in the place of its threshold. How long it has to hold
#: and what it takes exactly is for the unit tests of the rules.
SOONER = {
    "PackhorseQueueAge": [("> 300", "> 1"), ("> 1800", "> 1")],
    "PackhorseScheduleLate": [("> 300", ">= 0")],
    "PackhorseDeadLetters": [("[1h:1m]", "[1h:1s]")],
    "PackhorseLeasesLost": [("> 5", "> 0")],
    "PackhorseNoWorkers": [("> 0", "> 100")],
    "PackhorseWorkersGone": [("< 0.5 *", "<="), ("[1h:1m]", "[1h:1s]")],
    "PackhorseEventLoopBlocked": [("> 2.5", "> 0")],
    "PackhorseWorkersSaturated": [("> 0.9", ">= 0"), ("> 60", ">= 0")],
    "PackhorseBackendSlow": [("> 0.5", "> 0")],
}

#: What Prometheus itself says within the scene: these are true, and those that wait for nothing fire.
FIRING = {"PackhorsePoisonJob", "PackhorseRunnersDying", "PackhorseRunnerKilled"}
PENDING = {
    "PackhorseQueueUnserved",
    "PackhorseTypeUnserved",
    "PackhorseQueuePaused",
    "PackhorseErrorRate",
    "PackhorseStoreDown",
    "PackhorseTargetDown",
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("scene"))
    try:
        made.start()
        made.play()
        yield made
    finally:
        made.close()


def test_every_query_of_every_panel_answers_and_shows_something(scene: Scene) -> None:
    empty = [
        f"{where}: {expr}"
        for dashboard in dashboards().values()
        for where, expr in queries(dashboard)
        if not scene.history(filled(expr))
    ]
    assert not empty, "\n".join(empty)


def test_every_variable_offers_something(scene: Scene) -> None:
    for dashboard in dashboards().values():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                series, _, label = variable["query"].removeprefix("label_values(").removesuffix(")").rpartition(",")
                found = {one["metric"].get(label.strip()) for one in scene.history(filled(series))}
                assert found - {None}, variable["name"]


def test_every_recording_rule_records_something(scene: Scene) -> None:
    for rule in rules("rules.yml"):
        assert scene.history(rule["record"]), rule["record"]


def test_every_alert_would_see_what_happened(scene: Scene) -> None:
    unseen = []
    for alert in alerts():
        name, expr = alert["alert"], alert["expr"]
        scene.query(expr)  # as it is written, it can be asked
        for threshold, sooner in SOONER.get(name, []):
            expr = expr.replace(threshold, sooner)
        assert name not in SOONER or expr != alert["expr"], f"{name} has another threshold by now"
        if not scene.history(expr):
            unseen.append(f"{name}: {expr}")
    assert not unseen, "\n".join(unseen)


def test_prometheus_works_all_rules_out_and_fires_what_need_not_wait(scene: Scene) -> None:
    health = [rule for group in scene.api("rules")["groups"] for rule in group["rules"]]
    assert len(health) == len(rules("rules.yml")) + len(alerts())
    assert {rule["health"] for rule in health} == {"ok"}, [rule.get("lastError") for rule in health]
    assert scene.told('ALERTS{alertstate="firing"}') >= FIRING
    assert scene.told('ALERTS{alertstate="pending"}') >= PENDING
    said = scene.api("alerts")["alerts"]
    assert len(said) > 5
    for alert in said:
        for text in alert["annotations"].values():
            assert "{{" not in text, text
            assert "<no value>" not in text, text
            assert "<error" not in text, text


def test_each_store_is_told_apart(scene: Scene) -> None:
    assert "PackhorseStoreDown" in scene.told('ALERTS{store="away"}')
    assert "PackhorsePoisonJob" not in scene.told('ALERTS{store="away"}')
    assert "PackhorseTargetDown" in scene.told('ALERTS{store="gone"}')
    assert "PackhorsePoisonJob" in scene.told('ALERTS{store="main"}')
    assert "PackhorseStoreDown" not in scene.told('ALERTS{store="main"}')


def test_an_outage_of_a_store_is_over_by_itself(scene: Scene) -> None:
    """While it lasted nothing was told of the store, rather than what was true before."""
    over = 'ALERTS{alertname="PackhorseStoreDown"}'
    scene.until("the alert is over", lambda: scene.query(over) == [])
    assert scene.value(f'min_over_time(packhorse_store_up{{store="away"}}[{scene.seconds()}s])') == 0
    during = scene.history('packhorse_workers{store="away", state="idle"} and on (instance) packhorse_store_up == 0')
    assert during == []


def test_what_the_store_holds_is_not_counted_once_per_process(scene: Scene) -> None:
    """Server and worker both tell it; three jobs wait in the queue that nobody serves."""
    depth = 'packhorse_queue_depth{queue="lonely", state="pending"}'
    assert scene.value(f"max_over_time(count({depth})[{scene.seconds()}s:1s])") == 2
    recorded = 'store_queue_state:packhorse_queue_depth:max{queue="lonely", state="pending"}'
    assert scene.value(f"max_over_time({recorded}[{scene.seconds()}s])") == 3


def test_runs_that_were_traced_can_be_found_from_their_duration(scene: Scene) -> None:
    """Grafana's dots: the exemplars of the panels' queries, with the id of a trace."""
    for dashboard in dashboards().values():
        asked = [target["expr"] for panel in panels(dashboard) for target in panel["targets"] if target.get("exemplar")]
        shown = [one for expr in asked for series in scene.exemplars(filled(expr)) for one in series["exemplars"]]
        assert shown
        assert all(re.fullmatch("[0-9a-f]{32}", one["labels"]["trace_id"]) for one in shown)


def test_promtool_likes_what_is_exposed(scene: Scene) -> None:
    """Names, units, help texts, and labels: `packhorse_build_info` and all."""
    for text in (scene.exposed(scene.server.url), scene.exposed(scene.worker_url)):
        done = subprocess.run(
            [needed("promtool"), "check", "metrics"], input=text, capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_only_who_shows_a_token_may_scrape_the_server(scene: Scene) -> None:
    status, problem = scene.server.status_of("/metrics")
    assert (status, problem["status"]) == (401, 401)
