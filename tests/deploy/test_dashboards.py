"""The dashboards: committed as their code makes them, readable, and their queries parse."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.grafana.build import DASHBOARDS, rendered

from .files import GRAFANA, every_expression, filled, panels, queries
from .test_rules import promtool

each = pytest.mark.parametrize("name", sorted(DASHBOARDS))


def committed(name: str) -> dict[str, Any]:
    return json.loads((GRAFANA / name).read_text())


@each
def test_what_is_committed_is_what_the_code_makes(name: str) -> None:
    assert (GRAFANA / name).read_text() == rendered(DASHBOARDS[name]), "run: make dashboards"


def test_no_other_dashboard_is_committed() -> None:
    assert {path.name for path in GRAFANA.glob("*.json")} == set(DASHBOARDS)


@each
def test_every_panel_explains_itself(name: str) -> None:
    titles = [panel["title"] for panel in panels(committed(name))]
    assert len(set(titles)) == len(titles)
    for panel in panels(committed(name)):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        if panel["type"] == "heatmap":
            assert panel["options"]["yAxis"]["unit"] == "s"
        else:
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        legends = [target.get("legendFormat") for target in panel["targets"]]
        assert all(legends), panel["title"]
        assert len(set(legends)) == len(legends), panel["title"]


@each
def test_variables_that_are_used_are_there_and_hold_everywhere(name: str) -> None:
    dashboard = committed(name)
    known = {variable["name"] for variable in dashboard["templating"]["list"]}
    for where, expr in queries(dashboard):
        used = set(re.findall(r"\$(\w+)", expr)) - {"__rate_interval"}
        assert used <= known, where
        assert "store" in used or expr.startswith("up{"), where


@each
def test_panels_do_not_lie_on_each_other(name: str) -> None:
    boxes = [panel["gridPos"] for panel in committed(name)["panels"]]
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    for one, other in combinations(boxes, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    ids = [panel["id"] for panel in panels(committed(name))]
    assert len(set(ids)) == len(ids)


def test_runs_lead_to_their_traces() -> None:
    """Durations show exemplars, and the data source says where a trace id leads."""
    for name in DASHBOARDS:
        with_exemplars = [
            panel["title"] for panel in panels(committed(name)) if any(t.get("exemplar") for t in panel["targets"])
        ]
        assert {"How long runs take", "How long runs take: p50, p95, p99"} <= set(with_exemplars)
    (source,) = (
        source
        for source in yaml.safe_load((GRAFANA / "provisioning" / "datasources.yaml").read_text())["datasources"]
        if source["type"] == "prometheus"
    )
    (target,) = source["jsonData"]["exemplarTraceIdDestinations"]
    assert target["name"] == "trace_id"


def test_every_query_parses(tmp_path: Path) -> None:
    found = [{"record": f"query:{number}", "expr": expr} for number, (_, expr) in enumerate(every_expression())]
    (tmp_path / "all.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": found}]}))
    done = promtool("check", "rules", "all.yml", directory=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(found)} rules found" in done.stdout


def test_the_dashboards_do_without_our_rules() -> None:
    for name in DASHBOARDS:
        for where, expr in queries(committed(name)):
            assert ":" not in re.sub(r'"[^"]*"', "", filled(expr)).replace("[1h:1m]", ""), where
