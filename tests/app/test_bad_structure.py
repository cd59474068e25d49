"""What cannot be: refused with what to do instead, and nothing half stored. On memory and on a real file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from packhorse import ConfigurationError, InvalidOption, Packhorse, UnknownParent, chain
from packhorse.errors import Refused


@pytest.fixture(params=["memory", "sqlite"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    url = f"memory://{tmp_path.name}" if request.param == "memory" else f"sqlite:///{tmp_path / 'a.db'}"
    with Packhorse(url) as app:

        @app.task
        def pack(n: int = 0) -> int:
            return n

        yield app


def two_in_a_cycle(app: Packhorse) -> None:
    first, second = app.spec("pack"), app.spec("pack")
    cycle = [replace(first, after=(second.id,)), replace(second, after=(first.id,))]
    app.enqueue_specs([app.spec("pack"), *cycle])


def a_cycle_by_name(app: Packhorse) -> None:
    flow = app.workflow()
    flow.add("a", app.spec("pack"), after="b")
    flow.add("b", app.spec("pack"), after="a")
    flow.enqueue()


def an_unknown_parent(app: Packhorse) -> None:
    app.enqueue_many([{"type": "pack"}, {"type": "pack", "after": "018f0000-0000-7000-8000-000000000000"}])


def too_many_parents(app: Packhorse) -> None:
    app.enqueue("pack", after=[f"parent-{number}" for number in range(10_001)])


def a_cron_line_of_a_megabyte(app: Packhorse) -> None:
    app.define_schedule("pack", name="huge", cron="0 " * 500_000)


def a_date_that_never_comes(app: Packhorse) -> None:
    app.define_schedule("pack", name="never", cron="0 0 30 2 *")


def a_rate_of_zero(app: Packhorse) -> None:
    app.set_limit("pack", rate="0/s")


def a_concurrency_of_zero(app: Packhorse) -> None:
    app.set_limit("pack", concurrency=0)


def a_task_with_a_rate_of_zero(app: Packhorse) -> None:
    app.task("other", rate="0/m")(lambda: None)


def a_node_named_twice(app: Packhorse) -> None:
    flow = app.workflow()
    flow.add("a", app.spec("pack"))
    flow.add("a", app.spec("pack"))
    flow.enqueue()


def an_empty_chain(app: Packhorse) -> None:
    app.workflow(chain()).enqueue()


def a_window_without_a_key(app: Packhorse) -> None:
    app.enqueue("pack", unique_for="1h")


def two_definitions_that_disagree(app: Packhorse) -> None:
    app.schedule("@daily", name="nightly")(app.tasks["pack"])
    app.schedule("@hourly", name="nightly")(app.tasks["pack"])


REFUSED: list[tuple[Callable[[Packhorse], None], type[Exception], str]] = [
    (two_in_a_cycle, InvalidOption, "leave out one"),
    (a_cycle_by_name, InvalidOption, "a → b → a|b → a → b"),
    (an_unknown_parent, UnknownParent, "enqueue the parents first"),
    (too_many_parents, InvalidOption, "10000"),
    (a_cron_line_of_a_megabyte, InvalidOption, "256"),
    (a_date_that_never_comes, InvalidOption, "write five fields"),
    (a_rate_of_zero, InvalidOption, "clear"),
    (a_concurrency_of_zero, InvalidOption, "clear|pause"),
    (a_task_with_a_rate_of_zero, InvalidOption, "leave|clear|pause"),
    (a_node_named_twice, InvalidOption, "name"),
    (an_empty_chain, InvalidOption, "job|empty"),
    (a_window_without_a_key, InvalidOption, "unique"),
    (two_definitions_that_disagree, ConfigurationError, "name"),
]


@pytest.mark.parametrize(("ask", "kind", "remedy"), REFUSED, ids=[ask.__name__ for ask, *_ in REFUSED])
def test_it_is_refused_with_the_remedy_and_nothing_is_stored(
    shop: Packhorse, ask: Callable[[Packhorse], None], kind: type[Exception], remedy: str
) -> None:
    with pytest.raises(kind, match=remedy) as caught:
        ask(shop)
    assert isinstance(caught.value, Refused | ConfigurationError)
    assert len(str(caught.value)) < 600  # a megabyte is not shown
    assert not any(counts.states for counts in shop.counts().values())
    assert shop.limits() == []
    assert shop.list_schedules() == []
