"""Between the workers and the store: a network that delays, loses, reorders and tells nobody.

A `Wire` is one process's connection and looks like any backend. A call travels to the store, is done
there in one step, and its answer travels back; each leg has its own delay, so calls made at the same time
overtake each other. A lost request was never done; a lost reply was done, and the caller cannot know. A slow
one may be done long after its caller gave up or died.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from types import coroutine
from typing import Any

import msgspec

from ...backends.base import (
    Backend,
    Changes,
    Enqueued,
    Firing,
    Keep,
    Lapse,
    Limit,
    Note,
    Page,
    Pulse,
    Query,
    QueueChange,
    QueueCounts,
    Rerun,
    Schedule,
    ScheduleChange,
    Settlement,
    Steered,
    Ticked,
    Verdict,
    WorkerInfo,
    WorkflowCounts,
)
from ...backends.bells import Bell, Bells
from ...backends.memory import MemoryBackend
from ...chance import Chance
from ...errors import PackhorseError, Unavailable, Unsupported
from ...job import Claimed, JobRecord, JobSpec
from .loop import US_PER_MS, SimLoop

#: A client waits this long for an answer (DESIGN section 5, rule 7: every call has a time-out).
CALL_TIMEOUT_MS = 1_000
#: A delay of more than this counts as a fault that may cost a worker its lease.
_SLOW_US = 250 * US_PER_MS


class Weather(msgspec.Struct):
    """How bad the network is now: likelihoods for each call, and bounds of its delays."""

    request_lost: float = 0.0
    reply_lost: float = 0.0
    slow: float = 0.0
    slow_ms_max: int = 0
    latency_us_max: int = 4_000
    bell_missed: float = 0.0
    bell_late: float = 0.0
    bell_late_ms_max: int = 0


@coroutine
def pause(ms: int) -> Generator[int, None, None]:
    """Let others in, `ms` from now: only for stores that are broken on purpose, since every verb is atomic."""
    yield ms


class Call:
    """One call on its way."""

    __slots__ = ("args", "epoch", "lost_reply", "reply", "verb", "wire")

    def __init__(self, wire: Wire, verb: str, args: tuple[Any, ...], reply: asyncio.Future[Any], epoch: int) -> None:
        self.wire = wire
        self.verb = verb
        self.args = args
        self.reply = reply
        self.epoch = epoch
        self.lost_reply = False


class Ambush(msgspec.Struct, frozen=True):
    """A fault that strikes at one point of one call: when a process has sent it, or when the store has done it."""

    wire: Wire | None  # None: whoever makes the call
    verb: str
    phase: str  # "sent" or "done"
    strike: Callable[[], object]


#: Told of every call that was done: verb, arguments, answer or the error it was refused with, and who called.
Witness = Callable[["Wire", str, tuple[Any, ...], Any], None]


class Network:
    """All wires, and the server at their end. Lives on the world's loop, which never fails."""

    def __init__(
        self, loop: SimLoop, server: MemoryBackend, chance: Chance, witness: Witness, say: Callable[[str, str], None]
    ) -> None:
        self.loop = loop
        self.weather = Weather()
        self.wires: list[Wire] = []
        self.faults: dict[str, int] = {}
        #: Told of what is too small for the trace, and still must repeat itself.
        self.note: Callable[[str], None] = lambda text: None
        self._server = server
        self._chance = chance
        self.say = say
        self._witness = witness
        self._epoch = 0
        self._ambushes: list[Ambush] = []
        server.store.bells = _Relay(self)

    def connect(self, loop: SimLoop) -> Wire:
        """Open a connection for the process of `loop`."""
        wire = Wire(self, loop)
        self.wires.append(wire)
        return wire

    def disconnect(self, wire: Wire) -> None:
        """Forget a connection whose process ended. What it sent is still on its way."""
        self.wires.remove(wire)

    def restart_server(self) -> None:
        """Break every connection: calls on their way are lost, answers too. What was done stays done."""
        self._epoch += 1
        on_crash = getattr(self._server, "on_crash", None)
        if on_crash is not None:
            on_crash()
        for wire in self.wires:
            wire.excuse(self.loop.local_us() + CALL_TIMEOUT_MS * US_PER_MS)

    def lie_in_wait(self, ambush: Ambush) -> None:
        """Strike at the next such call."""
        self._ambushes.append(ambush)

    def _spring(self, call: Call, phase: str) -> None:
        for ambush in self._ambushes:
            if ambush.wire in (call.wire, None) and ambush.verb == call.verb and ambush.phase == phase:
                self._ambushes.remove(ambush)
                self.count(f"ambush: {call.verb} {phase}" if ambush.wire is not None else f"waylaid: {call.verb}")
                ambush.strike()
                return

    def count(self, fault: str) -> None:
        """Note that a fault struck."""
        self.faults[fault] = self.faults.get(fault, 0) + 1

    # ---- the way there ---------------------------------------------------------------------------------

    def send(self, call: Call) -> None:
        """Put a call on its way."""
        wire, weather, chance = call.wire, self.weather, self._chance
        fate = chance.uniform(0.0, 1.0)
        lost = wire.cut_requests or call.verb in wire.muted or fate < weather.request_lost
        call.lost_reply = wire.cut_replies or weather.request_lost <= fate < weather.request_lost + weather.reply_lost
        delay_us = self._delay_us(wire)
        if lost or call.lost_reply:
            self.count("request lost" if lost else "reply lost")
            now_us = self.loop.local_us()
            wire.excuse(now_us + delay_us + CALL_TIMEOUT_MS * US_PER_MS, stop_until_us=now_us + delay_us)
        self.note(f"{wire.loop.name} {call.verb} {delay_us}")
        if self._ambushes:
            self._spring(call, "sent")
        if not lost:
            self.loop.call_in(delay_us, self._arrive, call)
        elif chance.happens(0.5):  # refused at once; otherwise nothing is heard and the caller times out
            self.loop.call_in(delay_us, self._answer, call, None, _unavailable("connection refused"))

    def _delay_us(self, wire: Wire) -> int:
        weather, chance = self.weather, self._chance
        if weather.slow and chance.happens(weather.slow):
            delay_us = chance.below(weather.slow_ms_max * US_PER_MS)
            if delay_us > _SLOW_US:
                self.count("slow call")
                wire.excuse(self.loop.local_us() + delay_us)
            return delay_us
        return 100 + chance.below(weather.latency_us_max)

    def _arrive(self, call: Call) -> None:
        if call.epoch == self._epoch:
            self._step(call, getattr(self._server, call.verb)(*call.args))

    def _step(self, call: Call, work: Coroutine[Any, Any, Any]) -> None:
        """Do a call. A correct store does it in one step; a broken one may pause in between."""
        try:
            pause_ms = work.send(None)
        except StopIteration as stop:
            self._done(call, stop.value, None)
        except PackhorseError as error:
            self._done(call, None, error)
        else:
            self.loop.call_in(pause_ms * US_PER_MS, self._step, call, work)

    def _done(self, call: Call, answer: Any, error: PackhorseError | None) -> None:
        self._witness(call.wire, call.verb, call.args, answer if error is None else error)
        if self._ambushes and error is None:
            self._spring(call, "done")
        if call.lost_reply:
            if self._chance.happens(0.5):
                self.loop.call_in(self._delay_us(call.wire), self._answer, call, None, _unavailable("connection reset"))
            return
        self.loop.call_in(self._delay_us(call.wire), self._answer, call, answer, error)

    # ---- the way back ----------------------------------------------------------------------------------

    def _answer(self, call: Call, answer: Any, error: PackhorseError | None) -> None:
        if call.epoch != self._epoch:
            answer, error = None, _unavailable("connection reset")
        call.wire.loop.call_soon(_resolve, call.reply, answer, error)  # a dead process hears nothing

    def new_call(self, wire: Wire, verb: str, args: tuple[Any, ...], reply: asyncio.Future[Any]) -> Call:
        """Make a call on the connections of now."""
        return Call(wire, verb, args, reply, self._epoch)

    def ring(self, topics: Sequence[str]) -> None:
        """Carry a ring to every process that listens; some come late, some never."""
        weather, chance = self.weather, self._chance
        for wire in self.wires:
            heard = wire.bells.heard(topics)
            if not heard or wire.cut_replies:
                continue
            if weather.bell_missed and chance.happens(weather.bell_missed):
                self.count("bell missed")
                continue
            delay_us = 100 + chance.below(weather.latency_us_max)
            if weather.bell_late and chance.happens(weather.bell_late):
                delay_us += chance.below(weather.bell_late_ms_max * US_PER_MS)
            self.loop.call_in(delay_us, wire.loop.call_soon, wire.bells.ring, heard)


def _resolve(reply: asyncio.Future[Any], answer: Any, error: PackhorseError | None) -> None:
    if reply.done():
        return  # the caller gave up
    if error is not None:
        reply.set_exception(error)
    else:
        reply.set_result(answer)


def _give_up(reply: asyncio.Future[Any]) -> None:
    if not reply.done():
        reply.set_exception(_unavailable("no answer in time"))


def _unavailable(why: str) -> Unavailable:
    return Unavailable(f"simulated: {why}")


class _Relay(Bells):
    """The store's bells: every ring goes out by the network."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._network = network

    def ring(self, topics: Iterable[str]) -> None:
        self._network.ring(sorted(set(topics)))


class _Ears(Bells):
    """The bells of one process."""

    def heard(self, topics: Sequence[str]) -> list[str]:
        """Answer which of `topics` somebody listens to."""
        by_topic = self._by_topic
        return [topic for topic in topics if topic in by_topic]


class Wire(Backend):
    """One process's connection to the store."""

    capabilities = MemoryBackend.capabilities

    def __init__(self, network: Network, loop: SimLoop) -> None:
        self.loop = loop
        self.bells = _Ears()
        #: A partition: what is sent is lost, or what is answered, or both.
        self.cut_requests = False
        self.cut_replies = False
        #: Calls of these verbs are lost.
        self.muted: set[str] = set()
        #: Until then a fault explains that leases of this process lapse, kernel µs.
        self.excused_until_us = -1
        #: A stop that was asked for by then need not go in good order.
        self.stop_excused_until_us = -1
        self._network = network

    def excuse(self, until_us: int, stop_until_us: int | None = None) -> None:
        """Note that a fault may keep this process from renewing its lease until then, and from stopping in order."""
        self.excused_until_us = max(self.excused_until_us, until_us)
        stop_until_us = until_us if stop_until_us is None else stop_until_us
        self.stop_excused_until_us = max(self.stop_excused_until_us, stop_until_us)

    def waylay(self, verb: str) -> asyncio.Future[None]:
        """Answer what is done as soon as anybody sends such a call: now is the worst instant for something else."""
        sent: asyncio.Future[None] = self.loop.create_future()
        self._network.lie_in_wait(Ambush(None, verb, "sent", lambda: self.loop.call_soon(_resolve, sent, None, None)))
        return sent

    def heal(self) -> None:
        """End a partition."""
        self.cut_requests = self.cut_replies = False

    async def _call(self, verb: str, *args: Any) -> Any:
        reply: asyncio.Future[Any] = self.loop.create_future()
        timer = self.loop.call_in(CALL_TIMEOUT_MS * US_PER_MS, _give_up, reply)
        self._network.send(self._network.new_call(self, verb, args, reply))
        try:
            return await reply
        finally:
            timer.cancel()

    async def open(self) -> None:
        """Nothing: every call finds its own way."""

    async def close(self) -> None:
        """Nothing: the process's end is the connection's."""

    def watch(self, topics: Sequence[str]) -> Bell:
        return self.bells.watch(topics)

    async def enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        answers: list[Enqueued] = await self._call("enqueue", list(specs))
        return answers

    async def claim(self, queues: Sequence[str], limit: int, lease_ms: int, worker: str) -> list[Claimed]:
        jobs: list[Claimed] = await self._call("claim", tuple(queues), limit, lease_ms, worker)
        return jobs

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        verdicts: list[Verdict] = await self._call("settle", list(settlements))
        return verdicts

    async def heartbeat(self, worker: WorkerInfo, lease_ms: int, notes: Sequence[Note] = ()) -> Pulse:
        pulse: Pulse = await self._call("heartbeat", msgspec.structs.replace(worker), lease_ms, list(notes))
        return pulse

    async def retire(self, worker: str, reason: str) -> list[Lapse]:
        lapses: list[Lapse] = await self._call("retire", worker, reason)
        return lapses

    async def tick(self, limit: int, keep: Keep) -> Ticked:
        ticked: Ticked = await self._call("tick", limit, keep)
        return ticked

    async def fire(self, firings: Sequence[Firing]) -> list[Verdict]:
        verdicts: list[Verdict] = await self._call("fire", list(firings))
        return verdicts

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        records: list[JobRecord | None] = await self._call("get", list(ids))
        return records

    async def find(self, query: Query) -> Page:
        page: Page = await self._call("find", query)
        return page

    async def counts(self) -> dict[str, QueueCounts]:
        counts: dict[str, QueueCounts] = await self._call("counts")
        return counts

    async def workers(self) -> list[WorkerInfo]:
        workers: list[WorkerInfo] = await self._call("workers")
        return workers

    async def workflows(self, limit: int = 100, before: str | None = None) -> list[WorkflowCounts]:
        counts: list[WorkflowCounts] = await self._call("workflows", limit, before)
        return counts

    async def changes(self, cursor: str | None = None) -> Changes:
        found: Changes = await self._call("changes", cursor)
        return found

    async def cancel(self, ids: Sequence[str]) -> list[Steered]:
        answers: list[Steered] = await self._call("cancel", list(ids))
        return answers

    async def rerun(self, reruns: Sequence[Rerun]) -> list[Steered]:
        answers: list[Steered] = await self._call("rerun", list(reruns))
        return answers

    async def delete(self, ids: Sequence[str]) -> list[Steered]:
        answers: list[Steered] = await self._call("delete", list(ids))
        return answers

    async def queues(self, changes: Sequence[QueueChange] = ()) -> dict[str, QueueChange]:
        settings: dict[str, QueueChange] = await self._call("queues", list(changes))
        return settings

    async def limits(
        self, changes: Sequence[Limit] = (), *, about: tuple[str, str | None] | None = None
    ) -> list[Limit]:
        if about is not None:
            raise Unsupported("limits", "in the simulator nobody asks about one type")
        limits: list[Limit] = await self._call("limits", list(changes))
        return limits

    async def schedules(self, changes: Sequence[ScheduleChange] = ()) -> list[Schedule]:
        schedules: list[Schedule] = await self._call("schedules", list(changes))
        return schedules
