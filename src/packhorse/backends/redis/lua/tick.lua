-- args: limit, how long succeeded, failed and cancelled jobs are kept. Answers how many were promoted,
-- the jobs that lapsed, how many were dropped and freed, next due (-1: nothing), now, and the schedules that want planning.

local limit_jobs, keep = args[1], {[SUCCEEDED] = args[2], [FAILED] = args[3], [CANCELLED] = args[4]}
local CHILDREN_MAX, PARENTS_MAX = 2000, 20000

local function promote()
    local promoted = 0
    local found = call("ZRANGEBYSCORE", P .. "due", "-inf", now_ms, "WITHSCORES", "LIMIT", 0, limit_jobs)
    for i = 1, #found, 2 do
        call("ZREM", P .. "due", found[i])
        local j = job.load(sub(found[i], 9))
        if j and j.state == SCHEDULED then
            place.make_ready(j, tonumber(found[i + 1]))
            store.ring_queue(j.queue)
            promoted = promoted + 1
        end
    end
    return promoted
end

-- Lapse what a worker without a lease holds, until `lapsed` has `limit_jobs`.
local function lapse(worker, lapsed)
    local held, most = P .. "held:" .. worker, limit_jobs - #lapsed
    local ids = call("SRANDMEMBER", held, most)
    table.sort(ids)
    for _, id in ipairs(ids) do
        local j = job.load(id)
        if j and running.worker(j) == worker then
            lapsed[#lapsed + 1] = running.lapse(j, "the lease of the worker ran out")
        else
            call("SREM", held, id)
        end
    end
    store.flush(held)
    if call("EXISTS", held) == 0 then
        call("SREM", P .. "holders", worker)
        call("ZREM", P .. "leases", worker)
        call("HDEL", P .. "workers", worker)
    end
end

-- Workers whose lease ran out, and those that hold jobs though nobody knows them.
local function lapse_all()
    local lapsed = {}
    local gone = call("ZRANGEBYSCORE", P .. "leases", "-inf", now_ms)
    for _, worker in ipairs(call("ZDIFF", 2, P .. "holders", P .. "leases")) do
        gone[#gone + 1] = worker
    end
    for _, worker in ipairs(gone) do
        if #lapsed < limit_jobs then
            lapse(worker, lapsed)
        end
    end
    return lapsed
end

-- Drop parents none of whose children lives. The next tick goes on after those that are kept.
local function drop_parents(state, until_ms, most)
    local key, mark = P .. "parents:" .. state, "kept:" .. state
    if call("EXISTS", key) == 0 then
        return 0
    end
    local at = tonumber(call("HGET", KEYS[1], mark) or 0)
    local found = call("ZRANGEBYSCORE", key, "-inf", until_ms, "LIMIT", at, most)
    if #found == 0 and at > 0 then
        at = 0
        found = call("ZRANGEBYSCORE", key, "-inf", until_ms, "LIMIT", 0, most)
    end
    local dropped, budget, looked = 0, CHILDREN_MAX, 0
    for _, id in ipairs(found) do
        if budget <= 0 then
            break
        end
        looked = looked + 1
        local j = job.load(id)
        local kept, cost = false, 1
        if j then
            kept, cost = family.has_live_child(j, budget)
        end
        budget = budget - cost
        if j and not kept then
            family.forget(j)
            dropped = dropped + 1
        elseif not j then
            call("ZREM", key, id)
        end
    end
    local goes_on = at + looked - dropped
    if goes_on > 0 and (looked < #found or #found == most) then
        call("HSET", KEYS[1], mark, goes_on)
    else
        call("HDEL", KEYS[1], mark)
    end
    return dropped
end

local function drop_old()
    local dropped, parents = 0, 0
    for state = SUCCEEDED, CANCELLED do
        local until_ms = now_ms - keep[state]
        if dropped < limit_jobs then
            local key = P .. "ended:" .. state
            for _, id in ipairs(call("ZRANGEBYSCORE", key, "-inf", until_ms, "LIMIT", 0, limit_jobs - dropped)) do
                if parents > PARENTS_MAX then
                    break
                end
                local j = job.load(id)
                if j then
                    parents = parents + family.forget(j)
                    dropped = dropped + 1
                else
                    call("ZREM", key, id)
                end
            end
        end
        if dropped < limit_jobs then
            dropped = dropped + drop_parents(state, until_ms, limit_jobs - dropped)
        end
    end
    return dropped
end

local function ring_openings()
    for _, queue in ipairs(call("ZRANGEBYSCORE", P .. "openings", "-inf", now_ms)) do
        call("ZREM", P .. "openings", queue)
        store.ring_queue(queue)
    end
end

-- Answer in how many ms time has to be moved on again; 0: at once, -1: nothing waits for an instant.
local function next_due_ms()
    if call("EXISTS", P .. "unserved") == 1 then
        return 0
    end
    local first
    for _, name in ipairs({"due", "openings", "slots"}) do
        local at_ms = tonumber(call("ZRANGE", P .. name, 0, 0, "WITHSCORES")[2] or nil)
        if at_ms and (not first or at_ms < first) then
            first = at_ms
        end
    end
    return first and math.max(0, first - now_ms) or -1
end

store.go_on_when_full()
told.is_asked() -- ends the log where nobody did for long
sweep.go_on()
local promoted = promote()
local lapsed = lapse_all()
local dropped = drop_old()
away.forget_old()
local freed = family.serve(limit_jobs)
ring_openings()
limit.forget_full(BATCH_MAX)
local due = {}
for _, name in ipairs(call("ZRANGEBYSCORE", P .. "slots", "-inf", now_ms, "LIMIT", 0, SCHEDULES_A_TICK)) do
    due[#due + 1] = name
    due[#due + 1] = call("HGET", P .. "schedules", name)
end
store.silence("due") -- whoever ticks knows from the answer when the next thing is due
store.finish()
return {promoted, lapsed, dropped, freed, next_due_ms(), now_ms, due}
