"""What all test folders share: the servers, who says how much time there was, and examples that stay the same."""

import signal

from hypothesis import HealthCheck, settings

from .servers import (  # noqa: F401  # pytest finds fixtures by their name in here
    database_of_this_run,
    postgres_database,
    postgres_server,
    postgres_url,
    prefix_of_this_run,
    private,
    redis_server,
    redis_url,
)
from .witness import witness  # noqa: F401

# What a machine that stands still, or another day's examples, would make fail.
settings.register_profile(
    "packhorse", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("packhorse")

# In the background of a shell we ignore Ctrl+C, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
