"""Help for tests of code that uses packhorse, and of backends made for it.

`inline`, `stored`, `drain`, `jobs`, `assert_enqueued`: for tests of an application. `ManualClock`: time to advance.
`packhorse.testing.conformance`: every rule of the backend contract, for authors of backends; `testing.machine`
drives it at random against a model. `packhorse.testing.simulator`: the worker under seeded faults in virtual time.
"""

from __future__ import annotations

from ..clock import ManualClock
from .inline import adrain, ajobs, assert_enqueued, drain, inline, jobs, stored

__all__ = ["ManualClock", "adrain", "ajobs", "assert_enqueued", "drain", "inline", "jobs", "stored"]
