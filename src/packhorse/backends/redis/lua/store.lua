-- The ground of every script: the names of keys, the time, and writes that are put off to the end and made together.
--
-- KEYS[1] "{prefix}:store", ARGV[1] what the verb was given (msgpack), ARGV[2] the time in ms, "" for the server's own.
-- All keys of a store begin with "{prefix}:", so they lie in one slot of a Cluster. Nothing is written before all that
-- can refuse a verb was checked: a script is atomic, but what it wrote before an error stays.

local call, floor, sub, band, bor = redis.call, math.floor, string.sub, bit.band, bit.bor
-- AWAY: the job left for another store, or is to come from one (decision 18). Nobody sees it; as a parent it lives.
local AWAY = 0
local WAITING, SCHEDULED, PENDING, RUNNING, SUCCEEDED, FAILED, CANCELLED = 1, 2, 3, 4, 5, 6, 7

local P = sub(KEYS[1], 1, -6)
local args = cmsgpack.unpack(ARGV[1])
local now_ms = tonumber(ARGV[2])
if not now_ms then
    local time = call("TIME")
    now_ms = time[1] * 1000 + floor(time[2] / 1000)
end

local store = {}
local finishers = {} -- what the other files write at the end

-- ---- writes that can wait ----------------------------------------------------------------------------------

-- What nobody reads again in the same script is collected and written with one call a key. 3,000 arguments a call:
-- Lua's stack holds 8,000.
local MOST_ARGUMENTS = 3000
local writes = {}

function store.flush(key)
    local waiting = writes[key]
    if waiting then
        writes[key] = nil
        call(unpack(waiting, 1, waiting.n))
    end
end

function store.later(command, key, one, two)
    local waiting = writes[key]
    if waiting and (waiting[1] ~= command or waiting.n > MOST_ARGUMENTS) then
        store.flush(key)
        waiting = nil
    end
    if not waiting then
        waiting = {command, key, n = 2}
        writes[key] = waiting
    end
    local n = waiting.n + 1
    waiting[n] = one
    if two then
        n = n + 1
        waiting[n] = two
    end
    waiting.n = n
end

-- Names of keys made of a kind and a name, each put together once.
local names = {}

function store.key(kind, name)
    local of_kind = names[kind]
    if not of_kind then
        of_kind = {}
        names[kind] = of_kind
    end
    local key = of_kind[name]
    if not key then
        key = P .. kind .. name
        of_kind[name] = key
    end
    return key
end

-- Let a verb go on where the server's memory is full: jobs must end and go. Only a script whose first write could take
-- memory is refused there, and this one takes none.
function store.go_on_when_full()
    call("DEL", P .. "nothing")
end

-- ---- counters ----------------------------------------------------------------------------------------------

local tally = {}

-- Count a change of a field of a hash; a field that comes to 0 goes.
function store.count(key, field, change)
    local fields = tally[key]
    if not fields then
        fields = {}
        tally[key] = fields
    end
    fields[field] = (fields[field] or 0) + change
end

-- Answer a counter as it will be once this script is done.
function store.counted(key, field)
    local fields = tally[key]
    return tonumber(call("HGET", key, field) or 0) + (fields and fields[field] or 0)
end

-- Jobs that came into a state of a queue or left it: queue -> state -> change.
local moved = {}

function store.count_state(queue, state, change)
    local states = moved[queue]
    if not states then
        states = {0, 0, 0, 0, 0, 0, 0}
        moved[queue] = states
    end
    states[state] = states[state] + change
end

-- Answer how many jobs of a queue are in a state, as it will be once this script is done.
function store.state_count(queue, state)
    local stored = tonumber(call("HGET", P .. "counts", queue .. ":" .. state) or 0)
    return stored + (moved[queue] and moved[queue][state] or 0)
end

local function write_counts()
    for queue, states in pairs(moved) do
        for state, change in ipairs(states) do
            store.count(P .. "counts", queue .. ":" .. state, change)
        end
    end
    for key, fields in pairs(tally) do
        for field, change in pairs(fields) do
            if change ~= 0 and call("HINCRBY", key, field, change) == 0 then
                call("HDEL", key, field)
            end
        end
    end
end

-- ---- topics ------------------------------------------------------------------------------------------------

local rung, queues_rung, ended, silenced = {}, {}, {n = 0}, {}

-- Ring a queue, a worker or "due" once the script is done.
function store.ring(topic)
    rung[topic] = true
end

function store.ring_queue(queue)
    queues_rung[queue] = true
end

-- Let a topic be, whatever rang it.
function store.silence(topic)
    silenced[topic] = true
end

-- Job topics have a channel of their own: only those who wait for jobs listen to it.
function store.ring_job(id)
    ended.n = ended.n + 1
    ended[ended.n] = id
end

-- A hint that cannot be given must not fail what is done: the user may lack the rights to the channels.
local function publish()
    local topics = {}
    for topic in pairs(rung) do
        if not silenced[topic] then
            topics[#topics + 1] = topic
        end
    end
    for queue in pairs(queues_rung) do
        topics[#topics + 1] = "queue:" .. queue
    end
    if #topics > 0 then
        redis.pcall("PUBLISH", P .. "wake", cmsgpack.pack(topics))
    end
    if ended.n > 0 then
        ended.n = nil
        redis.pcall("PUBLISH", P .. "ended", cmsgpack.pack(ended))
    end
end

-- ---- settings of queues --------------------------------------------------------------------------------------

local settings = {}

-- Answer whether a queue is paused and its capacity (0: none).
function store.settings(queue)
    local found = settings[queue]
    if not found then
        local text = call("HGET", P .. "settings", queue)
        found = {paused = text and sub(text, 1, 1) == "1", capacity = text and tonumber(sub(text, 2)) or 0}
        settings[queue] = found
    end
    return found.paused, found.capacity
end

function store.forget_settings(queue)
    settings[queue] = nil
end

-- ---- sequence ------------------------------------------------------------------------------------------------

-- Answer the last of `n` new sequence numbers.
function store.next_seqs(n)
    local last = call("HINCRBY", KEYS[1], "seq", n)
    if last == n then -- a new store, or one that was flushed under us
        call("HSET", KEYS[1], "schema", SCHEMA)
    end
    return last
end

-- Write all that was put off. Nothing of the verb may follow.
function store.finish()
    for _, finisher in ipairs(finishers) do
        finisher()
    end
    for key in pairs(writes) do
        store.flush(key)
    end
    write_counts()
    for _, finisher in ipairs(finishers.after or {}) do
        finisher()
    end
    publish()
end
