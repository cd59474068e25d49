-- Finding running jobs that are missing among what workers hold: such a one would never lapse. A key may get lost by
-- hand, by a failover, or by eviction (FAILURES B18, B29).
--
-- In KEYS[1]: "swept" the instant it was last looked whether any is missing, "sweep" the seq up to which a round through
-- all jobs has come. There is a round only where the numbers differ.

local sweep = {}
local EVERY_MS, STEP = 60000, 500

-- Tell whether the jobs that run are as many by queue as by worker and by type.
local function adds_up()
    local by_queue, by_worker, by_type = 0, 0, 0
    local counts = call("HGETALL", P .. "counts")
    for i = 1, #counts, 2 do
        if sub(counts[i], -2) == ":" .. RUNNING then
            by_queue = by_queue + tonumber(counts[i + 1])
        end
    end
    for _, worker in ipairs(call("SMEMBERS", P .. "holders")) do
        by_worker = by_worker + call("SCARD", P .. "held:" .. worker)
    end
    local busy = call("HGETALL", P .. "busy")
    for i = 1, #busy, 2 do
        if not string.find(busy[i], ":", 1, true) then -- else of a key
            by_type = by_type + tonumber(busy[i + 1])
        end
    end
    return by_queue == by_worker and by_queue == by_type
end

local function rewrite(key, numbers, is_ours)
    for _, field in ipairs(call("HKEYS", key)) do
        if is_ours(field) and not numbers[field] then
            call("HDEL", key, field)
        end
    end
    for field, number in pairs(numbers) do
        call("HSET", key, field, number)
    end
end

-- Count anew what workers hold, at the end of a round: all that runs is there then.
local function recount()
    local counts, busy = {}, {}
    local function add(numbers, field)
        numbers[field] = (numbers[field] or 0) + 1
    end
    for _, worker in ipairs(call("SMEMBERS", P .. "holders")) do
        for _, id in ipairs(call("SMEMBERS", P .. "held:" .. worker)) do
            local j = job.load(id)
            if j and running.worker(j) == worker then
                add(counts, j.queue .. ":" .. RUNNING)
                add(busy, j.type)
                if j.key then
                    add(busy, j.type .. ":" .. j.key)
                end
            else
                call("SREM", P .. "held:" .. worker, id)
            end
        end
        if call("EXISTS", P .. "held:" .. worker) == 0 then
            call("SREM", P .. "holders", worker)
        end
    end
    rewrite(P .. "counts", counts, function(field)
        return sub(field, -2) == ":" .. RUNNING
    end)
    rewrite(P .. "busy", busy, function()
        return true
    end)
end

-- Look whether anything is missing, once in a while, and go on with a round. Before anything else of a tick.
function sweep.go_on()
    local marks = call("HMGET", KEYS[1], "swept", "sweep")
    local swept, at = tonumber(marks[1] or 0), marks[2]
    if not at then
        if now_ms >= swept and now_ms < swept + EVERY_MS then
            return
        end
        call("HSET", KEYS[1], "swept", now_ms)
        if adds_up() then
            return
        end
        at = "-inf"
    end
    local found = call("ZRANGEBYSCORE", P .. "all", at, "+inf", "WITHSCORES", "LIMIT", 0, STEP)
    for i = 1, #found, 2 do
        local id = found[i]
        local j = job.load(id)
        local worker = j and running.worker(j)
        if worker then
            call("SADD", P .. "held:" .. worker, id)
            call("SADD", P .. "holders", worker)
        elseif not j then
            call("ZREM", P .. "all", id)
        end
        at = "(" .. found[i + 1]
    end
    if #found == 2 * STEP then
        call("HSET", KEYS[1], "sweep", at)
    else
        call("HDEL", KEYS[1], "sweep")
        recount()
    end
end
