-- Answers queue:state -> count, the settings of queues, and for each queue how long its oldest pending job has waited,
-- ms. The oldest is looked for among the best pending jobs: no search holds the server.

local LOOKS_MAX = 1000
local counts = call("HGETALL", P .. "counts")
local queues = {}
for i = 1, #counts, 2 do
    local queue, state = string.match(counts[i], "^(.*):(%d)$")
    if tonumber(state) == PENDING then
        queues[#queues + 1] = queue
    end
end

local function oldest_in(key, most, oldest)
    local members = call("ZRANGE", key, 0, most - 1)
    for _, member in ipairs(members) do
        local j = job.load(sub(member, 9))
        if j and (not oldest or j.due < oldest) then
            oldest = j.due
        end
    end
    return oldest, most - #members
end

local ages = {}
for _, queue in ipairs(queues) do
    local looks = math.max(1, floor(LOOKS_MAX / #queues))
    local oldest
    oldest, looks = oldest_in(P .. "ready:" .. queue, looks, nil)
    for _, job_type in ipairs(call("HKEYS", P .. "lanes:" .. queue)) do
        local names = call("ZRANGE", P .. "asleep:" .. queue .. ":" .. job_type, 0, looks)
        for _, shown in ipairs(call("ZRANGE", P .. "heads:" .. queue .. ":" .. job_type, 0, looks)) do
            names[#names + 1] = sub(shown, 9)
        end
        for _, name in ipairs(names) do
            if looks > 0 then
                oldest, looks = oldest_in(P .. "lane:" .. queue .. ":" .. name, looks, oldest)
            end
        end
    end
    ages[#ages + 1] = queue
    ages[#ages + 1] = oldest and math.max(0, now_ms - oldest) or -1
end
return {counts, call("HGETALL", P .. "settings"), ages}
