-- Schema 3: limits, and keys that share a queue fairly.

-- NULL: no limit can hold this job back. Else packhorse.limits.lane_of: such jobs wait apart.
ALTER TABLE jobs ADD COLUMN lane TEXT;

-- `lane` ends these as `state` does: else SQLite reads the row to check what the index says already.
DROP INDEX ready;
-- claim: best first. seq is named so that ties need no sorting, due_at_ms so that counts finds the oldest in the index.
CREATE INDEX ready ON jobs (queue, rank, seq, due_at_ms, lane, state) WHERE state = 3 AND lane IS NULL;
-- claim: best first, of one lane
CREATE INDEX laned ON jobs (queue, lane, rank, seq, due_at_ms, state) WHERE state = 3 AND lane IS NOT NULL;
-- heartbeat, tick, retire: what a worker holds; claim: how many run of each lane. No index by lane of its own: it would
-- cost every start and end of a limited job more than looking at what runs costs a claim.
DROP INDEX running;
CREATE INDEX running ON jobs (worker, queue, lane, state) WHERE state = 4;
-- enqueue: the last turn of a key
CREATE INDEX turns ON jobs (queue, key, priority, rank, state) WHERE state = 3 AND key IS NOT NULL;

-- key '': the type as a whole; '*': each key alone
CREATE TABLE limits (
    type        TEXT    NOT NULL,
    key         TEXT    NOT NULL,
    rate        INTEGER,
    period_ms   INTEGER NOT NULL,
    burst       INTEGER,
    concurrency INTEGER,
    source      TEXT    NOT NULL,
    PRIMARY KEY (type, key)
) STRICT, WITHOUT ROWID;

-- The types whose jobs have lanes. A type stays here until its lanes are empty, though its limits are gone.
CREATE TABLE limited (
    type     TEXT PRIMARY KEY,
    live     INTEGER NOT NULL,             -- 1: it has limits
    by_key   INTEGER NOT NULL,             -- 1: some of them by key
    in_lanes INTEGER NOT NULL              -- 1: some of its jobs may be in lanes by key
) STRICT, WITHOUT ROWID;

-- Token buckets that are not full, see packhorse.limits.
CREATE TABLE buckets (
    type       TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    full_at_ns INTEGER NOT NULL,
    PRIMARY KEY (type, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX full_buckets ON buckets (full_at_ns);

-- Lanes by key that may have pending jobs. head: no higher than the rank of the best.
CREATE TABLE lanes (
    queue          TEXT    NOT NULL,
    lane           TEXT    NOT NULL,
    type           TEXT    NOT NULL,
    head           INTEGER NOT NULL,
    asleep_at_ms   INTEGER,                -- its rate is used up since then,
    opens_at_ms    INTEGER,                -- until then; NULL: it may be looked at
    PRIMARY KEY (queue, lane)
) STRICT, WITHOUT ROWID;
CREATE INDEX lanes_open ON lanes (type, queue, head) WHERE opens_at_ms IS NULL;
CREATE INDEX lanes_asleep ON lanes (opens_at_ms) WHERE opens_at_ms IS NOT NULL;
CREATE INDEX lanes_asleep_since ON lanes (asleep_at_ms) WHERE asleep_at_ms IS NOT NULL;

-- When a rate that holds something back lets it start: tick rings the queue then.
CREATE TABLE openings (
    queue TEXT PRIMARY KEY,
    at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- How far the keyed jobs of a queue have come, while any is pending: packhorse.job.fair_turn.
CREATE TABLE fronts (
    queue    TEXT PRIMARY KEY,
    front_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
