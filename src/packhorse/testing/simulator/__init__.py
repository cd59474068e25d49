"""The promise, tried out in worlds where everything goes wrong: virtual time, seeded order, seeded faults.

The real worker (claimer, runner, settler, heart, ticker) runs unchanged on the memory backend, on up to three
machines, while a storm delays and loses calls, freezes and kills processes and sets clocks, and an operator steers.
Besides plain jobs a world may have workflows, limits, fair keys, unique windows, capacities, schedules, durable steps
and short retention. A ledger beside the store checks every claim, start and end, and everything the store answers.
One number, the seed, decides everything: a seed that fails once fails always.

    python -m packhorse.testing.simulator --seeds 1000
    python -m packhorse.testing.simulator --seed 17 --trace
"""

from __future__ import annotations

from .ledger import Violation
from .network import pause
from .world import Report, World, run_seed

__all__ = ["Report", "Violation", "World", "pause", "run_seed"]
