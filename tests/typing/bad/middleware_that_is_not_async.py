from collections.abc import Awaitable, Callable
from typing import Any

from packhorse import Context, Packhorse

app = Packhorse("memory://")


@app.middleware  # error: arg-type
def timing(ctx: Context, call_next: Callable[[], Awaitable[Any]]) -> int:
    return 1
