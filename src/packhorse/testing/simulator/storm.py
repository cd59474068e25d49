"""The faults of a world: which kinds strike, when and how hard, all drawn from the seed.

Each seed enables some kinds and leaves others out, so that rare combinations get seeds of their own; one seed
in twelve has no fault at all, and then nothing may lapse.
"""

from __future__ import annotations

import msgspec

from ...chance import Chance
from .loop import US_PER_MS
from .machine import Machine
from .network import Ambush, Network, Weather

KINDS = ("freeze", "suspend", "crash", "jump", "partition", "mute", "stop", "server", "gale", "bells", "ambush")
#: What may lie in wait for a call, and for which calls: a fault at the worst instant, not at any.
_AMBUSHERS = ("freeze", "suspend", "crash", "stop", "stop", "server", "partition")
_AMBUSHED = ("claim", "claim", "settle", "heartbeat", "retire", "tick", "enqueue", "fire")


class Storm(msgspec.Struct):
    """What one seed has in store."""

    duration_ms: int
    slow_ms_max: int  # no call is delayed by more
    strikes: list[tuple[int, str]]  # (at ms, kind)
    weather: Weather

    @property
    def over_ms(self) -> int:
        """When the last delayed call has arrived, too."""
        return self.duration_ms + self.slow_ms_max + 1_500


def draw_storm(chance: Chance, lease_ms: int) -> Storm:
    """Draw the faults of one seed."""
    duration_ms = 4_000 + chance.below(10_000)
    slow_ms_max = lease_ms * 2
    fate = chance.uniform(0.0, 1.0)
    if fate < 0.08:
        return Storm(duration_ms=duration_ms, slow_ms_max=slow_ms_max, strikes=[], weather=Weather())
    one_kind = fate < 0.3
    enabled = [chance.choice(KINDS)] if one_kind else [kind for kind in KINDS if chance.happens(0.4)]
    strikes = []
    for kind in enabled:
        for _ in range(1 + chance.below(6)):
            strikes.append((chance.below(duration_ms), kind))
    fair = one_kind and chance.happens(0.7)
    weather = Weather() if fair else _draw_weather(chance, slow_ms_max)
    return Storm(duration_ms=duration_ms, slow_ms_max=slow_ms_max, strikes=sorted(strikes), weather=weather)


def _draw_weather(chance: Chance, slow_ms_max: int) -> Weather:
    return Weather(
        request_lost=chance.choice((0.0, 0.0, 0.02, 0.1)),
        reply_lost=chance.choice((0.0, 0.0, 0.02, 0.1)),
        slow=chance.choice((0.0, 0.0, 0.03, 0.15)),
        slow_ms_max=slow_ms_max,
        latency_us_max=chance.choice((500, 4_000, 40_000)),
        bell_missed=chance.choice((0.0, 0.0, 0.3, 1.0)),
        bell_late=chance.choice((0.0, 0.3)),
        bell_late_ms_max=chance.choice((50, 1_500)),
    )


class Striker:
    """Lets a storm loose on the machines, and calms it."""

    def __init__(self, storm: Storm, machines: list[Machine], network: Network, chance: Chance, lease_ms: int) -> None:
        self._storm = storm
        self._machines = machines
        self._network = network
        self._chance = chance
        self._lease_ms = lease_ms
        self._over = False

    def begin(self) -> None:
        """Let it loose."""
        loop = self._network.loop
        self._network.weather = msgspec.structs.replace(self._storm.weather)
        for at_ms, kind in self._storm.strikes:
            loop.call_in(at_ms * US_PER_MS, self._strike, kind)
        loop.call_in(self._storm.duration_ms * US_PER_MS, self._end)

    def _end(self) -> None:
        """Stop striking. Freezes and partitions under way end by themselves; dead machines are started."""
        self._over = True
        weather = self._network.weather  # bells are hints and stay as bad as they were
        self._network.weather = Weather(
            bell_missed=weather.bell_missed, bell_late=weather.bell_late, bell_late_ms_max=weather.bell_late_ms_max
        )
        for machine in self._machines:
            machine.start()

    def _strike(self, kind: str) -> None:
        machine = self._chance.choice(self._machines)
        self._network.count(kind)
        self._network.say("storm", f"{kind} {machine.name}")
        getattr(self, f"_{kind}")(machine)

    def _ambush(self, machine: Machine) -> None:
        life, kind = machine.life, self._chance.choice(_AMBUSHERS)
        if life is None:
            return
        verb, phase = self._chance.choice(_AMBUSHED), self._chance.choice(("sent", "done"))
        if verb == "retire":  # it comes when the machine is told to stop
            self._later(self._chance.below(500), self._stop, machine)
        self._network.lie_in_wait(Ambush(life.backend, verb, phase, lambda: self._pounce(machine, kind)))

    def _pounce(self, machine: Machine, kind: str) -> None:
        if not self._over:
            self._network.say("storm", f"{kind} {machine.name} from an ambush")
            getattr(self, f"_{kind}")(machine)

    def _later(self, ms: int, action: object, *args: object) -> None:
        self._network.loop.call_in(ms * US_PER_MS, action, *args)  # type: ignore[arg-type]  # a bound method

    def _freeze_ms(self) -> int:
        """Answer a time between a few ms and three leases: short ones find races, long ones lose leases."""
        if self._chance.happens(0.3):
            return 1 + self._chance.below(300)
        return self._lease_ms // 10 + self._chance.below(self._lease_ms * 3)

    def _freeze(self, machine: Machine) -> None:
        machine.freeze(self._freeze_ms(), suspend=False)

    def _suspend(self, machine: Machine) -> None:
        machine.freeze(self._freeze_ms(), suspend=True)

    def _crash(self, machine: Machine) -> None:
        machine.crash()
        self._later(self._chance.choice((1, 200, self._lease_ms + 500)), machine.start)

    def _jump(self, machine: Machine) -> None:
        machine.clock.offset_ms += self._chance.choice((-3_600_000, -5_000, 5_000, 3_600_000))

    def _stop(self, machine: Machine) -> None:
        machine.stop(self._chance.choice((0, 300, 3_000)))
        self._later(self._lease_ms + self._chance.below(4_000), machine.start)

    def _partition(self, machine: Machine) -> None:
        life = machine.life
        if life is None:
            return
        wire = life.backend
        sides = self._chance.below(3)
        wire.cut_requests, wire.cut_replies = sides != 1, sides != 0
        ms = 100 + self._chance.below(self._lease_ms * 2)
        wire.excuse(self._network.loop.local_us() + (ms + 1_500) * US_PER_MS)
        self._later(ms, wire.heal)

    def _mute(self, machine: Machine) -> None:
        """Lose one kind of call for a while: a lock on one table, a proxy with an opinion."""
        life = machine.life
        if life is None:
            return
        wire, verb = life.backend, self._chance.choice(("claim", "heartbeat", "heartbeat", "settle", "tick", "fire"))
        wire.muted.add(verb)
        ms = 300 + self._chance.below(self._lease_ms * 2)
        wire.excuse(self._network.loop.local_us() + (ms + 1_500) * US_PER_MS)
        self._later(ms, wire.muted.discard, verb)

    def _server(self, machine: Machine) -> None:
        self._network.restart_server()

    def _gale(self, machine: Machine) -> None:
        before = self._network.weather
        self._network.weather = msgspec.structs.replace(
            before, request_lost=0.3, reply_lost=0.3, slow=0.3, slow_ms_max=self._storm.slow_ms_max
        )
        self._later(300 + self._chance.below(2_000), self._ease, before)

    def _ease(self, weather: Weather) -> None:
        if not self._over:
            self._network.weather = weather

    def _bells(self, machine: Machine) -> None:
        if machine.life is not None:
            machine.life.loop.call_soon(machine.life.backend.bells.ring_all)
