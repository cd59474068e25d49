-- Schema 2: families, unique keys by rule, capacities, durable steps, schedules.
-- What only some jobs have lies beside them: a row of jobs is read and written whole at every move.

ALTER TABLE jobs ADD COLUMN children INTEGER NOT NULL DEFAULT 0;  -- 0 none 1 some to be told of its end 2 all told

-- What became of a job that was deleted before all of its children were told is in `state` too: 8 succeeded 9 failed
-- 10 cancelled. Nobody sees such a row; it goes when they are told. See families.bury.
DROP VIEW readable_jobs;
CREATE VIEW readable_jobs AS
SELECT seq, id, type, queue,
       CASE state WHEN 1 THEN 'waiting' WHEN 2 THEN 'scheduled' WHEN 3 THEN 'pending' WHEN 4 THEN 'running'
                  WHEN 5 THEN 'succeeded' WHEN 6 THEN 'failed' WHEN 7 THEN 'cancelled' END AS state,
       attempt, max_attempts, datetime(created_at_ms / 1000, 'unixepoch') AS created_at,
       datetime(due_at_ms / 1000, 'unixepoch') AS due_at, datetime(finished_at_ms / 1000, 'unixepoch') AS finished_at
FROM jobs WHERE state <= 7;

-- tick: whose children are to be told (children = 1), what was kept long enough (apart: what has none, what has some)
DROP INDEX ended;
CREATE INDEX ended ON jobs (state, children, finished_at_ms, queue) WHERE state >= 5;
-- find: what waits, and the dead letter queue, in order of arrival. One index for both: each costs at every move.
DROP INDEX failed;
CREATE INDEX listed ON jobs (state, seq, queue) WHERE state IN (1, 6);
-- find and workflows: the jobs of one, in order of arrival. Without `state`, which would write it at every move.
CREATE INDEX of_workflow ON jobs (workflow) WHERE workflow IS NOT NULL;
CREATE INDEX of_schedule ON jobs (schedule) WHERE schedule IS NOT NULL;

-- ---- families ----

CREATE TABLE families (
    seq          INTEGER PRIMARY KEY,      -- of a job with parents or a node
    parents      INTEGER NOT NULL,         -- how many it has
    waiting_for  INTEGER NOT NULL,         -- its edges with done = 0, while it waits
    after_failed INTEGER NOT NULL,         -- 0 cancel 1 continue
    held_by      INTEGER,                  -- the first parent that it was cancelled because of
    node         TEXT
) STRICT;

-- Apart, for 10,000 ids are 400 kB, and `waiting_for` changes with each parent that ends.
CREATE TABLE parents (
    seq   INTEGER PRIMARY KEY,
    after TEXT NOT NULL                    -- ids, JSON
) STRICT;

CREATE TABLE edges (
    child  INTEGER NOT NULL,
    parent INTEGER NOT NULL,
    done   INTEGER NOT NULL,               -- 0 the child waits for it 1 it was told 2 and has ended, as a tick saw
                                           -- 3 it is cancelled because of it
    PRIMARY KEY (child, parent)
) STRICT, WITHOUT ROWID;
CREATE INDEX children_of ON edges (parent, done, child);

-- Parents that were rerun and have more children to revive than one move could: those after `child`.
CREATE TABLE revivals (
    parent INTEGER PRIMARY KEY,
    child  INTEGER NOT NULL
) STRICT;

-- Where a tick goes on to look for ended parents that may be dropped.
CREATE TABLE marks (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL                    -- JSON
) STRICT, WITHOUT ROWID;

-- ---- unique keys ----

-- Who took a key, in this order. Whether one of them holds it is asked when somebody else wants it: keys.py.
CREATE TABLE keys (
    no     INTEGER PRIMARY KEY,
    queue  TEXT    NOT NULL,
    key    TEXT    NOT NULL,
    holder INTEGER NOT NULL,               -- jobs.seq
    UNIQUE (queue, key, holder)
) STRICT;
INSERT INTO keys (queue, key, holder)
SELECT queue, unique_key, seq FROM jobs WHERE unique_key IS NOT NULL AND state < 5;
DROP INDEX held_keys;

-- Of jobs whose key is held by another rule than "until it ends".
CREATE TABLE windows (
    seq    INTEGER PRIMARY KEY,
    for_ms INTEGER NOT NULL,
    states INTEGER NOT NULL                -- the sum of 2 to the power of each
) STRICT;

-- ---- the rest ----

ALTER TABLE queues ADD COLUMN capacity INTEGER;
CREATE INDEX capacities ON queues (name, capacity) WHERE capacity IS NOT NULL;

CREATE TABLE steps (
    seq    INTEGER NOT NULL,
    name   TEXT    NOT NULL,
    result BLOB    NOT NULL,
    PRIMARY KEY (seq, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE schedules (
    name        TEXT PRIMARY KEY,
    definition  TEXT NOT NULL,             -- JSON
    wants_at_ms INTEGER                    -- when a tick hands it out to be planned; NULL: it is paused
) STRICT, WITHOUT ROWID;
CREATE INDEX planned ON schedules (wants_at_ms) WHERE wants_at_ms IS NOT NULL;
