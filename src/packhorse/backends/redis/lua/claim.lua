-- args: queues, limit, lease_ms, worker, token (8 bytes), what is known of the worker. Answers the jobs' strings as
-- they were before, each after its id; then, after an empty id, what a spent rate left pending (choice.lua), if anything.
-- An empty claim writes nothing: an idle worker costs its server no writes.

local queues, wanted, lease_ms, worker, token, info = unpack(args, 1, 6)

local texts = {} -- id -> the job's string

-- Load jobs as a whole: their strings are the answer.
local function load_whole(ids)
    local keys = {"MGET"}
    for i, id in ipairs(ids) do
        keys[i + 1] = P .. "j:" .. id
    end
    for i, text in ipairs(call(unpack(keys))) do
        if text then
            local id = ids[i]
            texts[id] = text
            if not job.known(id) then
                job.parse(id, text)
            end
        end
    end
end

-- Jobs are taken a few at a time, until there are enough or they are too many bytes for one answer.
local ROUND, BYTES_MAX = 64, 16777216
local bytes = 0

-- Take from a queue where no limit holds anything back.
local function take_plain(queue, most)
    local taken = {}
    while #taken < most and bytes < BYTES_MAX do
        local popped, ids = call("ZPOPMIN", P .. "ready:" .. queue, math.min(ROUND, most - #taken)), {}
        if #popped == 0 then
            break
        end
        for i = 1, #popped, 2 do
            ids[#ids + 1] = sub(popped[i], 9)
        end
        load_whole(ids)
        for _, id in ipairs(ids) do
            local j = job.known(id)
            if j and j.state == PENDING then
                taken[#taken + 1] = j
                bytes = bytes + j.result_at
                if j.key then
                    place.leave_turn(j, true)
                end
            end
        end
    end
    return taken
end

-- Take from a queue where limits may hold jobs back.
local function take_limited(queue, most)
    local taken, ids = choice.take(queue, most, BYTES_MAX - bytes), {}
    for i, j in ipairs(taken) do
        ids[i] = j.id
        bytes = bytes + j.result_at
    end
    if #ids > 0 then
        load_whole(ids)
    end
    return taken
end

local claimed, n = {}, 0
local limits_exist = call("EXISTS", P .. "limited") == 1
for _, queue in ipairs(queues) do
    local most = wanted - n
    if most > 0 and bytes < BYTES_MAX and not store.settings(queue) then
        local laned = limits_exist or call("EXISTS", P .. "lanes:" .. queue) == 1
        for _, j in ipairs(laned and take_limited(queue, most) or take_plain(queue, most)) do
            job.move(j, RUNNING)
            j.attempt = j.attempt + 1
            j.started = now_ms
            running.count(j, 1)
            n = n + 1
            claimed[n] = j
        end
    end
end
local answer, held, tail = {}, P .. "held:" .. worker, token .. worker
if #choice.shut_by_rate > 0 then
    answer[2 * n + 1], answer[2 * n + 2] = "", choice.shut_by_rate
end
if n == 0 then
    store.finish()
    return answer
end

for i, j in ipairs(claimed) do
    local id = j.id
    answer[2 * i - 1] = id
    answer[2 * i] = texts[id]
    job.set_tail(j, tail)
    store.later("SADD", held, id)
end
call("SADD", P .. "holders", worker)
call("ZADD", P .. "leases", now_ms + lease_ms, worker)
call("HSETNX", P .. "workers", worker, info)
store.finish()
return answer
