"""What is counted, as text for Prometheus: written by prometheus_client, which is loaded at the first scrape."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..clock import SYSTEM_CLOCK
from . import metrics
from .labels import UNKNOWN
from .meters import Histogram, Meters, Number
from .metrics import METRICS, Kind, Metric
from .store_gauges import Gauge, StoreGauges

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

    from ..app import Packhorse

PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

#: After a text was written nobody writes for so many times as long as that took: it holds up the event loop, too.
_REST_FACTOR = 4

#: What an Accept header may ask for, the first where it does not mind.
_MEDIA_TYPES = {"text/plain": PLAIN, "application/openmetrics-text": OPENMETRICS}


class Exposition(NamedTuple):
    """The answer to a scrape."""

    content: bytes
    media_type: str


class Collector:
    """All metrics of an app in this process, to register with prometheus_client: `REGISTRY.register(Collector(app))`.

    With `store` also what the store says of its queues, asked for at each scrape, at most once a second; that blocks
    for up to 2 s where the store does not answer.
    """

    def __init__(self, app: Packhorse, *, store: bool = False) -> None:
        self._app = app
        self._store = store

    def describe(self) -> Iterable[Family]:
        """Answer the names, without asking for values."""
        return _Families().all()

    def collect(self) -> Iterable[Family]:
        """Answer names and values."""
        gauges = self._app.portal.call(self._app.astore_gauges()) if self._store else ()
        return families(self._app.meters, gauges)


def expose(meters: Meters, gauges: Iterable[Gauge] = (), accept: str = "") -> Exposition:
    """Write all that is counted. Takes about 5 us a line: give it a thread where there may be many."""
    from prometheus_client import exposition, openmetrics

    found = _Written(families(meters, gauges))
    if media_type(accept) == OPENMETRICS:
        write: Callable[[object], bytes] = openmetrics.exposition.generate_latest
        return Exposition(write(found), OPENMETRICS)
    return Exposition(exposition.generate_latest(found), PLAIN)


class Scrapes:
    """Answers the scrapes of a process, beside its event loop and for a fifth of the time at most.

    Who asks while one is written, or in the rest after it, shares the next with all who do: an answer is never older
    than its question, and however many ask, the loop has its turn.
    """

    def __init__(self, meters: Meters, store: StoreGauges) -> None:
        self._meters = meters
        self.store = store
        self._turn = asyncio.Lock()
        self._rests_until_ns = 0  # boot clock
        self._next: dict[str, asyncio.Task[Exposition]] = {}  # by media type: those that nobody writes yet

    async def answer(self, accept: str) -> Exposition:
        """Write all that this process counted, and what the store says. Never raises for the store."""
        kind = media_type(accept)
        task = self._next.get(kind)
        if task is None:
            task = self._next[kind] = asyncio.get_running_loop().create_task(self._write(kind))
        return await asyncio.shield(task)  # one who goes away must not end it for the others

    async def _write(self, kind: str) -> Exposition:
        async with self._turn:
            try:
                gauges = await self.store.read()
                await asyncio.sleep(max(0, self._rests_until_ns - SYSTEM_CLOCK.boot_ns()) / 1e9)
            finally:
                del self._next[kind]
            began_ns = SYSTEM_CLOCK.boot_ns()
            found = await asyncio.to_thread(expose, self._meters, gauges, kind)
            now_ns = SYSTEM_CLOCK.boot_ns()
            self._rests_until_ns = now_ns + _REST_FACTOR * (now_ns - began_ns)
            return found

    async def close(self) -> None:
        """End what is under way. Idempotent."""
        waiting = list(self._next.values())
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await self.store.close()


def media_type(accept: str) -> str:
    """Answer the media type that an Accept header likes best: OpenMetrics only where it names that."""
    best, best_share = PLAIN, 0.0
    for part in accept[:2_000].split(","):
        name, *parameters = (piece.strip() for piece in part.lower().split(";"))
        version = next((each[8:] for each in parameters if each.startswith("version=")), "")
        if name not in _MEDIA_TYPES or (name != "text/plain" and version not in {"", "1.0.0"}):
            continue
        share = _share(next((each[2:] for each in parameters if each.startswith("q=")), "1"))
        if share > best_share:
            best, best_share = _MEDIA_TYPES[name], share
    return best


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


class _Written:
    """What prometheus_client's writers take."""

    def __init__(self, found: Sequence[Family]) -> None:
        self._found = found

    def collect(self) -> Sequence[Family]:
        return self._found


def families(meters: Meters, gauges: Iterable[Gauge] = ()) -> Sequence[Family]:
    """Answer every metric there is, with its series. The two that other engines have are there before any job ran."""
    found = _Families()
    runs = {job_type: Histogram(metrics.RUN_SECONDS) for job_type in meters.bounds.types or [UNKNOWN]}
    for metric, labels, cell in _with_zeros(meters, runs):
        if isinstance(cell, Number):
            found.number(metric, labels, cell.value)
            continue
        found.histogram(metric, labels, cell)
        if metric is metrics.JOB_SECONDS_BY_QUEUE:
            _add_up(runs.setdefault(labels[1], Histogram(metrics.RUN_SECONDS)), cell)
    for job_type, total in sorted(runs.items()):
        found.histogram(metrics.RUN_SECONDS, (job_type,), total)
    for metric, labels, value in gauges:
        found.number(metric, labels, value)
    found.number(metrics.BUILD, (_version(), platform.python_version()), 1)
    return found.all()


def _with_zeros(meters: Meters, types: Iterable[str]) -> Iterable[tuple[Metric, tuple[str, ...], Number | Histogram]]:
    """Answer all series, and 0 for those that are known to come: a rate needs to have seen them before the first."""
    known: list[tuple[Metric, tuple[str, ...]]] = [
        (metric, ()) for metric in METRICS.values() if metric.kind is Kind.COUNTER and not metric.labels
    ]
    known += [(metrics.RUNS, (job_type, status)) for job_type in types for status in ("success", "failure")]
    zeros: dict[tuple[str, tuple[str, ...]], Metric] = {(metric.name, labels): metric for metric, labels in known}
    for metric, labels, cell in meters.read():
        zeros.pop((metric.name, labels), None)
        yield metric, labels, cell
    for (_, labels), metric in zeros.items():
        yield metric, labels, Number()


def _add_up(total: Histogram, cell: Histogram) -> None:
    total.counts = [a + b for a, b in zip(total.counts, cell.counts, strict=True)]
    total.sum_ns += cell.sum_ns
    for place, exemplar in (cell.exemplars or {}).items():
        total.attach(place, exemplar)


def _version() -> str:
    from .. import __version__

    return __version__


class _Families:
    """prometheus_client's own values, one for each row of the table."""

    def __init__(self) -> None:
        from prometheus_client.core import Exemplar, Sample
        from prometheus_client.core import Metric as Family
        from prometheus_client.utils import floatToGoString

        write_bound: Callable[[float], str] = floatToGoString
        self._make_sample: Callable[..., Any] = Sample
        self._make_exemplar: Callable[..., Any] = Exemplar
        self._families = {
            metric.name: Family(metric.name.removesuffix("_total"), metric.help, str(metric.kind))
            for metric in METRICS.values()
        }
        self._bounds = {
            metric.name: [*(write_bound(bound) for bound in metric.buckets), "+Inf"] for metric in METRICS.values()
        }

    def all(self) -> list[Family]:
        return list(self._families.values())

    def number(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        named = dict(zip(metric.labels, labels, strict=True))
        self._families[metric.name].samples.append(self._make_sample(metric.name, named, value))

    def histogram(self, metric: Metric, labels: tuple[str, ...], cell: Histogram) -> None:
        make, samples = self._make_sample, self._families[metric.name].samples
        named = dict(zip(metric.labels, labels, strict=True))
        so_far = 0
        for place, (bound, count) in enumerate(zip(self._bounds[metric.name], cell.counts, strict=True)):
            so_far += count
            exemplar = cell.exemplars.get(place) if cell.exemplars else None
            shown = exemplar and self._make_exemplar(
                {"trace_id": exemplar.trace_id}, exemplar.seconds, exemplar.at_ms / 1000
            )
            samples.append(make(f"{metric.name}_bucket", {**named, "le": bound}, so_far, None, shown))
        samples.append(make(f"{metric.name}_count", named, so_far))
        samples.append(make(f"{metric.name}_sum", named, cell.sum_ns / 1e9))
