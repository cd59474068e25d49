-- Where a job waits: in the due set, in its queue's ready set, or in a lane of a limited type (decisions 4, 9, 10).
--
-- "due" all scheduled jobs by instant; "ready:<queue>" pending jobs by rank; "lane:<queue>:<lane>" those of limited
-- types; "turns:<queue>:<priority>:<key>" turns of pending jobs with a key; "fair:<queue>" how far the keys of a queue
-- have come.

local place = {}
local lane = {}

-- ---- lanes -------------------------------------------------------------------------------------------------

local limited = {}

-- Answer the lane a job belongs into, as bits: 0 where no limit can hold it back.
function lane.wanted(j)
    local by_key = limited[j.type]
    if by_key == nil then
        by_key = tonumber(call("HGET", P .. "limited", j.type) or false) or false
        limited[j.type] = by_key
    end
    if not by_key then
        return 0
    end
    return by_key > 0 and j.key and LANE_OF_KEY or LANE_OF_TYPE
end

function lane.of(j)
    return band(j.flags, LANE_BITS)
end

function lane.name(j)
    return lane.of(j) == LANE_OF_KEY and j.type .. ":" .. j.key or j.type .. ":"
end

function lane.key(queue, name)
    return P .. "lane:" .. queue .. ":" .. name
end

function lane.heads_key(queue, job_type)
    return P .. "heads:" .. queue .. ":" .. job_type
end

function lane.asleep_key(queue, job_type)
    return P .. "asleep:" .. queue .. ":" .. job_type
end

-- Answer the member and the score of a lane's best job; nil: it is empty.
function lane.head(queue, name)
    local found = call("ZRANGE", lane.key(queue, name), 0, 0, "WITHSCORES")
    return found[1], tonumber(found[2])
end

-- Put a lane in its place among the heads, where it stood for a job that is not its best one any more.
function lane.correct(queue, job_type, name, marker)
    local is, rank = lane.head(queue, name)
    if is and sub(is, 1, 8) == sub(marker, 1, 8) then
        return false
    end
    lane.line_up(queue, job_type, name, marker, is, rank)
    return true
end

-- What stands for a lane among the heads of its type: by rank, and by seq where ranks are equal.
local function shown(member, name)
    return sub(member, 1, 8) .. name
end

-- Line a lane up by its best job, which was another before. `was` and `is` are members, nil where it was or is empty.
function lane.line_up(queue, job_type, name, was, is, rank)
    if was == is then
        return
    end
    local heads = lane.heads_key(queue, job_type)
    local asleep = call("ZSCORE", lane.asleep_key(queue, job_type), name)
    if was then
        call("ZREM", heads, shown(was, name))
    end
    if is and not asleep then
        call("ZADD", heads, rank, shown(is, name))
    elseif asleep and not is then
        call("ZREM", lane.asleep_key(queue, job_type), name)
    end
end

-- Leave a lane out of the heads until its rate lets a job start.
function lane.sleep(queue, job_type, name, until_ms)
    local member = lane.head(queue, name)
    if member then
        call("ZREM", lane.heads_key(queue, job_type), shown(member, name))
        call("ZADD", lane.asleep_key(queue, job_type), until_ms, name)
        call("HSET", P .. "woken", queue, now_ms)
    end
end

-- Look again at the lanes of a type that sleep, up to those of an instant.
function lane.wake(queue, job_type, until_ms)
    local asleep = lane.asleep_key(queue, job_type)
    for _, name in ipairs(call("ZRANGEBYSCORE", asleep, "-inf", until_ms)) do
        call("ZREM", asleep, name)
        local member, rank = lane.head(queue, name)
        if member then
            call("ZADD", lane.heads_key(queue, job_type), rank, shown(member, name))
        end
    end
end

function lane.count(queue, job_type, change)
    local key = P .. "lanes:" .. queue
    if call("HINCRBY", key, job_type, change) == 0 then
        call("HDEL", key, job_type)
        if call("EXISTS", key) == 0 then
            call("SREM", P .. "laned", queue)
            call("HDEL", P .. "woken", queue)
        end
    elseif change > 0 then
        call("SADD", P .. "laned", queue)
    end
end

-- Take members out of a lane; it is lined up by what is best there then. Answers how many were there.
function lane.remove(queue, job_type, name, members)
    if #members == 0 then
        return 0
    end
    local was, gone = lane.head(queue, name), 0
    for i = 1, #members, MOST_ARGUMENTS do
        gone = gone + call("ZREM", lane.key(queue, name), unpack(members, i, math.min(#members, i + MOST_ARGUMENTS - 1)))
    end
    if gone > 0 then
        local is, rank = lane.head(queue, name)
        lane.line_up(queue, job_type, name, was, is, rank)
        lane.count(queue, job_type, -gone)
    end
    return gone
end

-- ---- places in a queue ---------------------------------------------------------------------------------------

local function enter(j)
    local bits = lane.of(j)
    if bits == 0 then
        store.later("ZADD", store.key("ready:", j.queue), j.rank, job.member(j))
        return
    end
    local name = lane.name(j)
    local was = lane.head(j.queue, name)
    call("ZADD", lane.key(j.queue, name), j.rank, job.member(j))
    local is, rank = lane.head(j.queue, name)
    lane.line_up(j.queue, j.type, name, was, is, rank)
    lane.count(j.queue, j.type, 1)
end

local function leave(j)
    if lane.of(j) == 0 then
        local ready = P .. "ready:" .. j.queue
        store.flush(ready)
        call("ZREM", ready, job.member(j))
        return
    end
    lane.remove(j.queue, j.type, lane.name(j), {job.member(j)})
end

-- Bring a pending job into the lane it belongs to now; answers whether it stood elsewhere.
function lane.sift(j)
    local wanted = lane.wanted(j)
    if wanted == lane.of(j) then
        return false
    end
    leave(j)
    j.flags = j.flags - lane.of(j) + wanted
    enter(j)
    store.flush(P .. "ready:" .. j.queue)
    job.save(j)
    return true
end

-- ---- turns ---------------------------------------------------------------------------------------------------

local fairs = {}

local function fair(queue)
    local found = fairs[queue]
    if not found then
        local values = call("HMGET", P .. "fair:" .. queue, "keyed", "front")
        found = {keyed = tonumber(values[1] or 0), front = tonumber(values[2] or nil)}
        fairs[queue] = found
    end
    return found
end

local function turns_key(j)
    return P .. "turns:" .. j.queue .. ":" .. j.priority .. ":" .. j.key
end

-- Answer the turn of a job with a key that becomes ready: packhorse.job.fair_turn.
local function take_turn(j, at_ms)
    local queue, turn_ms = fair(j.queue), at_ms
    local key = turns_key(j)
    if queue.front then
        local last = call("ZREVRANGE", key, 0, 0, "WITHSCORES")[2]
        turn_ms = queue.front
        if last and tonumber(last) + 1 > turn_ms then
            turn_ms = tonumber(last) + 1
        end
        if turn_ms > at_ms + AGEING_MS then
            turn_ms = at_ms + AGEING_MS
        end
    end
    call("ZADD", key, turn_ms, job.member(j))
    if queue.keyed == 0 then
        queue.front = turn_ms
    end
    queue.keyed = queue.keyed + 1
    queue.changed = true
    return turn_ms
end

-- Give up the turn of a job with a key that is pending no more.
function place.leave_turn(j, claimed)
    local queue = fair(j.queue)
    call("ZREM", turns_key(j), job.member(j))
    queue.keyed = queue.keyed - 1
    queue.changed = true
    if queue.keyed <= 0 then
        queue.keyed = 0
        queue.front = nil
    elseif claimed and queue.front then
        queue.front = math.max(queue.front, j.rank - j.priority * AGEING_MS)
    end
end

finishers[#finishers + 1] = function()
    for name, queue in pairs(fairs) do
        if queue.keyed == 0 then
            call("DEL", P .. "fair:" .. name)
        elseif queue.changed then
            call("HSET", P .. "fair:" .. name, "keyed", queue.keyed, "front", queue.front)
        end
    end
end

-- ---- moves ---------------------------------------------------------------------------------------------------

-- Make a job pending since `at_ms`, at its place in its queue.
function place.make_ready(j, at_ms)
    j.due = at_ms
    j.flags = j.flags - lane.of(j) + lane.wanted(j)
    j.rank = (j.key and take_turn(j, at_ms) or at_ms) + j.priority * AGEING_MS
    job.move(j, PENDING)
    enter(j)
end

-- Make a job scheduled, or pending where there is no delay.
function place.start_over(j, delay_ms)
    if delay_ms <= 0 then
        place.make_ready(j, now_ms)
        store.ring_queue(j.queue)
        return
    end
    j.due = now_ms + delay_ms
    job.move(j, SCHEDULED)
    store.later("ZADD", P .. "due", j.due, job.member(j))
    store.ring("due")
end

-- Void a job's place, for it is about to leave its state.
function place.leave(j)
    if j.state == PENDING then
        leave(j)
        if j.key then
            place.leave_turn(j, false)
        end
    elseif j.state == SCHEDULED then
        store.flush(P .. "due")
        call("ZREM", P .. "due", job.member(j))
    end
end
