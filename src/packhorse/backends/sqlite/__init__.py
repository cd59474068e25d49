"""Jobs in one SQLite file, shared by any number of processes of one machine.

backend    the verbs of the contract, each handed to a thread
engine     the writer and the reader thread: group commit, patience, forks
filing     the URL and the file: making it, its permissions, noticing that it is gone
connection settings, the schema and its migrations, what SQLite's errors mean
wake       hints between processes, by a side file
rows       reading and writing jobs that move, in bulk; records: all that is kept of them, to look at
adding, moving, claiming, steering, keeping, looking, schedules      what the verbs do inside a transaction
families, reviving, keys, dropping, placing      what these share: children told of an end, revived after a rerun;
           who holds a unique key; what goes, and when; where a pending job waits
"""

from .backend import SQLiteBackend

__all__ = ["SQLiteBackend"]
