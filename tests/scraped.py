"""What a scrape answered, read by prometheus_client's own parsers: whatever they refuse fails the test."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


class Scraped:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.is_openmetrics = text.endswith("# EOF\n")
        parse = openmetrics.text_string_to_metric_families if self.is_openmetrics else text_string_to_metric_families
        self.families = {family.name: family for family in parse(text)}
        self.series = [sample for family in self.families.values() for sample in family.samples]

    def samples(self, name: str, **labels: str) -> Iterator[Sample]:
        """The samples of this name that have these labels, and perhaps more."""
        for sample in self.series:
            if sample.name == name and all(sample.labels.get(key) == value for key, value in labels.items()):
                yield sample

    def total(self, name: str, **labels: str) -> float:
        """The sum of them, as `sum(name{labels})` asks for it; 0 where there are none."""
        return sum(sample.value for sample in self.samples(name, **labels))

    def has(self, name: str, **labels: str) -> bool:
        """Whether there are any."""
        return any(True for _ in self.samples(name, **labels))

    def values(self, name: str, label: str) -> set[str]:
        """The values of a label of them."""
        return {sample.labels[label] for sample in self.samples(name)}
