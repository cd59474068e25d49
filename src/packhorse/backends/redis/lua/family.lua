-- How a job ends, and what becomes of its children and its unique key (decision 11).
--
-- "c:<job>" its children by seq; "k:<job>" those of them that have not heard yet that it ended, and "unserved" the jobs
-- with such; "a:<job>" its parents as named, "w:<job>" those of them that have not ended; "because" child -> the parent
-- it was cancelled because of; "unique" queue and key -> ids of the jobs that took it, the last one last.

local family = {}
local unique = {}

-- ---- unique keys -----------------------------------------------------------------------------------------------

local function takers(queue, text)
    local found = call("HGET", P .. "unique", queue .. ":" .. text)
    return found and cmsgpack.unpack(found) or {}
end

local function write_takers(queue, text, ids)
    if #ids > 0 then
        call("HSET", P .. "unique", queue .. ":" .. text, cmsgpack.pack(ids))
    else
        call("HDEL", P .. "unique", queue .. ":" .. text)
    end
end

-- packhorse.backends.rules.holds_key
function unique.holds(states, for_ms, state, created_ms)
    return band(states, bit.lshift(1, state - 1)) > 0 or now_ms < created_ms + for_ms
end

-- Answer the job that holds a key: the last that took it, or an earlier one that came back to a state.
function unique.holder(queue, text)
    local ids = takers(queue, text)
    for i = #ids, 1, -1 do
        local j = job.load(ids[i])
        if j and j.state ~= AWAY and j.unique == text and j.queue == queue
            and unique.holds(j.unique_states, j.unique_ms, j.state, j.created) then
            return j
        end
    end
    return nil
end

-- Note who took a key. Those that ended are forgotten: they come back by a rerun only, which takes it anew.
function unique.take(queue, text, id)
    local ids = {}
    for _, other in ipairs(takers(queue, text)) do
        local j = other ~= id and job.load(other)
        if j and j.state ~= AWAY and j.state <= RUNNING then
            ids[#ids + 1] = other
        end
    end
    ids[#ids + 1] = id
    write_takers(queue, text, ids)
end

-- Forget that a job took a key.
function unique.drop(queue, text, id)
    local ids = {}
    for _, other in ipairs(takers(queue, text)) do
        if other ~= id then
            ids[#ids + 1] = other
        end
    end
    write_takers(queue, text, ids)
end

-- Tell whether another job holds the key that this one would have in `queue`.
function unique.is_taken(j, queue)
    local holder = j.unique and unique.holder(queue, j.unique)
    return holder ~= nil and holder ~= false and holder.id ~= j.id
end

-- ---- ends --------------------------------------------------------------------------------------------------------

-- Those with children go last, and only once these have ended: they are kept apart.
function family.ended_key(j)
    return store.key(job.has(j, HAS_CHILDREN) and "parents:" or "ended:", j.state)
end

-- Line a job up among those whose children are to be told, in the order in which they ended.
function family.line_up(id, state)
    call("ZADD", P .. "unserved", call("HINCRBY", KEYS[1], "ends", 1) * 8 + state, id)
end

-- Note that the children of a job are to be told that it ended in a state.
function family.tell(j, state)
    if job.has(j, HAS_CHILDREN) and call("EXISTS", P .. "c:" .. j.id) == 1 then
        local untold = P .. "k:" .. j.id
        call("ZUNIONSTORE", untold, 2, untold, P .. "c:" .. j.id)
        call("DEL", P .. "c:" .. j.id)
        family.line_up(j.id, state)
    end
end

-- End a job in a terminal state. Its children hear of it in `serve`.
function family.finish(j, state)
    place.leave(j)
    j.finished = now_ms
    job.move(j, state)
    if band(j.traits, HAS_AFTER) > 0 then
        call("DEL", P .. "w:" .. j.id)
    end
    store.later("ZADD", family.ended_key(j), now_ms, j.id)
    family.tell(j, state)
end

-- Take an ended job out of what is kept for ended jobs.
function family.unfinish(j)
    local key = family.ended_key(j)
    store.flush(key)
    call("ZREM", key, j.id)
    if call("EXISTS", P .. "because") == 1 then
        call("HDEL", P .. "because", j.id)
    end
end

-- Let a parent know a child.
function family.adopt(parent, child)
    if not job.has(parent, HAS_CHILDREN) then
        if parent.state > RUNNING then
            local key = family.ended_key(parent)
            store.flush(key)
            call("ZREM", key, parent.id)
            job.set(parent, HAS_CHILDREN, true)
            store.later("ZADD", family.ended_key(parent), parent.finished, parent.id)
        else
            job.set(parent, HAS_CHILDREN, true)
        end
        job.save(parent)
    end
    call("ZADD", P .. "c:" .. parent.id, child.seq, child.id)
    call("HDEL", P .. "lives", parent.id)
end

-- Make a job wait for those of its parents that have not ended; answers whether there are any. `known`: they know it.
function family.wait(j, known)
    local key, waits = P .. "w:" .. j.id, false
    call("DEL", key)
    for _, name in ipairs(job.after(j)) do
        local parent = job.load(name)
        if parent and parent.state <= RUNNING then
            if not known then
                family.adopt(parent, j) -- it may have been deleted and enqueued anew
            end
            store.later("SADD", key, name)
            waits = true
        elseif parent and not known then
            call("HDEL", P .. "lives", name)
        end
    end
    store.flush(key)
    if waits then
        job.move(j, WAITING)
    end
    return waits
end

-- The history entry is made into words by packhorse.backends.rules, above.
function family.cancel_for_parent(j, parent, state)
    job.add_error(j, cmsgpack.pack({"parent", parent, state, now_ms}))
    store.ring_job(j.id)
    family.finish(j, CANCELLED)
    call("HSET", P .. "because", j.id, parent)
end

local function parent_ended(id, parent, state)
    local child = job.load(id)
    if not child or child.state ~= WAITING or call("SREM", P .. "w:" .. id, parent) == 0 then
        return
    end
    if state ~= SUCCEEDED and band(child.traits, CONTINUES) == 0 then
        family.cancel_for_parent(child, parent, state)
    elseif call("EXISTS", P .. "w:" .. id) == 0 then
        place.start_over(child, child.due - child.created)
    end
end

-- Tell the children of ended jobs, at most `budget` of them; answers how many were told.
function family.serve(budget)
    local served = 0
    while served < budget do
        local first = call("ZRANGE", P .. "unserved", 0, 0, "WITHSCORES")
        local parent = first[1]
        if not parent then
            return served
        end
        local state = tonumber(first[2]) % 8
        local untold = P .. "k:" .. parent
        local children = call("ZPOPMIN", untold, budget - served)
        local is_there = job.load(parent) ~= nil
        for i = 1, #children, 2 do
            if is_there then
                call("ZADD", P .. "c:" .. parent, children[i + 1], children[i])
            end
            served = served + 1
            parent_ended(children[i], parent, state)
        end
        if call("EXISTS", untold) == 0 then
            call("ZREM", P .. "unserved", parent)
        end
    end
    if call("EXISTS", P .. "unserved") == 1 then
        store.ring("due")
    end
    return served
end

-- ---- starting over -------------------------------------------------------------------------------------------------

-- Let the children that have not heard of its end wait for a job that starts over.
function family.take_back(j)
    if job.has(j, HAS_CHILDREN) and call("ZREM", P .. "unserved", j.id) == 1 then
        local children, untold = P .. "c:" .. j.id, P .. "k:" .. j.id
        call("ZUNIONSTORE", children, 2, children, untold)
        call("DEL", untold)
    end
end

local function is_held(child)
    for _, name in ipairs(job.after(child)) do
        local parent = job.load(name)
        if parent and parent.state > SUCCEEDED then
            return true
        end
    end
    return child.unique and unique.is_taken(child, child.queue)
end

-- Answer the ids of a job's children, those first that know of its end or need not.
function family.children(j)
    if not job.has(j, HAS_CHILDREN) then
        return {}
    end
    local ids = call("ZRANGE", P .. "c:" .. j.id, 0, -1)
    for _, id in ipairs(call("ZRANGE", P .. "k:" .. j.id, 0, -1)) do
        ids[#ids + 1] = id
    end
    return ids
end

-- Let the children that were cancelled because of a parent wait for it again, and theirs in turn.
function family.revive(parent)
    local revived, at = {parent}, 1
    while revived[at] do
        for _, id in ipairs(family.children(revived[at])) do
            local child = job.load(id)
            local because = child and child.state == CANCELLED and call("HGET", P .. "because", id)
            local cause = because and job.load(because)
            if cause and cause.state ~= AWAY and not is_held(child) then
                if child.unique then
                    unique.take(child.queue, child.unique, id)
                end
                family.unfinish(child)
                child.finished = 0
                family.take_back(child)
                if not family.wait(child) then
                    place.start_over(child, child.due - child.created)
                end
                revived[#revived + 1] = child
            end
        end
        at = at + 1
    end
end

-- ---- going ---------------------------------------------------------------------------------------------------------

-- Tell whether a job must be kept because a child of it has not ended: "lives" knows one that had not, so that all
-- children are looked at once and not at every tick. Looks at most at `budget` and says how many that were. A child in
-- another store may come back to a job that is here; where neither is here, none needs the other.
function family.has_live_child(j, budget)
    if call("EXISTS", P .. "k:" .. j.id) == 1 then
        return true, 1
    end
    local from = call("HGET", P .. "lives", j.id) or "-inf"
    local children = call("ZRANGEBYSCORE", P .. "c:" .. j.id, from, "+inf", "LIMIT", 0, budget)
    for i, id in ipairs(children) do
        local child = job.load(id)
        if child and child.state <= RUNNING and (child.state ~= AWAY or j.state ~= AWAY) then
            call("HSET", P .. "lives", j.id, child.seq)
            return true, i
        end
    end
    if #children == budget then -- go on there at the next tick
        local last = job.load(children[#children])
        call("HSET", P .. "lives", j.id, last and last.seq or "-inf")
        return true, budget
    end
    return false, #children
end

-- Take a job that does not run out of all indexes, and remove what is kept beside it but its children.
function family.strip(j)
    local id = j.id
    family.unfinish(j)
    call("DEL", P .. "e:" .. id, P .. "x:" .. id, P .. "s:" .. id, P .. "a:" .. id, P .. "w:" .. id)
    store.later("ZREM", store.key("all", ""), id)
    if j.unique then
        unique.drop(j.queue, j.unique, id)
    end
    if j.workflow then
        call("ZREM", P .. "jobs_of:" .. j.workflow, id)
        if call("EXISTS", P .. "jobs_of:" .. j.workflow) == 0 then
            call("ZREM", P .. "flows", j.workflow)
        end
    end
    if j.schedule then
        call("ZREM", P .. "slots_of:" .. j.schedule, id)
    end
    job.recount(j, j.state, nil)
end

-- Remove a job that does not run. For its children it counts as cancelled if it had not ended. Answers from how many
-- parents it had to be taken.
function family.forget(j)
    local id = j.id
    if j.state <= RUNNING then
        family.finish(j, CANCELLED)
    end
    local parents = job.after(j)
    for _, name in ipairs(parents) do
        if call("ZREM", P .. "c:" .. name, id) == 0 then
            call("ZREM", P .. "k:" .. name, id)
        end
    end
    family.strip(j)
    if job.has(j, HAS_CHILDREN) then
        call("DEL", P .. "c:" .. id)
        call("HDEL", P .. "lives", id)
    end
    call("DEL", job.key(id))
    job.gone(j)
    told.note(id, 0)
    return #parents
end
