-- args: an identity to take, and the batch or nil: source, number, whether it is the last, jobs, schedules. Answers the
-- identity; and for a batch 0 where it is stale, else 1, how many jobs it made live, and the ids that were here before.

local function create(moved)
    local was = job.load(moved.id)
    local children = 0
    if was then
        children = band(was.flags, HAS_CHILDREN)
        away.drop(was)
    end
    local j = {
        id = moved.id, queue = moved.queue, type = moved.type, priority = moved.priority, attempt = moved.attempt,
        attempts_max = moved.attempts_max, traits = moved.traits, flags = moved.flags + children, state = AWAY,
        seq = store.next_seqs(1), created = moved.created, due = moved.due, started = moved.started,
        finished = moved.finished, parked = moved.parked, rank = 0, body_at = moved.body_at,
        payload_at = moved.payload_at, result_at = moved.result_at, key = moved.key, unique = moved.unique,
        unique_states = moved.unique_states,
        unique_ms = moved.unique_ms, workflow = moved.workflow, schedule = moved.schedule, text = false,
        tail = moved.result or "", is_dirty = false, arrives = true,
    }
    job.add(j, moved.rest)
    call("ZADD", P .. "all", j.seq, j.id)
    if j.workflow then
        call("ZADD", P .. "jobs_of:" .. j.workflow, j.seq, j.id)
        call("ZADD", P .. "flows", 0, j.workflow)
    end
    if j.schedule then
        call("ZADD", P .. "slots_of:" .. j.schedule, j.seq, j.id)
    end
    for _, packed in ipairs(moved.errors) do
        call("RPUSH", P .. "e:" .. j.id, packed)
    end
    for i = 1, #moved.notes, 2 do
        call("HSET", P .. "x:" .. j.id, moved.notes[i], moved.notes[i + 1])
    end
    for i = 1, #moved.steps, 2 do
        call("HSET", P .. "s:" .. j.id, moved.steps[i], moved.steps[i + 1])
    end
    if #moved.after > 0 then
        call("SET", P .. "a:" .. j.id, cmsgpack.pack(moved.after))
    end
    if moved.state ~= PENDING and moved.state ~= SCHEDULED then -- those get their place later
        job.move(j, moved.state)
    end
    return j
end

-- Tie a job to the parents that its store knew; those that are not here are waited for.
local function tie(j, moved, source)
    local because
    for i = 1, #moved.parents, 2 do
        local name, kind = moved.parents[i], moved.parents[i + 1]
        local parent = job.load(name) or away.put(name, 0, source)
        family.adopt(parent, j)
        if kind == "held" then
            because = because or name
        elseif kind == "waits" and j.state == WAITING then
            call("SADD", P .. "w:" .. j.id, name)
            if parent.state > RUNNING then
                call("ZADD", P .. "k:" .. name, j.seq, j.id)
                family.line_up(name, parent.state)
            end
        end
    end
    if because then
        call("HSET", P .. "because", j.id, because)
    end
end

local function settle_down(j, state)
    if j.unique and unique.holds(j.unique_states, j.unique_ms, state, j.created) then
        unique.take(j.queue, j.unique, j.id)
    end
    if state == PENDING then
        place.make_ready(j, j.due)
        store.ring_queue(j.queue)
    elseif state == SCHEDULED then
        job.move(j, SCHEDULED)
        store.later("ZADD", P .. "due", j.due, job.member(j))
        store.ring("due")
    elseif state > RUNNING then
        store.later("ZADD", family.ended_key(j), j.finished, j.id)
        store.ring_job(j.id)
        family.tell(j, state)
    end
end

-- A schedule that is here keeps its definition: packhorse.backends.rules.merge_schedule.
local function arrive_schedule(name, value)
    local CURSOR = "<i8i8i8B"
    local here = call("HGET", P .. "schedules", name)
    local _, _, next_ms, paused = struct.unpack(CURSOR, value)
    if here then
        local revision, done_ms, _, is_paused, rest = struct.unpack(CURSOR, here)
        local new_revision, new_done_ms = struct.unpack(CURSOR, value)
        next_ms, paused = -1, math.max(paused, is_paused)
        value = struct.pack(CURSOR, math.max(revision, new_revision) + 1, math.max(done_ms, new_done_ms), -1, paused)
            .. sub(here, rest)
    end
    call("HSET", P .. "schedules", name, value)
    if paused == 0 then
        call("ZADD", P .. "slots", math.max(0, next_ms), name)
    else
        call("ZREM", P .. "slots", name)
    end
    store.ring("due")
end

-- Revive children whose parents were rerun while one of the two was here and the other was not.
local function revive(arrived)
    local names, seen = {}, {}
    local function note(name)
        if not seen[name] then
            seen[name] = true
            names[#names + 1] = name
        end
    end
    for _, entry in ipairs(arrived) do
        note(entry[1].id)
        local parents = entry[2].parents
        for i = 1, #parents, 2 do
            if parents[i + 1] == "held" then
                note(parents[i])
            end
        end
    end
    table.sort(names)
    for _, name in ipairs(names) do
        local j = job.load(name)
        if j and j.state ~= AWAY and j.state <= SUCCEEDED then
            family.revive(j)
        end
    end
end

-- Make a batch live; answers how many jobs that were, and the ids that were here before.
local function arrive(batch)
    local known, arrived = {}, {}
    for _, moved in ipairs(batch.jobs) do
        local here = job.load(moved.id)
        if here and here.state ~= AWAY then
            known[#known + 1] = moved.id
        else
            arrived[#arrived + 1] = {create(moved), moved}
        end
    end
    for _, entry in ipairs(arrived) do
        tie(entry[1], entry[2], batch.source)
    end
    for _, entry in ipairs(arrived) do
        settle_down(entry[1], entry[2].state)
    end
    revive(arrived)
    for i = 1, #batch.schedules, 2 do
        arrive_schedule(batch.schedules[i], batch.schedules[i + 1])
    end
    return #arrived, known
end

-- Count the parents as cancelled that were to come from a source where nothing is left.
local function give_up(source)
    local start = source .. " "
    for _, member in ipairs(call("ZRANGEBYLEX", P .. "expected", "[" .. start, "[" .. start .. "\255")) do
        local j = job.load(sub(member, #start + 1))
        if j and j.state == AWAY then
            family.tell(j, CANCELLED)
            away.drop(j)
        else
            call("ZREM", P .. "expected", member)
        end
    end
end

local id, batch = away.identity(args[1]), args[2]
if not batch then
    return {id}
end
local mark_name, arriving = "in:" .. batch.source, P .. "arriving:" .. batch.source
local mark = tonumber(call("HGET", P .. "transfers", mark_name) or 0)
local is_empty = #batch.jobs == 0 and #batch.schedules == 0
if not is_empty and batch.number < mark then
    return {id, 0}
end
local jobs, known = 0, {}
local held = mark < batch.number and call("GET", arriving)
if held then
    jobs, known = arrive(cmsgpack.unpack(held))
    call("DEL", arriving)
end
if not is_empty and batch.number > mark then
    call("SET", arriving, cmsgpack.pack(batch))
    call("HSET", P .. "transfers", mark_name, string.format("%.0f", batch.number))
end
if batch.last then
    give_up(batch.source)
end
family.serve(BATCH_MAX)
store.finish()
return {id, 1, jobs, known}
