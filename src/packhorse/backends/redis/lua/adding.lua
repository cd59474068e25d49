-- New jobs. A spec is an array that records.py packs; `rest` is what follows the head in the job's string.

local adding = {}
local ID, QUEUE, TYPE, PRIORITY, ATTEMPTS_MAX, DELAY, TRAITS, REST, BODY_AT, PAYLOAD_AT, RESULT_AT, MORE =
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
local KEY, UNIQUE, UNIQUE_STATES, UNIQUE_MS, ON_CONFLICT, AFTER, WORKFLOW, SCHEDULE = 1, 2, 3, 4, 5, 6, 7, 8
local NOTHING = {}

local function more(spec)
    return spec[MORE] or NOTHING
end

-- Tell whether none of these ids is there, so that nobody has to ask for each.
function adding.all_new(specs)
    local seen, keys = {}, {"EXISTS"}
    for _, spec in ipairs(specs) do
        local id = spec[ID]
        if seen[id] or job.known(id) then
            return false
        end
        seen[id] = true
        keys[#keys + 1] = job.key(id)
    end
    return #specs == 0 or call(unpack(keys)) == 0
end

local function make(spec, seq)
    local extra, delay_ms = more(spec), spec[DELAY]
    local j = {
        id = spec[ID], queue = spec[QUEUE], type = spec[TYPE], priority = spec[PRIORITY],
        attempts_max = spec[ATTEMPTS_MAX], traits = spec[TRAITS], body_at = spec[BODY_AT],
        payload_at = spec[PAYLOAD_AT], result_at = spec[RESULT_AT],
        state = AWAY, flags = 0, attempt = 0, seq = seq, created = now_ms,
        due = now_ms + (delay_ms > 0 and delay_ms or 0),
        started = 0, finished = 0, parked = 0, rank = 0, key = extra[KEY], unique = extra[UNIQUE],
        unique_states = extra[UNIQUE_STATES], unique_ms = extra[UNIQUE_MS], workflow = extra[WORKFLOW],
        schedule = extra[SCHEDULE], text = false, rest = false, tail = "", is_dirty = false,
    }
    job.add(j, spec[REST])
    store.later("ZADD", store.key("all", ""), seq, j.id)
    if j.workflow then
        call("ZADD", P .. "jobs_of:" .. j.workflow, seq, j.id)
        call("ZADD", P .. "flows", 0, j.workflow)
    end
    if j.schedule then
        call("ZADD", P .. "slots_of:" .. j.schedule, seq, j.id)
    end
    return j
end

-- Store one job unless its id or unique key is there already; answers it, or the id of what is there instead.
local function add(spec, seq, fresh)
    local extra = more(spec)
    if not fresh and job.load(spec[ID]) then
        return nil, spec[ID]
    end
    if extra[UNIQUE] then
        local holder = unique.holder(spec[QUEUE], extra[UNIQUE])
        if holder then
            if extra[ON_CONFLICT] ~= "replace" or holder.state > PENDING then
                return nil, holder.id
            end
            job.add_error(holder, cmsgpack.pack({"replaced", spec[ID], now_ms}))
            family.finish(holder, CANCELLED)
            store.ring_job(holder.id)
        end
    end
    local j = make(spec, seq)
    if extra[UNIQUE] then
        unique.take(j.queue, j.unique, j.id)
    end
    if extra[AFTER] then
        job.move(j, WAITING)
    else
        place.start_over(j, spec[DELAY])
    end
    return j
end

-- Let a new job wait for its parents, or end because of one.
local function join_family(j, spec)
    local parents = job.after(j)
    for _, name in ipairs(parents) do
        local parent = job.load(name)
        if parent then
            family.adopt(parent, j)
        end
    end
    if band(j.traits, CONTINUES) == 0 then
        for _, name in ipairs(parents) do
            local parent = job.load(name)
            local state = parent and parent.state or FAILED
            if state > SUCCEEDED then
                family.cancel_for_parent(j, name, state)
                return
            end
        end
    end
    if not family.wait(j, true) then
        place.start_over(j, spec[DELAY])
    end
end

-- Write down the parents of a new job; one whose key was held stands for its holder.
local function note_parents(j, spec, instead)
    local parents, seen = {}, {}
    for _, name in ipairs(more(spec)[AFTER]) do
        name = instead[name] or name
        if not seen[name] then
            seen[name] = true
            parents[#parents + 1] = name
        end
    end
    call("SET", P .. "a:" .. j.id, cmsgpack.pack(parents))
end

-- Store jobs; answers for each that was there already its place and the id that is there.
function adding.add(specs)
    local answers, instead, children = {}, {}, {}
    local fresh = adding.all_new(specs)
    local first = #specs > 0 and store.next_seqs(#specs) - #specs or 0
    for i, spec in ipairs(specs) do
        local j, there = add(spec, first + i, fresh)
        if not j then
            answers[#answers + 1] = i
            answers[#answers + 1] = there
            if there ~= spec[ID] then
                instead[spec[ID]] = there
            end
        elseif more(spec)[AFTER] then
            children[#children + 1] = {j, spec}
        end
    end
    for _, child in ipairs(children) do
        note_parents(child[1], child[2], instead)
    end
    for _, child in ipairs(children) do
        if child[1].state == WAITING then -- else it was replaced by another of this call
            join_family(child[1], child[2])
        end
    end
    return answers
end

-- ---- what refuses a call --------------------------------------------------------------------------------------------

-- Tell whether a new job is pending at once: those that wait for an instant or for parents are let in.
local function takes_room(spec)
    if spec[DELAY] > 0 then
        return false
    end
    for _, name in ipairs(more(spec)[AFTER] or NOTHING) do
        local parent = job.load(name)
        if not parent or parent.state <= RUNNING
            or (parent.state ~= SUCCEEDED and band(spec[TRAITS], CONTINUES) == 0) then
            return false
        end
    end
    return true
end

local function first_state(spec)
    return more(spec)[AFTER] and WAITING or spec[DELAY] > 0 and SCHEDULED or PENDING
end

-- Tell whether a spec of a call gets its unique key, or what refuses the call.
local function gets_key(spec, plan)
    local extra = more(spec)
    local slot = spec[QUEUE] .. ":" .. extra[UNIQUE]
    local earlier = plan.taken[slot]
    local holder = earlier == nil and unique.holder(spec[QUEUE], extra[UNIQUE]) or nil
    if not earlier and not holder then
        return true
    end
    if extra[ON_CONFLICT] == "refuse" then
        return false, {"unique", extra[UNIQUE], earlier and earlier[ID] or holder.id}
    end
    if extra[ON_CONFLICT] ~= "replace" then
        return false
    end
    if earlier then
        plan.room[spec[QUEUE]] = (plan.room[spec[QUEUE]] or 0) - (takes_room(earlier) and 1 or 0)
        return true
    end
    if holder.state == PENDING then
        plan.room[spec[QUEUE]] = (plan.room[spec[QUEUE]] or 0) - 1
    end
    return holder.state <= PENDING
end

local function is_simple(specs)
    for _, spec in ipairs(specs) do
        local _, capacity = store.settings(spec[QUEUE])
        local extra = spec[MORE]
        if capacity > 0 or (extra and (extra[UNIQUE] or extra[AFTER])) then
            return false
        end
    end
    return true
end

local function plan_one(spec, plan)
    for _, name in ipairs(more(spec)[AFTER] or NOTHING) do
        if not plan.ids[name] and not job.load(name) then
            return {"parent", name}
        end
    end
    plan.seen[spec[ID]] = true
    local extra = more(spec)
    if extra[UNIQUE] then
        local gets, refusal = gets_key(spec, plan)
        if not gets then
            return refusal
        end
        local held = unique.holds(extra[UNIQUE_STATES], extra[UNIQUE_MS], first_state(spec), now_ms)
        plan.taken[spec[QUEUE] .. ":" .. extra[UNIQUE]] = held and spec or false
    end
    if takes_room(spec) then
        plan.room[spec[QUEUE]] = (plan.room[spec[QUEUE]] or 0) + 1
    end
    return nil
end

-- Answer what refuses a call, before anything of it is stored: {kind, ...}; nil: nothing does.
function adding.refusal(specs)
    if is_simple(specs) then
        return nil
    end
    local plan = {ids = {}, seen = {}, taken = {}, room = {}}
    for _, spec in ipairs(specs) do
        plan.ids[spec[ID]] = true
    end
    for _, spec in ipairs(specs) do
        if not plan.seen[spec[ID]] and not job.load(spec[ID]) then
            local refusal = plan_one(spec, plan)
            if refusal then
                return refusal
            end
        end
    end
    for queue, count in pairs(plan.room) do
        local _, capacity = store.settings(queue)
        if capacity > 0 and count > 0 and store.state_count(queue, PENDING) + count > capacity then
            return {"full", queue, capacity}
        end
    end
    return nil
end
