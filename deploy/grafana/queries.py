"""How metrics are asked for. `labels` are matchers, without braces; `by` names labels.

What the store holds is told by every server and worker: the largest counts, never the sum. What a process counts
itself is added up over the processes.
"""

from __future__ import annotations

#: A window that is right for the zoom, never shorter than four scrapes: Grafana fills it in.
WINDOW = "$__rate_interval"


def stored(metric: str, labels: str, by: str) -> str:
    """Ask for what the store holds."""
    return f"max by ({by}) ({metric}{{{labels}}})"


def rate(metric: str, labels: str, by: str = "") -> str:
    """Ask what a counter rises by in a second."""
    return f"sum{_by(by)} (rate({metric}{{{labels}}}[{WINDOW}]))"


def rose(metric: str, labels: str, by: str = "") -> str:
    """Ask what a counter rose by in the window."""
    return f"sum{_by(by)} (increase({metric}{{{labels}}}[{WINDOW}]))"


def failing(labels: str, by: str = "") -> str:
    """Ask for the share of runs that failed; nothing where nothing runs."""
    failures = rate("worker_jobs_processed_total", labels + ', status="failure"', by)
    return f"{failures} / ({rate('worker_jobs_processed_total', labels, by)} > 0)"


def quantile(share: float, histogram: str, labels: str, by: str = "") -> str:
    """Ask below which value such a share of what a histogram counted lies."""
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', labels, f'{by}, le' if by else 'le')})"


def buckets(histogram: str, labels: str) -> str:
    """Ask how many fell into each bucket of a histogram."""
    return rose(f"{histogram}_bucket", labels, "le")


def largest(expr: str) -> str:
    """Keep the largest, and leave out what is no number because nothing happened."""
    return f"topk(12, {expr} >= 0)"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""
