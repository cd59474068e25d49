"""What the dashboards are put together from: queries, panels and variables with the same looks everywhere."""

from __future__ import annotations

from typing import NamedTuple

from grafana_foundation_sdk.builders import common as common_builder
from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common, units
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import prometheus as prometheus_models

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
#: All dashboards carry it, and link to each other by it.
TAG = "packhorse"

SECONDS, SHARE, NUMBER, PER_SECOND = units.Seconds, units.PercentUnit, units.Short, "cps"


class Ask(NamedTuple):
    """A query: what is asked, and what its lines are called."""

    expr: str
    legend: str = ""


class Step(NamedTuple):
    """From this value on (None: from the beginning) a panel shows this colour."""

    value: float | None
    colour: str


def rises(base: str, *steps: tuple[float, str]) -> list[Step]:
    """Answer thresholds: a colour, and others from some values on."""
    return [Step(None, base), *(Step(value, colour) for value, colour in steps)]


def _target(ask: Ask, number: int) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(ask.expr).legend_format(ask.legend or "__auto").ref_id(chr(ord("A") + number))


def _thresholds(steps: list[Step]) -> dashboard.ThresholdsConfig:
    found = [models.Threshold(value=step.value, color=step.colour) for step in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(found)


def figure(title: str, what: str, expr: str, unit: str, steps: list[Step], *, none: str = "–") -> stat.Panel:
    """Make a panel that shows one number, as it is now, over its course."""
    return (
        stat.Panel()
        .title(title)
        .description(what)
        .datasource(SOURCE)
        .with_target(_target(Ask(expr), 0))
        .unit(unit)
        .no_value(none)
        .thresholds(_thresholds(steps))
        .reduce_options(common_builder.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.AREA)
        .span(3)
        .height(4)
    )


def lines(
    title: str,
    what: str,
    *asks: Ask,
    unit: str,
    span: int = 8,
    exemplars: bool = False,
    stacked: bool = False,
    steps: list[Step] | None = None,
) -> timeseries.Panel:
    """Make a panel of lines over time. `exemplars`: with dots for single runs, which lead to their traces."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(what)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(span)
        .height(8)
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .show_points(common.VisibilityMode.NEVER)
        .tooltip(
            common_builder.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
        )
        .legend(
            common_builder.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
    )
    for number, ask in enumerate(asks):
        panel = panel.with_target(_target(ask, number).range().exemplar(exemplars))
    if stacked:
        panel = panel.stacking(common_builder.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if steps is not None:
        style = common_builder.GraphThresholdsStyleConfig().mode(common.GraphTresholdsStyleMode.DASHED)
        panel = panel.thresholds(_thresholds(steps)).thresholds_style(style)
    return panel


def heat(title: str, what: str, expr: str, *, span: int = 12) -> heatmap.Panel:
    """Make a heat map of a histogram: how many fell into which bucket, over time."""
    target = _target(Ask(expr, "{{le}}"), 0).format(prometheus_models.PromQueryFormat.HEATMAP).range().exemplar(True)
    return (
        heatmap.Panel()
        .title(title)
        .description(what)
        .datasource(SOURCE)
        .with_target(target)
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_models.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .scale(heatmap_models.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
        .y_axis(heatmap.YAxisConfig().unit(SECONDS))
        .cell_gap(1)
        .show_tooltip()
        .show_legend()
        .span(span)
        .height(8)
    )


def rows(title: str, what: str, expr: str, *, names: dict[str, str], unit: str = NUMBER, span: int = 8) -> table.Panel:
    """Make a table of what is now, a row for each set of labels. `names`: the columns in order, label → title."""
    order = {label: place for place, label in enumerate(names)}
    hidden = {label: True for label in ("Time", "__name__", "job", "alertstate", "prometheus") if label not in names}
    tidy = {"indexByName": order, "renameByName": names, "excludeByName": hidden}
    target = _target(Ask(expr), 0).format(prometheus_models.PromQueryFormat.TABLE).instant()
    return (
        table.Panel()
        .title(title)
        .description(what)
        .datasource(SOURCE)
        .with_target(target)
        .unit(unit)
        .with_transformation(models.DataTransformerConfig(id_val="organize", options=tidy))
        .sort_by([common_builder.TableSortByFieldState().display_name(names.get("Value", "Value")).desc(True)])
        .no_value("none")
        .span(span)
        .height(8)
    )


# ---- variables -----------------------------------------------------------------------------------------------


def _source_variable() -> dashboard.DatasourceVariable:
    return dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")


def _choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """Make a variable that offers the values of a label, several at once, all of them at first.

    "All" is `.*`, which also takes in series without the label.
    """
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def board(title: str, uid: str, what: str, **choices: tuple[str, str]) -> dashboard.Dashboard:
    """Begin a dashboard. `choices` are its variables beside data source and store: name → label and query."""
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(what)
        .tags([TAG])
        .timezone("browser")
        .editable()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .link(
            dashboard.DashboardLink("packhorse")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
        .annotation(
            dashboard.AnnotationQuery()
            .name("Alerts")
            .datasource(SOURCE)
            .enable(True)
            .icon_color("red")
            .expr('ALERTS{alertname=~"Packhorse.*", alertstate="firing", store=~"$store"}')
        )
        .with_variable(_source_variable())
        .with_variable(_choice("store", "Store", "label_values(packhorse_build_info, store)"))
    )
    for name, (label, query) in choices.items():
        made = made.with_variable(_choice(name, label, query))
    return made


def add(to: dashboard.Dashboard, title: str, *panels: object) -> None:
    """Add a row of panels under a title."""
    to.with_row(dashboard.Row(title))
    for panel in panels:
        to.with_panel(panel)  # type: ignore[arg-type]  # each kind of panel is a builder of Panel
