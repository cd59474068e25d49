"""Where the time of a drained job goes: the hot path under cProfile. Usage: python bench/profile_drain.py [URL] [JOBS]

The profiler costs several times the work it measures: read the shares, not the times. `packhorse bench` measures speed.
"""

import asyncio
import cProfile
import pstats
import sys
import tempfile
from pathlib import Path

import msgspec

from packhorse.benchmark import measures
from packhorse.benchmark.tasks import app
from packhorse.event_loop import new_event_loop
from packhorse.worker.local import LocalWorker


async def drain(jobs: int, profile: cProfile.Profile) -> None:
    await measures.enqueue_bulk(jobs)
    profile.enable()
    await LocalWorker(app, burst=True).run()
    profile.disable()
    await app.aclose()


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        url = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{Path(directory) / 'jobs.db'}"
        jobs = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
        app.settings = msgspec.structs.replace(app.settings, url=url)
        profile = cProfile.Profile()
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(drain(jobs, profile))
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
