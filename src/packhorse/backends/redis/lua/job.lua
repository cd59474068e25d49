-- A job: one string of a head of fixed width, which moves rewrite in place, and what seldom changes.
--
-- head | queue type key unique workflow schedule (each after its length) | body (msgpack) | payload | tail
-- The tail is the result of a job that has one, and token (8 bytes) and worker of one that runs. Beside the string,
-- only where there is something: "e:" errors, "x:" progress, "s:" steps, "a:" parents, "w:" parents that have not
-- ended, "c:" children, "k:" children that have not heard of its end.

local HEAD = "<BBBBI2I2i8i8i8i8i8i8i8I4I4I4"
local TEXTS = "Bc0Bc0I2c0I2c0I2c0I2c0"
local ALL = HEAD .. TEXTS

-- Bits of `flags`, which change, and of `traits`, which do not.
local CANCEL_REQUESTED, HAS_RESULT, HAS_CHILDREN, HAS_ERRORS, HAS_NOTES = 1, 2, 4, 8, 16
local LANE_BITS, LANE_OF_TYPE, LANE_OF_KEY = 96, 32, 64
local HAS_KEY, HAS_UNIQUE, HAS_AFTER, CONTINUES, IN_WORKFLOW, OF_SCHEDULE = 1, 2, 4, 8, 16, 32

-- A job of at most so many bytes is read and written as a whole; of a larger one only the front, unless its tail
-- changes.
local SMALL_BYTES = 1024

local job = {}
local loaded = {} -- by id: one table a job
local dirty = {n = 0} -- jobs to be written, once, at the end

function job.key(id)
    return P .. "j:" .. id
end

local function read_texts(j, traits, key, unique, workflow, schedule)
    if band(traits, HAS_KEY) > 0 then
        j.key = key
    end
    if band(traits, HAS_UNIQUE) > 0 then
        j.unique_states, j.unique_ms = struct.unpack("<Bi8", unique)
        j.unique = sub(unique, 10)
    end
    if band(traits, IN_WORKFLOW) > 0 then
        j.workflow = workflow
    end
    if band(traits, OF_SCHEDULE) > 0 then
        j.schedule = schedule
    end
end

-- Read a job from its string, or from the first SMALL_BYTES and one of it.
function job.parse(id, text)
    local state, flags, traits, priority, attempt, attempts_max, seq, created, due, started, finished, parked, rank,
        body_at, payload_at, result_at, queue, job_type, key, unique, workflow, schedule = struct.unpack(ALL, text)
    local j = {
        id = id, state = state, flags = flags, traits = traits, priority = priority, attempt = attempt,
        attempts_max = attempts_max, seq = seq, created = created, due = due, started = started, finished = finished,
        parked = parked, rank = rank, body_at = body_at, payload_at = payload_at, result_at = result_at, queue = queue,
        type = job_type, text = #text <= SMALL_BYTES and text, rest = false, tail = false, is_dirty = false,
    }
    if traits > 0 then
        read_texts(j, traits, key, unique, workflow, schedule)
    end
    loaded[id] = j
    return j
end

-- Answer a job; nil: there is none.
function job.load(id)
    local j = loaded[id]
    if j ~= nil then
        return j or nil
    end
    local text = call("GETRANGE", P .. "j:" .. id, 0, SMALL_BYTES)
    if text == "" then
        return nil
    end
    if #text > SMALL_BYTES then
        local body_at = struct.unpack("<I4", text, 65)
        if body_at > #text then
            text = call("GETRANGE", P .. "j:" .. id, 0, body_at)
        end
    end
    return job.parse(id, text)
end

function job.known(id)
    return loaded[id]
end

local function head(j)
    return struct.pack(HEAD, j.state, j.flags, j.traits, j.priority, j.attempt, j.attempts_max, j.seq, j.created, j.due,
        j.started, j.finished, j.parked, j.rank, j.body_at, j.payload_at, j.result_at)
end

-- Answer the string of a job whose tail did not change: its head may have, and is not written yet.
function job.whole(j)
    return head(j) .. sub(call("GET", P .. "j:" .. j.id), HEAD_BYTES + 1)
end

-- Note that a job's head changed.
function job.save(j)
    if not j.is_dirty then
        j.is_dirty = true
        dirty.n = dirty.n + 1
        dirty[dirty.n] = j
    end
end

-- Answer a job's tail.
function job.tail(j)
    if not j.tail then
        j.tail = j.text and sub(j.text, j.result_at + 1) or call("GETRANGE", P .. "j:" .. j.id, j.result_at, -1)
    end
    return j.tail
end

-- Give a job another tail.
function job.set_tail(j, tail)
    if not j.text and not j.rest then
        j.tail_bytes = j.tail_bytes or #job.tail(j) -- as it is stored
    end
    j.tail = tail
    j.has_new_tail = true
    job.save(j)
end

function job.add(j, rest)
    j.rest = rest
    loaded[j.id] = j
    job.save(j)
end

-- Write a job anew as a whole: its texts, or its payload, changed.
function job.rewrite(j, payload)
    local text = call("GET", job.key(j.id))
    local body = sub(text, j.body_at + 1, j.payload_at)
    payload = payload or sub(text, j.payload_at + 1, j.result_at)
    local unique = j.unique and struct.pack("<Bi8", j.unique_states, j.unique_ms) .. j.unique or ""
    local key, workflow, schedule = j.key or "", j.workflow or "", j.schedule or ""
    local texts = struct.pack("<" .. TEXTS, #j.queue, j.queue, #j.type, j.type, #key, key, #unique, unique,
        #workflow, workflow, #schedule, schedule)
    j.body_at = HEAD_BYTES + #texts
    j.payload_at = j.body_at + #body
    j.result_at = j.payload_at + #payload
    j.rest = texts .. body .. payload
    j.tail = ""
    job.save(j)
end

function job.has(j, flag)
    return band(j.flags, flag) > 0
end

function job.set(j, flag, on)
    if on then
        j.flags = bor(j.flags, flag)
    else
        j.flags = band(j.flags, 255 - flag)
    end
end

-- What stands for a job in sorted sets: of two with one score, the one that was stored first goes first.
function job.member(j)
    local member = j.member
    if not member then
        member = struct.pack(">I8", j.seq) .. j.id
        j.member = member
    end
    return member
end

-- Add to a job's errors, keeping the first and the latest.
function job.add_error(j, packed)
    local key = P .. "e:" .. j.id
    if call("RPUSH", key, packed) > ERRORS_KEPT_MAX then
        call("LSET", key, 1, "")
        call("LREM", key, 1, "")
    end
    job.set(j, HAS_ERRORS, true)
end

-- Answer the parents of a job, in the order they were named.
function job.after(j)
    if band(j.traits, HAS_AFTER) == 0 then
        return {}
    end
    local text = call("GET", P .. "a:" .. j.id)
    return text and cmsgpack.unpack(text) or {}
end

-- States that are looked for by themselves, and are few beside the others, have an index by seq.
local function rare(state)
    return state == WAITING or state == FAILED or state == CANCELLED
end

-- Bring the counts and indexes of states up to date. `was` nil: the job is new, `state` nil: it goes.
function job.recount(j, was, state)
    if was then
        store.count_state(j.queue, was, -1)
        if rare(was) then
            local key = store.key("state:", was)
            store.flush(key)
            call("ZREM", key, j.id)
        end
    end
    if state then
        store.count_state(j.queue, state, 1)
        if rare(state) then
            store.later("ZADD", store.key("state:", state), j.seq, j.id)
        end
    end
    if j.workflow then
        if was then
            store.count(store.key("flow:", j.workflow), was, -1)
        end
        if state then
            store.count(store.key("flow:", j.workflow), state, 1)
        end
    end
end

function job.move(j, state)
    if j.state ~= state then
        job.recount(j, j.state ~= AWAY and j.state or nil, state) -- a new one is not here either
        j.state = state
        if told.count ~= false and not j.arrives then -- from another store: that is not told
            told.note(j.id, state)
        end
    end
    job.save(j)
end

-- Forget that a job was loaded: its keys go.
function job.gone(j)
    loaded[j.id] = false
    j.is_gone = true
end

-- Answer what follows the head; nil: a large job, which is written in place.
local function rest_of(j)
    if j.rest then
        return j.rest .. (j.tail or "")
    elseif j.text then
        return j.has_new_tail and sub(j.text, HEAD_BYTES + 1, j.result_at) .. j.tail or sub(j.text, HEAD_BYTES + 1)
    elseif j.has_new_tail and #j.tail < j.tail_bytes then -- no command cuts a string
        return call("GETRANGE", P .. "j:" .. j.id, HEAD_BYTES, j.result_at - 1) .. j.tail
    end
    return nil
end

finishers[#finishers + 1] = function()
    local texts, n = {"MSET"}, 1
    for i = 1, dirty.n do
        local j = dirty[i]
        local rest = not j.is_gone and rest_of(j)
        if rest then
            texts[n + 1] = P .. "j:" .. j.id
            texts[n + 2] = head(j) .. rest
            n = n + 2
            if n > MOST_ARGUMENTS then
                call(unpack(texts, 1, n))
                n = 1
            end
        elseif not j.is_gone then
            call("SETRANGE", P .. "j:" .. j.id, 0, head(j))
            if j.has_new_tail then
                call("SETRANGE", P .. "j:" .. j.id, j.result_at, j.tail)
            end
        end
    end
    if n > 1 then
        call(unpack(texts, 1, n))
    end
end
