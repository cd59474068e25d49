"""Jobs in PostgreSQL, 14 or newer, through psycopg 3; with a pooler in between too.

backend    the verbs of the contract, each a script that the pool runs
script     what a script is, and the transaction it works in: no I/O here
connection, pool, packing, schema    the URL, connections and their errors; running scripts; parameters; migrations
grouping   concurrent enqueues of this process go in one statement
wake       hints between processes: NOTIFY and LISTEN
rows       reading jobs under locks and writing them back, in bulk
adding, moving, claiming, steering, keeping, looking, schedules      what the verbs do
limiting, limit_rows, families, reviving, keys, dropping, placing    what these share
binding    enqueue and settle inside the caller's own transaction
checkup    what `packhorse doctor` asks
"""

from .backend import PostgresBackend

__all__ = ["PostgresBackend"]
