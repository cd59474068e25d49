"""What deploy/ holds, read: rules, alerts, the queries of the dashboards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
GRAFANA = DEPLOY / "grafana"
GUIDE = ROOT / "docs" / "monitoring.md"

#: What stands for a variable of Grafana: `.*` is what "All" stands for, the window is four scrapes.
FILLED = {"$__rate_interval": "4s", "$store": ".*", "$queue": ".*", "$job_type": ".*", "$instance": ".*"}


class Query(NamedTuple):
    """An expression, and where it comes from."""

    where: str
    expr: str


def rules(name: str) -> list[dict[str, Any]]:
    """Answer the rules of a file, in their order."""
    return [rule for group in yaml.safe_load((PROMETHEUS / name).read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return rules("alerts.yml")


def dashboards() -> dict[str, dict[str, Any]]:
    """Answer the dashboards as they are committed, by the name of their file."""
    return {path.name: json.loads(path.read_text()) for path in sorted(GRAFANA.glob("*.json"))}


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Answer the panels, without rows."""
    return (panel for panel in dashboard["panels"] if panel["type"] != "row")


def queries(dashboard: dict[str, Any]) -> list[Query]:
    """Answer all that a dashboard asks, as written, with the title of the panel."""
    title = dashboard["title"]
    found = [
        Query(f"{title} / {panel['title']}", target["expr"])
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]
    return found + [
        Query(f"{title} / annotation {one['name']}", one["expr"]) for one in dashboard["annotations"]["list"]
    ]


def filled(expr: str) -> str:
    """Put values in the place of Grafana's variables."""
    for name, value in FILLED.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


def every_expression() -> list[Query]:
    """Answer the expressions of rules, alerts and dashboards."""
    found = [Query(rule["record"], rule["expr"]) for rule in rules("rules.yml")]
    found += [Query(rule["alert"], rule["expr"]) for rule in alerts()]
    for dashboard in dashboards().values():
        found += [Query(where, filled(expr)) for where, expr in queries(dashboard)]
    return found


def metrics_of(expr: str) -> set[str]:
    """Answer the metrics of ours that an expression names, as they are exposed."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    return {name for name in re.findall(r"\b(?:packhorse|worker)_\w+", bare) if not name.startswith("worker_endpoint")}
