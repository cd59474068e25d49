-- args: to, limit, stored or nil, an identity to take. Answers source, number, whether it is the last, jobs and
-- schedules; or {0} where jobs are on their way to another store. A job is its record, its unique rule, and its parents
-- with their ties.

local to, most, stored, new_id = unpack(args, 1, 4)
local CHUNK = 1000

local function answer(batch)
    return {batch.source, batch.number, 0, batch.jobs, batch.schedules}
end

-- Answer the jobs of the next batch: those that wait, then the others in their order of arrival.
local function choose()
    local chosen, bytes, at = {}, 0, 0
    local ids = call("ZRANGE", P .. "state:" .. WAITING, 0, most - 1)
    local waiting = true
    while true do
        for _, id in ipairs(ids) do
            local j = job.load(id)
            if j and j.state ~= RUNNING and (waiting or j.state ~= WAITING) then
                bytes = bytes + call("STRLEN", job.key(id))
                if band(j.traits, HAS_AFTER) > 0 then
                    bytes = bytes + call("STRLEN", P .. "a:" .. id)
                end
                if job.has(j, HAS_ERRORS) then
                    for _, packed in ipairs(call("LRANGE", P .. "e:" .. id, 0, -1)) do
                        bytes = bytes + #packed
                    end
                end
                if job.has(j, HAS_NOTES) then
                    for _, result in ipairs(call("HVALS", P .. "s:" .. id)) do
                        bytes = bytes + #result
                    end
                end
                if #chosen >= most or (#chosen > 0 and bytes > TRANSFER_BYTES_MAX) then
                    return chosen
                end
                chosen[#chosen + 1] = j
            end
        end
        waiting = false
        ids = call("ZRANGE", P .. "all", at, at + CHUNK - 1)
        at = at + CHUNK
        if #ids == 0 then
            return chosen
        end
    end
end

local function tie_of(j, name, because)
    if call("SISMEMBER", P .. "w:" .. j.id, name) == 1 then
        return "waits"
    end
    local parent = job.load(name)
    return because and (name == because or (parent and parent.state > SUCCEEDED)) and "held" or "told"
end

local function depart(j)
    local because = call("HGET", P .. "because", j.id)
    local ties = {}
    for _, name in ipairs(job.after(j)) do
        if job.load(name) or call("SISMEMBER", P .. "w:" .. j.id, name) == 1 then
            ties[#ties + 1] = name
            ties[#ties + 1] = tie_of(j, name, because)
        end
    end
    return {record_of(j, job.whole(j), true), ties}
end

local function forget(j)
    place.leave(j)
    family.strip(j)
    store.ring_job(j.id)
    away.put(j.id, band(j.flags, HAS_CHILDREN), nil)
end

store.go_on_when_full()
local departing = call("GET", P .. "departing")
if departing then
    local batch = cmsgpack.unpack(departing)
    if batch.to ~= to then
        return {0}
    elseif batch.number ~= stored then
        return answer(batch)
    end
    call("DEL", P .. "departing")
end
local source = away.identity(new_id)
local number = tonumber(call("HGET", P .. "transfers", "out:" .. to) or 0) + 1
family.serve(BATCH_MAX)
if call("EXISTS", P .. "unserved") == 1 then -- children to be told yet would wait for a parent that nobody knows
    store.finish()
    return {source, number, 0, {}, {}}
end
local chosen, names = most > 0 and choose() or {}, call("HKEYS", P .. "schedules")
table.sort(names)
local batch = {to = to, source = source, number = math.max(number, now_ms), jobs = {}, schedules = {}}
for i = 1, math.min(#names, most) do
    batch.schedules[i] = call("HGET", P .. "schedules", names[i])
end
if #chosen == 0 and #batch.schedules == 0 then
    local is_last = call("EXISTS", P .. "all", P .. "schedules", P .. "expected") == 0
    store.finish()
    return {source, number, is_last and 1 or 0, {}, {}}
end
for i, j in ipairs(chosen) do
    batch.jobs[i] = depart(j)
end
for _, j in ipairs(chosen) do
    forget(j)
end
for i = 1, #batch.schedules do
    call("HDEL", P .. "schedules", names[i])
    call("ZREM", P .. "slots", names[i])
end
call("HSET", P .. "transfers", "out:" .. to, string.format("%.0f", batch.number))
call("SET", P .. "departing", cmsgpack.pack(batch))
store.finish()
return answer(batch)
