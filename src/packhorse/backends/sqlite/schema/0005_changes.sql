-- Schema 5: changes, written down while somebody asks for them (decision 19).

-- One row while somebody asks, else none: a writer that finds it out of date removes it, and the log with it. So while
-- the row is there every move since its log began is in `changes`.
CREATE TABLE listening (
    log      TEXT    NOT NULL,
    until_ms INTEGER NOT NULL
) STRICT;

-- One row a transaction; the latest 10,000 changes, and some more.
CREATE TABLE changes (
    upto  INTEGER PRIMARY KEY,             -- changes of this log up to here
    count INTEGER NOT NULL,                -- of them in this row
    at_ms INTEGER NOT NULL,
    moves BLOB    NOT NULL                 -- msgpack: [[state, [id, ...]], ...]; state 0: gone
) STRICT;
