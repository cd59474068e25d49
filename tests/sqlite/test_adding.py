"""Rows are written as wide as a batch needs, and in its order."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from packhorse.job import JobSpec

from .helpers import new, opened, run

TRACED = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
KINDS = {
    "p": {},
    "m": {"meta": TRACED},
    "f": {"key": "customer-1", "tags": ("a", "b"), "meta": {"region": "eu"}},
    "w": {"workflow": "0199-workflow"},
}


@pytest.mark.parametrize(
    "batch", ["pppp", "ppmpp", "mmm", "pmfmp", "fpm", "pwpmf", "p" * 300 + "m" + "p" * 300 + "f" + "m"]
)
def test_jobs_of_all_kinds_are_stored_in_the_order_of_their_batch(batch: str, tmp_path: Path) -> None:
    specs: list[JobSpec] = [
        msgspec.structs.replace(spec, **KINDS[kind]) for spec, kind in zip(new(len(batch)), batch, strict=True)
    ]

    async def main() -> None:
        async with opened(tmp_path / "jobs.db") as backend:
            await backend.enqueue(specs)
            claimed = await backend.claim(["default"], len(batch), 30_000, "w")
            assert [job.id for job in claimed] == [spec.id for spec in specs]
            for job, spec in zip(claimed, specs, strict=True):
                assert (job.meta, job.key, tuple(job.tags), job.workflow) == (
                    spec.meta,
                    spec.key,
                    tuple(spec.tags),
                    spec.workflow,
                )

    run(main())
