"""The simulated network: what is lost, what is done all the same, and what comes late."""

from __future__ import annotations

import asyncio

import pytest

from packhorse.backends.memory import MemoryBackend, MemoryStore
from packhorse.chance import Chance
from packhorse.errors import Unavailable
from packhorse.job import JobSpec, State
from packhorse.testing.simulator.loop import US_PER_MS, US_PER_S, Kernel, SimLoop
from packhorse.testing.simulator.machine import SimClock
from packhorse.testing.simulator.network import CALL_TIMEOUT_MS, Ambush, Network, Weather


class Net:
    """A store, a network and one connection, in virtual time."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.witnessed: list[str] = []
        self.kernel = Kernel(Chance(1), lambda loop, text, error: self.errors.append(text))
        self.store = MemoryStore(SimClock(self.kernel))
        self.network = Network(
            SimLoop(self.kernel, "world"),
            MemoryBackend(self.store),
            Chance(2),
            lambda wire, verb, args, answer: self.witnessed.append(verb),
            lambda who, text: None,
        )
        self.loop = SimLoop(self.kernel, "client")
        self.wire = self.network.connect(self.loop)
        self.answers: list[object] = []

    def call(self, call) -> object:
        """Make a call and answer what came of it, an exception included."""
        self.begin(call)
        self.kernel.run(60 * US_PER_S + self.kernel.now_us)
        assert self.errors == []
        return self.answers[-1]

    def begin(self, call) -> None:
        async def run():
            try:
                self.answers.append(await call)
            except Unavailable as error:
                self.answers.append(error)

        self.loop.create_task(run())


@pytest.fixture
def net():
    net = Net()
    yield net
    net.kernel.dispose()


SPEC = JobSpec(id="018bcfe5-0000-7000-8000-000000000001", type="work")


def test_a_call_is_done_and_answered(net):
    answer = net.call(net.wire.enqueue([SPEC]))
    assert answer[0].created
    assert SPEC.id in net.store.jobs
    assert net.witnessed == ["enqueue"]
    assert 0 < net.kernel.now_us < CALL_TIMEOUT_MS * US_PER_MS


def test_a_lost_request_was_never_done(net):
    net.network.weather = Weather(request_lost=1.0)
    assert isinstance(net.call(net.wire.enqueue([SPEC])), Unavailable)
    assert net.store.jobs == {}


def test_a_lost_reply_was_done(net):
    net.network.weather = Weather(reply_lost=1.0)
    assert isinstance(net.call(net.wire.enqueue([SPEC])), Unavailable)
    assert net.store.jobs[SPEC.id].state is State.PENDING


def test_a_caller_gives_up_in_bounded_time_and_a_slow_call_is_done_later(net):
    net.network.weather = Weather(slow=1.0, slow_ms_max=30_000)
    net.begin(net.wire.enqueue([SPEC]))
    net.kernel.run((CALL_TIMEOUT_MS + 1) * US_PER_MS)
    assert isinstance(net.answers[0], Unavailable)
    assert net.store.jobs == {}
    net.kernel.run(60 * US_PER_S)
    assert SPEC.id in net.store.jobs
    assert len(net.answers) == 1


def test_a_partition_of_answers_only_lets_calls_be_done(net):
    net.wire.cut_replies = True
    assert isinstance(net.call(net.wire.enqueue([SPEC])), Unavailable)
    net.wire.heal()
    assert SPEC.id in net.store.jobs
    assert net.call(net.wire.enqueue([SPEC]))[0].created is False


def test_a_restart_of_the_server_loses_what_is_on_its_way_and_keeps_what_was_done(net):
    net.network.lie_in_wait(Ambush(net.wire, "enqueue", "done", net.network.restart_server))
    assert isinstance(net.call(net.wire.enqueue([SPEC])), Unavailable)
    assert SPEC.id in net.store.jobs
    net.network.lie_in_wait(Ambush(net.wire, "cancel", "sent", net.network.restart_server))
    assert isinstance(net.call(net.wire.cancel([SPEC.id])), Unavailable)
    assert net.store.jobs[SPEC.id].state is State.PENDING


def test_calls_made_at_the_same_time_overtake_each_other(net):
    net.network.weather = Weather(latency_us_max=40_000)
    order = []

    async def call(number: int) -> None:
        await net.wire.get([])
        order.append(number)

    for number in range(10):
        net.loop.create_task(call(number))
    net.kernel.run(US_PER_S)
    assert sorted(order) == list(range(10))
    assert order != sorted(order)


def test_the_call_of_a_killed_process_is_done_and_nobody_hears_of_it(net):
    net.begin(net.wire.enqueue([SPEC]))
    net.kernel.run(50)
    net.kernel.bury(net.loop)
    net.kernel.run(US_PER_S)
    assert SPEC.id in net.store.jobs
    assert net.answers == []


def test_a_frozen_process_finds_its_answer_when_it_thaws(net):
    net.begin(net.wire.enqueue([SPEC]))
    net.kernel.run(50)
    net.loop.freeze()
    net.network.loop.call_in(10 * US_PER_S, net.loop.thaw)
    net.kernel.run(60 * US_PER_S)
    assert net.answers[0][0].created


@pytest.mark.parametrize("missed", [0.0, 1.0])
def test_bells_ring_over_the_network_or_are_missed(net, missed):
    rung = []

    async def listen() -> None:
        with net.wire.watch(["queue:default"]) as bell:
            rung.append(await bell.wait(5_000))

    net.network.weather = Weather(bell_missed=missed)
    net.loop.create_task(listen())
    net.kernel.run(1)
    net.call(net.wire.enqueue([SPEC]))
    assert rung == [missed == 0.0]


def test_what_is_sent_does_not_change_on_its_way(net):
    from packhorse.backends.base import WorkerInfo

    info = WorkerInfo(id="w", busy=1)
    net.begin(net.wire.heartbeat(info, 1_000))
    net.kernel.run(50)
    info.busy = 2
    net.kernel.run(US_PER_S)
    assert net.store.workers["w"][0].busy == 1


def test_an_unused_coroutine_is_not_left_behind(net):
    async def cancelled() -> None:
        task = asyncio.get_running_loop().create_task(net.wire.enqueue([SPEC]))
        await asyncio.sleep(0)
        task.cancel()

    net.loop.create_task(cancelled())
    net.kernel.run(US_PER_S)
    assert SPEC.id in net.store.jobs  # cancelling leaves it done or not done; it was on its way
    assert net.errors == []
