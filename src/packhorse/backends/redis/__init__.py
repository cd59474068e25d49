"""Jobs on Redis or Valkey, 6.2 or newer: `redis://host/0`, with `rediss`, `+sentinel`, `+cluster` and `valkey`.

`location.py` reads the URL, `link.py` talks to the server, `scripts.py` puts a verb's script together from `lua/`,
`records.py` packs and reads jobs, `wake.py` rings bells; decision 16 says why.
"""

from __future__ import annotations

from .backend import RedisBackend

__all__ = ["RedisBackend"]
