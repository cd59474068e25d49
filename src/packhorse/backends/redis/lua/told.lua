-- What moved in a script, written down at its end while somebody asks for changes: one entry of a stream (decision 19).
--
-- "listening" log, count and until; "changes" entries, each with the count of changes up to it as its number, and packed
-- in one field the instant, a byte of each state (0: gone), and the ids.

local told = {n = 0, ids = {}, states = {}} -- count: of changes in the log so far; false: nobody asks

-- Tell whether somebody asks. Where nobody did for long the log ends, before anything moves that it would be told.
function told.is_asked()
    if told.count == nil then
        local found = call("HMGET", P .. "listening", "until", "count")
        told.count = found[1] and tonumber(found[2]) or false
        if told.count and now_ms > tonumber(found[1]) then
            call("DEL", P .. "listening", P .. "changes")
            told.count = false
        end
    end
    return told.count
end

-- Note that a job came into a state; 0: it is gone.
function told.note(id, state)
    if told.count or (told.count == nil and told.is_asked()) then
        local n = told.n + 1
        told.n = n
        told.ids[n] = id
        told.states[n] = string.char(state)
    end
end

finishers[#finishers + 1] = function()
    if told.n == 0 then
        return
    end
    local rows, upto = P .. "changes", call("HINCRBY", P .. "listening", "count", told.n)
    local from = upto > CHANGES_MAX and upto - CHANGES_MAX or 0 -- whoever is further behind begins anew
    call("XADD", rows, "MINID", "~", string.format("%.0f", from), string.format("%.0f-0", upto),
        "m", cmsgpack.pack({now_ms, table.concat(told.states), told.ids}))
    if told.count == 0 then
        call("PEXPIRE", rows, 3 * CHANGES_KEPT_MS) -- else whoever asks does that
    end
end
