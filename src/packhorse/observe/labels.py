"""Bounds on label values: whatever names strangers put into jobs, the number of series stays small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

#: A job type that no worker known here can run.
UNKNOWN = "unknown"
#: A queue that came when there were too many already.
OTHER = "other"
#: Types and queues that are told apart. Those that workers name come first, whatever else was there.
TYPES_MAX = 500
QUEUES_MAX = 200
#: How much of both workers may fill that are only heard of, all of them and those of one token: the rest is for code.
_HEARD_PART = 0.8
_TOKEN_PART = 0.2
#: Workers that are remembered with their token.
_OWNED_MAX = 10_000
#: Whoever holds a worker that came without a token: it reaches the store by itself.
_NOBODY = ""
#: Whoever holds a worker that may have been forgotten.
_SOMEBODY = "?"


class _Room:
    """Names that are told apart. What code names may fill it; what is heard of workers, parts of it."""

    def __init__(self, most: int) -> None:
        self.names: set[str] = set()
        self._most = most
        self._heard: Counter[str] = Counter()  # names by whose workers brought them

    def learn(self, names: Iterable[str]) -> None:
        for name in names:
            if len(self.names) >= self._most:
                return
            self.names.add(name)

    def hear(self, owner: str, names: Iterable[str]) -> None:
        of_owner = self._most * (_HEARD_PART if owner == _NOBODY else _TOKEN_PART)
        for name in names:
            if name in self.names:
                continue
            of_all = self._heard.total()
            if self._heard[owner] >= of_owner or of_all >= self._most * _HEARD_PART or len(self.names) >= self._most:
                return
            self._heard[owner] += 1
            self.names.add(name)


class LabelBounds:
    """Which types and queues are told apart in metrics.

    Types are those that a task or a live worker names. Queues are those that a worker takes from, and the first others
    that were seen: one that nobody serves is worth seeing. A token for workers may say what it likes, so those who hold
    one share a part of the room, and each has a part of that.
    """

    def __init__(self, types: Iterable[str] = (), queues: Iterable[str] = ()) -> None:
        self._types = _Room(TYPES_MAX)
        self._queues = _Room(QUEUES_MAX)
        self._seen: set[str] = set()
        self._owners: dict[str, str] = {}  # of workers
        self._rest = _NOBODY  # the owner of all others
        self.learn(types, queues)

    def learn(self, types: Iterable[str] = (), queues: Iterable[str] = ()) -> None:
        """Tell these apart from now on, as far as there is room: code names them."""
        self._types.learn(types)
        self._queues.learn(queues)

    def owned(self, worker: str, by: str) -> None:
        """Note that a worker came with a token, `by` its name. Call it before `hear`."""
        self._owners.pop(worker, None)
        self._owners[worker] = by
        if len(self._owners) > _OWNED_MAX:
            del self._owners[next(iter(self._owners))]
            self._rest = _SOMEBODY  # from now on: or who makes many workers would get the room of those without a token

    def hear(self, worker: str, types: Iterable[str], queues: Iterable[str]) -> None:
        """Tell apart what a live worker names, as far as its owner's part of the room goes."""
        owner = self._owners.get(worker, self._rest)
        self._types.hear(owner, types)
        self._queues.hear(owner, queues)

    @property
    def types(self) -> list[str]:
        """The types that are told apart."""
        return sorted(self._types.names)

    def job_type(self, name: str) -> str:
        """Answer the label of a job type."""
        return name if name in self._types.names else UNKNOWN

    def queue(self, name: str) -> str:
        """Answer the label of a queue."""
        if name in self._queues.names or name in self._seen:
            return name
        if len(self._seen) >= QUEUES_MAX:
            return OTHER
        self._seen.add(name)
        return name

    def tells_apart(self, queue: str, job_type: str) -> bool:
        """Answer whether these are labels as they are; else they share theirs with others, perhaps with very many."""
        return job_type in self._types.names and (queue in self._queues.names or queue in self._seen)
