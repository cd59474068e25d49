-- args: what was read before, as name, value or false, ...; and what it becomes, as name, value or false, is by key,
-- ... Answers {0} where somebody else changed one of them meanwhile, else 1 and all limits.

local read, changed = args[1], args[2]
if #changed > 0 then
    store.go_on_when_full()
end

for i = 1, #read, 2 do
    if call("HGET", P .. "limits", read[i]) ~= read[i + 1] then
        return {0}
    end
end

-- Count the limits of a type that are by key; a type without any limit is not limited.
local function recount(job_type, was, is, by_key)
    local key = P .. "limited"
    local found = call("HGET", key, job_type)
    local whole = call("HEXISTS", P .. "limits", job_type) == 1
    local count = tonumber(found or 0)
    if by_key then
        count = count + (is and 1 or 0) - (was and 1 or 0)
    end
    if count > 0 or whole then
        call("HSET", key, job_type, count)
    else
        call("HDEL", key, job_type)
    end
end

for i = 1, #changed, 4 do
    local name, value, by_key, job_type = changed[i], changed[i + 1], changed[i + 2], changed[i + 3]
    local was = call("HEXISTS", P .. "limits", name) == 1
    if value then
        call("HSET", P .. "limits", name, value)
    elseif was then
        call("HDEL", P .. "limits", name)
        limit.drop_bucket(name)
    end
    recount(job_type, was, value, by_key)
end

if #changed > 0 then
    for _, queue in ipairs(call("SMEMBERS", P .. "laned")) do
        for _, job_type in ipairs(call("HKEYS", P .. "lanes:" .. queue)) do
            lane.wake(queue, job_type, "+inf")
        end
    end
    local counts = call("HGETALL", P .. "counts")
    for i = 1, #counts, 2 do
        local queue, state = string.match(counts[i], "^(.*):(%d)$")
        if tonumber(state) == PENDING then
            store.ring_queue(queue)
        end
    end
end
store.finish()
return {1, now_ms, call("HGETALL", P .. "limits")}
