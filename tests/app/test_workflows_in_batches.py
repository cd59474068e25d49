"""Workflows that take more than one call to store: whole in the end, or cancelled and said."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from packhorse import (
    JobSpec,
    Packhorse,
    QueueFull,
    State,
    Unavailable,
    Unsupported,
    chain,
    chord,
    group,
)
from packhorse.backends.base import Capabilities, Enqueued, QueueChange, Steered
from packhorse.backends.memory import MemoryBackend, MemoryStore
from packhorse.backends.opening import register_backend


class Shaky(MemoryBackend):
    """A backend whose enqueue fails at chosen calls."""

    def __init__(self, store: MemoryStore, plan: list[Exception | str | None]) -> None:
        super().__init__(store)
        self.plan = plan
        self.sizes: list[int] = []

    async def enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        fault = self.plan.pop(0) if self.plan else None
        self.sizes.append(len(specs))
        if isinstance(fault, Exception):
            raise fault
        answers = await super().enqueue(specs)
        if fault == "reply lost":
            raise Unavailable("no answer")
        return answers


def shaky(*plan: Exception | str | None) -> tuple[Packhorse, Shaky]:
    backend = Shaky(MemoryStore(), list(plan))
    register_backend("shaky", lambda url, clock: backend)
    app = Packhorse("shaky://", enqueue_timeout=0)
    return app, backend


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between tries are by chance; here they are nothing."""
    from packhorse.chance import Chance

    monkeypatch.setattr(Chance, "uniform", lambda self, low, high: 0.0)


@pytest.mark.parametrize("there", [0, 200])
def test_a_full_queue_takes_a_workflow_whole_or_not_at_all(there):
    """Beyond the capacity it is refused at once; where others take the room, after the time-out."""
    shaky()
    with Packhorse("shaky://", enqueue_timeout="50ms") as app:

        async def limit() -> None:
            await (await app.backend()).queues([QueueChange(queue="default", capacity=500)])

        app.portal.call(limit())
        app.enqueue_many([{"type": "work"}] * there)
        wf = app.workflow(group(app.spec("work") for _ in range(400 if there else 600)))
        with pytest.raises(QueueFull):
            wf.enqueue()
        assert sum(sum(queue.states.values()) for queue in app.counts().values()) == there
        app.workflow(chain(*(app.spec("work") for _ in range(900)))).enqueue()  # its first job fits, the others wait


def test_cancel_starts_nothing_on_its_way():
    """Children before parents: none that goes on whatever happens is freed while the rest is still being cancelled."""
    app, backend = shaky()
    startable: list[int] = []
    cancel = backend.cancel

    async def cancelling(ids: Sequence[str]) -> list[Steered]:
        answers = await cancel(ids)
        startable.append(len(await backend.claim(["later"], 10, 1_000, "a quick worker")))
        return answers

    with app:
        wf = app.workflow()
        wf.add("top", app.spec("work"))
        wf.put(group(app.spec("work") for _ in range(1_100)))
        wf.add("always", app.spec("work", None, {"queue": "later"}), after="top", after_failed="continue")
        run = wf.enqueue()
        backend.cancel = cancelling  # type: ignore[method-assign]
        assert run.cancel() == {Steered.DONE: 1_102}
        assert startable == [0, 0]


def test_a_large_workflow_goes_in_batches_with_parents_first():
    app, backend = shaky()
    with app:
        run = app.workflow(chord([app.spec("work") for _ in range(2_500)], app.spec("end"))).enqueue()
        assert backend.sizes == [1000, 1000, 501]
        assert run.state == {State.PENDING: 2_500, State.WAITING: 1}
        assert run["end"].record().waiting_for == 2_500
        assert app.workflow_run(run.id).jobs == run.jobs


def test_a_lost_reply_is_asked_for_again():
    app, backend = shaky(None, "reply lost", Unavailable("away"))
    with app:
        run = app.workflow(chain(*(app.spec("work") for _ in range(1_500)))).enqueue()
        assert backend.sizes == [1000, 500, 500, 500]
        assert run.state == {State.PENDING: 1, State.WAITING: 1_499}


def test_what_cannot_be_stored_whole_is_cancelled():
    app, _ = shaky(None, QueueFull("default", 5))
    with app:
        wf = app.workflow(group(app.spec("work") for _ in range(1_500)))
        with pytest.raises(QueueFull) as caught:
            wf.enqueue()
        assert caught.value.__notes__ == [
            f"nothing of workflow {wf.id} is left to run: 1,000 jobs stored before are cancelled"
        ]
        assert app.workflow_run(wf.id).state == {State.CANCELLED: 1_000}


def test_what_cannot_be_cancelled_either_is_said():
    app, backend = shaky(None, *[Unavailable("away")] * 4)

    async def cancel(ids: Sequence[str]) -> list[Steered]:
        raise Unavailable("still away")

    backend.cancel = cancel  # type: ignore[method-assign]
    with app:
        wf = app.workflow(group(app.spec("work") for _ in range(1_500)))
        with pytest.raises(Unavailable) as caught:
            wf.enqueue()
        assert (
            "could not be cancelled (still away); cancel it with: packhorse workflows cancel"
            in caught.value.__notes__[0]
        )


def test_a_holder_of_a_key_stands_in_across_batches():
    app, _ = shaky()
    with app:
        holder = app.enqueue("work", unique="k")
        head = app.spec("work", None, {"unique": "k"})
        run = app.workflow(chord([head, *(app.spec("work") for _ in range(1_200))], app.spec("end"))).enqueue()
        assert holder.id in run["end"].record().after
        assert head.id not in run["end"].record().after


def test_a_backend_without_dependencies_says_so_before_anything_is_stored():
    app, backend = shaky()
    backend.capabilities = Capabilities(durable=False, shared=False)
    with app:
        with pytest.raises(Unsupported, match=r"ctx\.then"):
            app.workflow(chord([app.spec("work") for _ in range(1_500)], app.spec("end"))).enqueue()
        assert backend.sizes == []
        assert app.workflow(group(app.spec("work"))).enqueue().jobs
