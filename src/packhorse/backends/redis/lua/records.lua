-- All that is kept of a job, for `get` and `find`: its string, who holds it, errors, parents, how many of those have
-- not ended, progress and note, and, if asked for, steps. False stands for what there is not.

local function record_of(j, text, with_steps)
    local id = j.id
    local held = j.state == RUNNING and job.tail(j)
    local errors = job.has(j, HAS_ERRORS) and call("LRANGE", P .. "e:" .. id, 0, -1)
    local after, waits = false, 0
    if band(j.traits, HAS_AFTER) > 0 then
        after = call("GET", P .. "a:" .. id)
        waits = call("SCARD", P .. "w:" .. id)
    end
    local notes = job.has(j, HAS_NOTES) and call("HMGET", P .. "x:" .. id, "progress", "note")
    local steps = with_steps and job.has(j, HAS_NOTES) and call("HGETALL", P .. "s:" .. id)
    return {id, text, held, errors, after, waits, notes, steps}
end

-- Answer how large a record is, about.
local function bytes_of(record)
    local bytes = #record[2] + (record[5] and #record[5] or 0)
    for _, many in ipairs({record[4] or {}, record[8] or {}}) do
        for _, one in ipairs(many) do
            bytes = bytes + #one
        end
    end
    return bytes
end
