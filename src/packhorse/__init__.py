"""packhorse: a job queue that starts with no server and keeps the same promise on every backend."""

from __future__ import annotations

__version__ = "0.1.0"
