-- args: what to look for (states as bits), by name. Answers seq and record of each, and where to go on: a seq, false
-- where all was looked at. Looks at a bounded number of jobs and bytes, so that no search holds the server: the caller
-- asks again.

local LOOKS_MAX, BYTES_MAX, FEW = 2000, 4000000, 500
local q = args
local states, cursor, oldest_first = q.states, q.cursor, q.oldest

-- ---- what is looked through -----------------------------------------------------------------------------------------

local function order(one, two)
    if oldest_first then
        return one[1] < two[1]
    end
    return one[1] > two[1]
end

local function beyond(seq)
    return not cursor or (oldest_first and seq > cursor) or (not oldest_first and seq < cursor)
end

-- Answer {seq, id} of the next jobs of an index by seq.
local function walk(key)
    local command, start, stop = "ZREVRANGEBYSCORE", "+inf", "-inf"
    if oldest_first then
        command, start, stop = "ZRANGEBYSCORE", "-inf", "+inf"
    end
    local found = call(command, key, cursor and "(" .. cursor or start, stop, "WITHSCORES", "LIMIT", 0, LOOKS_MAX)
    local list = {}
    for i = 1, #found, 2 do
        list[#list + 1] = {tonumber(found[i + 1]), found[i]}
    end
    return list, #list == LOOKS_MAX
end

-- Answer {seq, id} of jobs in states that have an index of their own or are few now; nil: they are not.
local function gather()
    local list, cut = {}, nil
    if states == 0 or band(states, 4 + 16) > 0 then -- pending and succeeded ones are mostly many
        return nil
    end
    for _, state in ipairs({WAITING, FAILED, CANCELLED}) do
        if band(states, bit.lshift(1, state - 1)) > 0 then
            local part, more = walk(P .. "state:" .. state)
            for _, entry in ipairs(part) do
                list[#list + 1] = entry
            end
            local last = more and part[#part]
            if last and (not cut or order(last, cut)) then
                cut = last
            end
        end
    end
    if band(states, 2) > 0 then
        if call("ZCARD", P .. "due") > FEW then
            return nil
        end
        for _, member in ipairs(call("ZRANGE", P .. "due", 0, -1)) do
            list[#list + 1] = {(struct.unpack(">I8", member)), sub(member, 9)}
        end
    end
    if band(states, 8) > 0 then
        local count = 0
        for _, worker in ipairs(call("SMEMBERS", P .. "holders")) do
            count = count + call("SCARD", P .. "held:" .. worker)
            if count > FEW then
                return nil
            end
            for _, id in ipairs(call("SMEMBERS", P .. "held:" .. worker)) do
                local j = job.load(id)
                list[#list + 1] = {j and j.seq or 0, id}
            end
        end
    end
    table.sort(list, order)
    local inside = {}
    for _, entry in ipairs(list) do
        if beyond(entry[1]) and not (cut and order(cut, entry)) then
            inside[#inside + 1] = entry
        end
    end
    return inside, cut ~= nil
end

local function source()
    if q.workflow then
        return walk(P .. "jobs_of:" .. q.workflow)
    elseif q.schedule then
        return walk(P .. "slots_of:" .. q.schedule)
    end
    local list, more = gather()
    if list then
        return list, more
    end
    return walk(P .. "all")
end

-- ---- what is looked for ---------------------------------------------------------------------------------------------

local function has_tag(j)
    local body = cmsgpack.unpack(call("GETRANGE", job.key(j.id), j.body_at, j.payload_at - 1))
    for _, tag in ipairs(body[2] or {}) do
        if tag == q.tag then
            return true
        end
    end
    return false
end

local function matches(j)
    return (states == 0 or band(states, bit.lshift(1, j.state - 1)) > 0)
        and (not q.queue or j.queue == q.queue)
        and (not q.type or j.type == q.type)
        and (not q.key or j.key == q.key)
        and (not q.workflow or j.workflow == q.workflow)
        and (not q.schedule or j.schedule == q.schedule)
        and (not q.from_ms or j.created >= q.from_ms)
        and (not q.before_ms or j.created < q.before_ms)
        and (not q.tag or has_tag(j))
end

local list, more = source()
local found, bytes, last = {}, 0, nil
for i, entry in ipairs(list) do
    local j = job.load(entry[2])
    last = entry[1]
    if j and matches(j) then
        local text = q.brief and call("GETRANGE", job.key(j.id), 0, j.payload_at - 1) or call("GET", job.key(j.id))
        local record = record_of(j, text, false)
        found[#found + 1] = {j.seq, record}
        bytes = bytes + bytes_of(record)
        if #found >= q.limit or bytes > BYTES_MAX then
            more = more or i < #list
            break
        end
    end
end
return {found, more and last or false}
