-- The jobs that one claim takes from a queue where limits may hold jobs back (decision 10).
--
-- A heap of sources in the order of their best job: the ready set, lanes, and for each type the place among the heads
-- of its lanes up to which they were looked at. So a claim looks at as many lanes as it takes jobs, plus those that are
-- shut.

-- `choice.shut_by_rate`: what was left pending because a rate is spent: type, when that opens (0: of one key), type, ...
local choice = {shut_by_rate = {}}
local CHUNK = 64
local SIFT_MAX = 2000

-- ---- a heap of {rank, seq, ...} ----------------------------------------------------------------------------------

local function before(one, two)
    return one.rank < two.rank or (one.rank == two.rank and one.seq < two.seq)
end

local function push(heap, entry)
    local at = #heap + 1
    heap[at] = entry
    while at > 1 do
        local up = floor(at / 2)
        if not before(entry, heap[up]) then
            break
        end
        heap[at], heap[up] = heap[up], entry
        at = up
    end
end

local function pop(heap)
    local n = #heap
    if n == 0 then
        return nil
    end
    local first, last = heap[1], heap[n]
    heap[n] = nil
    n = n - 1
    if n > 0 then
        local at = 1
        while true do
            local down = at * 2
            if down > n then
                break
            end
            if down < n and before(heap[down + 1], heap[down]) then
                down = down + 1
            end
            if not before(heap[down], last) then
                break
            end
            heap[at] = heap[down]
            at = down
        end
        heap[at] = last
    end
    return first
end

local function seq_of(member)
    return (struct.unpack(">I8", member))
end

-- ---- sifting: jobs into the lanes they belong to since limits changed -----------------------------------------------

-- Sift the first `wanted` of a sorted set until all of them belong there; answers how many moved. `remove` takes out
-- members that stand for no pending job.
local function sift_set(key, wanted, budget, remove)
    local moved = 0
    while moved < budget do
        local before_round, gone = moved, {}
        for _, member in ipairs(call("ZRANGE", key, 0, wanted - 1)) do
            local j = job.load(sub(member, 9))
            if not j or j.state ~= PENDING then
                gone[#gone + 1] = member
            elseif lane.sift(j) then
                moved = moved + 1
            end
        end
        if #gone > 0 then
            remove(gone)
        end
        if moved == before_round then
            break
        end
    end
    return moved
end

-- Sift the lanes of a type; answers how many jobs moved.
local function sift_lanes(queue, job_type, by_key, wanted, budget)
    local moved, heads = 0, lane.heads_key(queue, job_type)
    while moved < budget do
        local before_round = moved
        for _, shown in ipairs(call("ZRANGE", heads, 0, math.max(wanted, CHUNK) - 1)) do
            local name = sub(shown, 9)
            local is_whole = name == job_type .. ":"
            if not by_key or is_whole ~= (by_key == 0) then
                moved = moved + sift_set(lane.key(queue, name), wanted, budget - moved, function(members)
                    lane.remove(queue, job_type, name, members)
                end)
            end
        end
        if moved == before_round then
            break
        end
    end
    return moved
end

-- ---- sources --------------------------------------------------------------------------------------------------------

local function read_chunk(source)
    local found = call("ZRANGE", source.key, source.at, source.at + source.chunk - 1, "WITHSCORES")
    source.entries, source.next = found, 1
    source.at = source.at + #found / 2
end

-- Put a source back at its next entry; one without any stays away.
local function line_up(heap, source)
    if source.next > #source.entries then
        read_chunk(source)
    end
    local member = source.entries[source.next]
    if member then
        source.member, source.rank, source.seq = member, tonumber(source.entries[source.next + 1]), seq_of(member)
        push(heap, source)
    end
end

local function advance(heap, source)
    source.next = source.next + 2
    line_up(heap, source)
end

local function shut_gate(gates)
    for _, gate in ipairs(gates) do
        if gate.room <= 0 then
            return gate
        end
    end
    return nil
end

-- Take the best job of a source; false: it is not there any more, nil: it is to be sifted first, by the next claim.
local function start(source, taken)
    local j = job.load(sub(source.member, 9))
    local is_there = j and j.state == PENDING and not j.is_taken
    if is_there and lane.wanted(j) ~= lane.of(j) then
        return nil
    end
    if is_there then
        j.is_taken = true
        taken[#taken + 1] = j
    end
    source.gone[#source.gone + 1] = source.member
    return is_there or false
end

local function open_lane(queue, marker, wanted)
    local name = sub(marker.member, 9)
    local key = sub(name, #marker.type + 2)
    return {
        key = lane.key(queue, name), name = name, type = marker.type, at = 0, chunk = math.min(wanted, CHUNK),
        entries = {}, next = 1, gone = {}, gates = limit.gates(marker.type, key ~= "" and key or nil),
    }
end

local function note_shut(job_type, at_ms)
    local noted = choice.shut_by_rate
    noted[#noted + 1] = job_type
    noted[#noted + 1] = string.format("%.0f", at_ms)
end

-- Take from a lane whose turn it is, unless a gate is shut.
local function take_from_lane(heap, source, taken, shut)
    local gate = shut_gate(source.gates)
    if gate then
        local at_ms = limit.opens(gate)
        if gate.name == source.type then
            shut[source.type] = true
            if at_ms then
                note_shut(source.type, at_ms)
            end
        else
            source.sleeps_until = at_ms
            if at_ms then
                note_shut(source.type, 0)
            end
        end
        return
    end
    local started = start(source, taken)
    if started then
        for _, each in ipairs(source.gates) do
            each.room = each.room - 1
            each.used = each.used + 1
        end
    end
    if started ~= nil then
        advance(heap, source)
    end
end

-- ---- the claim ------------------------------------------------------------------------------------------------------

-- Sift what this claim may meet, and answer the types with lanes; rings the queue where there is more to sift.
local function prepare(queue, wanted)
    local types, left = {}, SIFT_MAX
    local found = call("HGETALL", P .. "lanes:" .. queue)
    for i = 1, #found, 2 do
        local by_key = tonumber(call("HGET", P .. "limited", found[i]) or nil)
        left = left - sift_lanes(queue, found[i], by_key, wanted, left)
    end
    left = left - sift_set(P .. "ready:" .. queue, wanted, left, function(members)
        call("ZREM", P .. "ready:" .. queue, unpack(members))
    end)
    if left <= 0 then
        store.ring_queue(queue)
    end
    found = call("HGETALL", P .. "lanes:" .. queue)
    for i = 1, #found, 2 do
        types[#types + 1] = found[i]
    end
    table.sort(types)
    return types
end

-- Look again at the lanes whose rate lets a job start; at all of them if the clock was set back.
local function wake(queue, types)
    if #types == 0 then
        return
    end
    local woken = tonumber(call("HGET", P .. "woken", queue) or 0)
    for _, job_type in ipairs(types) do
        lane.wake(queue, job_type, now_ms < woken and "+inf" or now_ms)
    end
    if now_ms < woken then -- else it stays when the last lane was put to sleep: an empty claim writes nothing
        call("HSET", P .. "woken", queue, now_ms)
    end
end

local function leave_lane(queue, source)
    lane.remove(queue, source.type, source.name, source.gone)
    if source.sleeps_until then
        lane.sleep(queue, source.type, source.name, source.sleeps_until)
    end
end

local function note_opening(queue)
    local at_ms = limit.use()
    if at_ms then
        local known = tonumber(call("ZSCORE", P .. "openings", queue) or nil)
        if not known or at_ms < known or known <= now_ms then
            call("ZADD", P .. "openings", at_ms, queue)
            store.ring("due")
        end
    end
end

-- Take up to `wanted` jobs of a queue, best first, of about so many bytes, and note what their starts use up.
function choice.take(queue, wanted, bytes)
    store.go_on_when_full()
    local types = prepare(queue, wanted)
    wake(queue, types)
    local heap, taken, lanes, shut = {}, {}, {}, {}
    local ready = {key = P .. "ready:" .. queue, at = 0, chunk = wanted, entries = {}, next = 1, gone = {}}
    line_up(heap, ready)
    for _, job_type in ipairs(types) do
        line_up(heap, {
            key = lane.heads_key(queue, job_type), type = job_type, marks = true,
            at = 0, chunk = CHUNK, entries = {}, next = 1,
        })
    end
    while #taken < wanted and bytes > 0 do
        local source, count = pop(heap), #taken
        if not source then
            break
        end
        if source == ready then
            if start(ready, taken) ~= nil then
                advance(heap, ready)
            end
        elseif not shut[source.type] then
            if source.marks then
                local name = sub(source.member, 9)
                if lane.correct(queue, source.type, name, source.member) then
                    store.ring_queue(queue) -- what moved among the heads may have been passed over
                elseif not lanes[name] then
                    local opened = open_lane(queue, source, wanted)
                    lanes[#lanes + 1] = opened
                    lanes[name] = opened
                    line_up(heap, opened)
                end
                advance(heap, source)
            else
                take_from_lane(heap, source, taken, shut)
            end
        end
        bytes = bytes - (#taken > count and taken[#taken].result_at or 0)
    end
    for i = 1, #ready.gone, MOST_ARGUMENTS do
        call("ZREM", ready.key, unpack(ready.gone, i, math.min(#ready.gone, i + MOST_ARGUMENTS - 1)))
    end
    for _, j in ipairs(taken) do
        if j.key then
            place.leave_turn(j, true)
        end
    end
    for _, source in ipairs(lanes) do
        leave_lane(queue, source)
    end
    note_opening(queue)
    return taken
end
