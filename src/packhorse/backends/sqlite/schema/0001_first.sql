-- Schema 1. What each index is for stands beside it; tests/sqlite/test_plans.py checks that it is used.

CREATE TABLE jobs (
    seq             INTEGER PRIMARY KEY,   -- the order of arrival: ties of rank, the cursor of find
    id              TEXT    NOT NULL UNIQUE,
    type            TEXT    NOT NULL,
    queue           TEXT    NOT NULL,
    state           INTEGER NOT NULL,      -- 1 waiting 2 scheduled 3 pending 4 running 5 succeeded 6 failed 7 cancelled
    rank            INTEGER NOT NULL,      -- packhorse.job.rank, kept for pending jobs
    due_at_ms       INTEGER NOT NULL,
    created_at_ms   INTEGER NOT NULL,
    priority        INTEGER NOT NULL,
    attempt         INTEGER NOT NULL DEFAULT 0,
    max_attempts    INTEGER NOT NULL,
    timeout_ms      INTEGER NOT NULL,
    cancel          INTEGER NOT NULL DEFAULT 0,
    worker          INTEGER,               -- workers.no while running
    token           INTEGER,               -- of the claim while running
    started_at_ms   INTEGER,
    finished_at_ms  INTEGER,
    parked_at_ms    INTEGER,
    slot_at_ms      INTEGER,
    key             TEXT,
    unique_key      TEXT,
    workflow        TEXT,
    schedule        TEXT,
    tags            TEXT,                  -- JSON, as is meta; NULL when empty
    meta            TEXT,
    payload         BLOB                   -- NULL: too large for here, see payloads
) STRICT;

-- `state` ends each of these: without it SQLite reads the row to check what the index says already.
-- claim: best first. seq is named so that ties need no sorting, priority so that counts finds the oldest in the index.
CREATE INDEX ready ON jobs (queue, rank, seq, priority, state) WHERE state = 3;
-- tick: what is due
CREATE INDEX due ON jobs (due_at_ms, queue, state) WHERE state = 2;
-- heartbeat, tick, retire: what a worker holds
CREATE INDEX running ON jobs (worker, queue, state) WHERE state = 4;
-- tick: what was kept long enough
CREATE INDEX ended ON jobs (state, finished_at_ms, queue) WHERE state >= 5;
-- find: the dead letter queue, newest first
CREATE INDEX failed ON jobs (state) WHERE state = 6;
-- enqueue: a key belongs to one live job of a queue
CREATE UNIQUE INDEX held_keys ON jobs (queue, unique_key) WHERE unique_key IS NOT NULL AND state < 5;

-- A row that changes is written whole, so what is large or written once lives beside it.
CREATE TABLE payloads (
    seq     INTEGER PRIMARY KEY,
    payload BLOB NOT NULL
) STRICT;

CREATE TABLE extras (
    seq           INTEGER PRIMARY KEY,
    result        BLOB,
    errors        TEXT,                    -- JSON
    progress      TEXT,                    -- as Python writes it: SQLite's JSON keeps 15 digits of a REAL only
    progress_note TEXT
) STRICT;

CREATE TABLE workers (
    no              INTEGER PRIMARY KEY,   -- a hash of the id: 8 bytes in every running job instead of 36
    id              TEXT    NOT NULL,
    info            TEXT    NOT NULL,      -- JSON
    lease_end_at_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE queues (
    name   TEXT PRIMARY KEY,
    paused INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- For people with a SQLite shell; packhorse does not read it.
CREATE VIEW readable_jobs AS
SELECT seq, id, type, queue,
       CASE state WHEN 1 THEN 'waiting' WHEN 2 THEN 'scheduled' WHEN 3 THEN 'pending' WHEN 4 THEN 'running'
                  WHEN 5 THEN 'succeeded' WHEN 6 THEN 'failed' WHEN 7 THEN 'cancelled' END AS state,
       attempt, max_attempts, datetime(created_at_ms / 1000, 'unixepoch') AS created_at,
       datetime(due_at_ms / 1000, 'unixepoch') AS due_at, datetime(finished_at_ms / 1000, 'unixepoch') AS finished_at
FROM jobs;
