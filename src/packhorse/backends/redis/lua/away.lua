-- Jobs that are in another store (decision 18): a head in the state AWAY, with the children it has here.
--
-- "away" their ids by the instant they left; "expected" those that are to come, as source and id; "transfers" how far
-- the batches to and from each other store are; "departing" the batch on its way, "arriving:<source>" one that is not
-- live yet.

local away = {}

-- One that is kept for its children is looked at again so much later: the others have their turn meanwhile.
local LOOK_AGAIN_MS = 3600000

-- Leave a head in the place of a job, which left now or is expected from the store `source`.
function away.put(id, flags, source)
    source = source or ""
    local texts = struct.pack("<" .. TEXTS, #source, source, 0, "", 0, "", 0, "", 0, "", 0, "")
    local at = HEAD_BYTES + #texts
    local j = {
        id = id, state = AWAY, flags = flags, traits = 0, priority = 0, attempt = 0, attempts_max = 0, seq = 0,
        created = now_ms, due = 0, started = 0, finished = 0, parked = 0, rank = 0, body_at = at, payload_at = at,
        result_at = at, queue = source, type = "", text = false, tail = "", is_dirty = false,
    }
    job.add(j, texts)
    call("ZADD", P .. "away", now_ms, id)
    if source ~= "" then
        call("ZADD", P .. "expected", 0, source .. " " .. id)
    end
    return j
end

-- Forget that a job is in another store.
function away.drop(j)
    call("ZREM", P .. "away", j.id)
    call("ZREM", P .. "expected", j.queue .. " " .. j.id)
    call("HDEL", P .. "lives", j.id)
    call("DEL", job.key(j.id))
    job.gone(j)
end

-- Forget the ids of jobs that are in other stores for long, unless a child of one lives.
function away.forget_old()
    local found = call("ZRANGEBYSCORE", P .. "away", "-inf", now_ms - ABSENT_KEPT_MS, "LIMIT", 0, BATCH_MAX)
    local budget = BATCH_MAX
    for _, id in ipairs(found) do
        if budget <= 0 then
            return
        end
        local j = job.load(id)
        if not j or j.state ~= AWAY then
            call("ZREM", P .. "away", id)
        else
            local kept, cost = family.has_live_child(j, budget)
            budget = budget - 1 - cost
            if not kept then
                call("DEL", P .. "c:" .. id)
                away.drop(j)
            elseif budget > 0 then -- else it is not known yet
                call("ZADD", P .. "away", now_ms - ABSENT_KEPT_MS + LOOK_AGAIN_MS, id)
            end
        end
    end
end

-- Answer the identity of this store; `new` is the one to take if it has none.
function away.identity(new)
    call("HSETNX", KEYS[1], "id", new)
    return call("HGET", KEYS[1], "id")
end
