-- Schema 4: moves to and from other stores.

-- A job that is in another store has state 11: it left, or is still to come. Its row stays, nearly empty, so that its id
-- is known and its children have somebody to wait for. Nobody sees it. finished_at_ms says since when.

-- Stores that this one handed jobs over to.
CREATE TABLE departures (
    store     TEXT PRIMARY KEY,
    number    INTEGER NOT NULL,            -- of the last batch
    after_seq INTEGER NOT NULL,            -- where the next one goes on
    batch     BLOB                         -- the last one, while it is in transit; one of all rows at most has any
) STRICT;

-- Stores that this one took jobs over from.
CREATE TABLE arrivals (
    store  TEXT PRIMARY KEY,
    number INTEGER NOT NULL,               -- of the last batch
    batch  BLOB                            -- that one, while it is not live
) STRICT;

-- Jobs with state 11 that are to come from a store, for children of theirs came before.
CREATE TABLE expected (
    seq   INTEGER PRIMARY KEY,
    store TEXT NOT NULL
) STRICT;
