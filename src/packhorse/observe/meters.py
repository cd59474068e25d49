"""Counters, gauges and histograms: cells that cost an addition, read and added up when somebody asks.

A `Sheet` belongs to one thread: nothing in it is locked. `Meters` is all sheets of a process, and what other processes
told it: a keeper has the sheets of its runners as what rose since they last told (`Rise`).
"""

from __future__ import annotations

import os
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from threading import Lock

import msgspec

from .labels import OTHER, LabelBounds
from .metrics import METRICS, Kind, Metric
from .writing import Writing

Labels = tuple[str, ...]

#: Series of one metric, whatever its labels: beyond them all go into one, labelled `other`. A histogram is about 20
#: lines of /metrics for each.
SERIES_MAX = 2_000
HISTOGRAMS_MAX = 500


class Number:
    """A counter or a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def read(self) -> list[float]:
        """Answer its value, as a list of one."""
        return [self.value]


class Exemplar(msgspec.Struct, frozen=True, array_like=True):
    """A run behind a bucket of a histogram: its trace, how long it took, when it ended."""

    trace_id: str
    seconds: float
    at_ms: int


class Histogram:
    """Durations by bucket. `counts` are not cumulative; the last is what is longer than all bounds."""

    __slots__ = ("bounds_ns", "counts", "exemplars", "sum_ns")

    def __init__(self, metric: Metric) -> None:
        self.bounds_ns = tuple(int(bound * 1e9) for bound in metric.buckets)
        self.counts = [0] * (len(self.bounds_ns) + 1)
        self.sum_ns = 0
        self.exemplars: dict[int, Exemplar] | None = None

    def place(self, duration_ns: int) -> int:
        """Answer the bucket of a duration."""
        return bisect_left(self.bounds_ns, duration_ns)

    def observe(self, duration_ns: int) -> int:
        """Count a duration; answers its bucket."""
        place = self.place(duration_ns)
        self.counts[place] += 1
        self.sum_ns += duration_ns
        return place

    def observe_all(self, durations_ns: list[int]) -> None:
        """Count durations, in bulk. Reorders the list.

        Mostly all fall into one bucket; else they are sorted, so that a bucket is a difference of two places.
        """
        if not durations_ns:
            return
        place = self.place(max(durations_ns))
        if place == 0 or place == self.place(min(durations_ns)):
            self.counts[place] += len(durations_ns)
            self.sum_ns += sum(durations_ns)
            return
        durations_ns.sort()
        before = 0
        for place, bound_ns in enumerate(self.bounds_ns):
            if before == len(durations_ns):
                break
            upto = bisect_right(durations_ns, bound_ns)
            self.counts[place] += upto - before
            before = upto
        self.counts[-1] += len(durations_ns) - before
        self.sum_ns += sum(durations_ns)

    def attach(self, place: int, exemplar: Exemplar) -> None:
        """Name the latest run of a bucket."""
        if self.exemplars is None:
            self.exemplars = {}
        self.exemplars[place] = exemplar

    def read(self) -> list[float]:
        """Answer the counts by bucket, then the sum in ns."""
        return [*self.counts, self.sum_ns]


Cell = Number | Histogram


def _new_cell(metric: Metric) -> Cell:
    return Histogram(metric) if metric.kind is Kind.HISTOGRAM else Number()


class Rise(msgspec.Struct, frozen=True, array_like=True):
    """What a series rose by since it was last told; of a gauge, what it is now."""

    name: str
    labels: Labels
    values: list[float]
    exemplars: dict[int, Exemplar] | None = None


class Sheet:
    """The cells of one thread."""

    def __init__(self, bounds: LabelBounds) -> None:
        self.bounds = bounds
        self.cells: dict[tuple[str, Labels], Cell] = {}
        self._series: dict[str, int] = {}
        self._told: dict[tuple[str, Labels], list[float]] = {}

    def number(self, metric: Metric, *values: str) -> Number:
        """Answer the cell of a counter or gauge; keep it where you count often."""
        found = self.cell(metric, values)
        assert isinstance(found, Number)
        return found

    def histogram(self, metric: Metric, *values: str) -> Histogram:
        """Answer the cell of a histogram; keep it where you count often."""
        found = self.cell(metric, values)
        assert isinstance(found, Histogram)
        return found

    def cell(self, metric: Metric, values: Labels) -> Cell:
        """Answer the cell of a series, made where it is not there, within the bounds on labels and series."""
        return self.cells[self._key(metric, values)]

    def _key(self, metric: Metric, values: Labels) -> tuple[str, Labels]:
        """Answer where a series is counted, and see to it that there is a cell."""
        key = (metric.name, self._bounded(metric, values))
        if key in self.cells:
            return key
        count = self._series.get(metric.name, 0)
        if count >= (HISTOGRAMS_MAX if metric.kind is Kind.HISTOGRAM else SERIES_MAX):
            key = (metric.name, (OTHER,) * len(metric.labels))
        if key not in self.cells:
            self._series[metric.name] = count + 1
            self.cells[key] = _new_cell(metric)
        return key

    def _bounded(self, metric: Metric, values: Labels) -> Labels:
        return tuple(self._bound(label, value) for label, value in zip(metric.labels, values, strict=True))

    def _bound(self, label: str, value: str) -> str:
        match label:
            case "job_type":
                return self.bounds.job_type(value)
            case "queue":
                return self.bounds.queue(value)
        return value

    def rises(self) -> list[Rise]:
        """Answer what rose since this was last asked. Gauges do not rise: see `Meters.rises`."""
        found = []
        for key, cell in list(self.cells.items()):
            if METRICS[key[0]].kind is Kind.GAUGE:
                continue
            now = cell.read()
            before = self._told.get(key)
            if now == before:
                continue
            self._told[key] = now
            values = now if before is None else [a - b for a, b in zip(now, before, strict=True)]
            exemplars = None
            if isinstance(cell, Histogram):
                exemplars, cell.exemplars = cell.exemplars, None
            found.append(Rise(*key, values, exemplars))
        return found

    def add(self, rises: Iterable[Rise]) -> None:
        """Add what another sheet told: it rises here as it did there; a gauge is set."""
        for rise in rises:
            metric = METRICS.get(rise.name)
            if metric is None or len(metric.labels) != len(rise.labels):
                continue  # of another version
            cell = self.cell(metric, rise.labels)
            if isinstance(cell, Number):
                cell.value = rise.values[0] if metric.kind is Kind.GAUGE else cell.value + rise.values[0]
                continue
            *counts, sum_ns = rise.values
            if len(counts) == len(cell.counts):
                cell.counts = [a + int(b) for a, b in zip(cell.counts, counts, strict=True)]
                cell.sum_ns += int(sum_ns)
                for place, exemplar in (rise.exemplars or {}).items():
                    cell.attach(place, exemplar)

    def take_in(self, other: Sheet) -> None:
        """Take over the cells of a sheet that ends, told or not."""
        self.add(
            Rise(*key, cell.read(), cell.exemplars if isinstance(cell, Histogram) else None)
            for key, cell in other.cells.items()
        )
        for (name, labels), told in other._told.items():
            key = self._key(METRICS[name], labels)
            before = self._told.get(key)
            self._told[key] = told if before is None else [a + b for a, b in zip(before, told, strict=True)]

    def drop_gauges(self) -> None:
        """Forget what stands now and will be no more: of a process that ended. What was counted stays."""
        for key in [key for key in self.cells if METRICS[key[0]].kind is Kind.GAUGE]:
            del self.cells[key]


class Meters:
    """All that a process counts."""

    def __init__(self, bounds: LabelBounds | None = None) -> None:
        self.bounds = bounds if bounds is not None else LabelBounds()
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        self._guard = Lock()
        #: Whether the store takes what this process writes.
        self.writing = Writing()
        self._told_gauges: dict[tuple[str, Labels], float] = {}
        self._shared = Sheet(self.bounds)  # written under the guard: what has ended, and what any thread counts
        self._sheets: list[Sheet] = [self._shared]

    def forget_parent(self) -> None:
        """Begin at 0 in a forked child: what was counted before is its parent's to tell, and so is the lock."""
        self._begin()

    def sheet(self) -> Sheet:
        """Make a sheet for one thread, or for one other process."""
        sheet = Sheet(self.bounds)
        with self._guard:
            self._sheets.append(sheet)
        return sheet

    def count(self, metric: Metric, *values: str, by: float = 1) -> None:
        """Count what is rare, from any thread."""
        with self._guard:
            self._shared.number(metric, *values).value += by

    def fold(self, sheet: Sheet) -> None:
        """Take a sheet that nobody writes to any more into another one, so that sheets do not pile up."""
        with self._guard:
            if sheet is self._shared or sheet not in self._sheets:
                return
            sheet.drop_gauges()
            self._sheets.remove(sheet)
            self._shared.take_in(sheet)

    def rises(self) -> list[Rise]:
        """Answer what rose on any sheet since this was last asked; of a gauge that is another one, the sum of now."""
        with self._guard:
            found = [rise for sheet in self._sheets for rise in sheet.rises()]
            gauges = dict.fromkeys(self._told_gauges, 0.0)
            for sheet in self._sheets:
                for key, cell in list(sheet.cells.items()):
                    if isinstance(cell, Number) and METRICS[key[0]].kind is Kind.GAUGE:
                        gauges[key] = gauges.get(key, 0.0) + cell.value
        found += [Rise(*key, [value]) for key, value in gauges.items() if self._told_gauges.get(key) != value]
        self._told_gauges = gauges
        return found

    def read(self) -> Iterator[tuple[Metric, Labels, Cell]]:
        """Answer every series, added up over the sheets, by name. From any thread."""
        total = Sheet(self.bounds)
        with self._guard:
            for sheet in self._sheets:
                for (name, labels), cell in list(sheet.cells.items()):
                    _add(total.cell(METRICS[name], labels), cell)
        for name, labels in sorted(total.cells):
            yield METRICS[name], labels, total.cells[name, labels]


def _add(total: Cell, cell: Cell) -> None:
    if isinstance(total, Number) and isinstance(cell, Number):
        total.value += cell.value
    elif isinstance(total, Histogram) and isinstance(cell, Histogram):
        total.counts = [a + b for a, b in zip(total.counts, cell.counts, strict=True)]
        total.sum_ns += cell.sum_ns
        for place, exemplar in list((cell.exemplars or {}).items()):
            total.attach(place, exemplar)


_all: weakref.WeakSet[Meters] = weakref.WeakSet()


def _forget_parent() -> None:
    for meters in _all:
        meters.forget_parent()


os.register_at_fork(after_in_child=_forget_parent)
