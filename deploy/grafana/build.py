"""Write the dashboards as JSON beside this file: `make dashboards`. A test fails when code and JSON differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from .drilldown import drilldown
from .overview import overview

HERE = Path(__file__).parent
DASHBOARDS: dict[str, Callable[[], dashboard.Dashboard]] = {"overview.json": overview, "drilldown.json": drilldown}


def rendered(make: Callable[[], dashboard.Dashboard]) -> str:
    """Answer a dashboard as JSON. Panels are numbered, so that links to them stay right."""
    made = make().build()
    for number, panel in enumerate(made.panels or [], 1):
        panel.id_val = number
    return json.dumps(made, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    """Write them all."""
    for name, make in DASHBOARDS.items():
        (HERE / name).write_text(rendered(make))


if __name__ == "__main__":
    main()
