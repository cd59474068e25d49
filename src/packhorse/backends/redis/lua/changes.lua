-- args: a log and a count, nil where there is no cursor; a name for a new log; until when to listen from now, and how
-- much of that must be left, ms. Answers the log, its count, 1 for a gap, and what told.lua wrote after the cursor.

local log, since, new_log, listen_ms, left_ms = unpack(args, 1, 5)
local key, rows = P .. "listening", P .. "changes"

local found = call("HMGET", key, "log", "count", "until")
local here, count, until_ms = found[1], tonumber(found[2] or 0), tonumber(found[3] or 0)
if not here then
    here, count, until_ms = new_log, 0, 0
    call("DEL", rows)
    call("HSET", key, "log", here, "count", 0)
end
if until_ms < now_ms + left_ms then
    call("HSET", key, "until", now_ms + listen_ms)
    -- For a store that nobody uses any more, not even a tick. It goes by the server's clock, which may not be ours.
    call("PEXPIRE", key, 3 * listen_ms)
    call("PEXPIRE", rows, 3 * listen_ms)
end
if not since then
    return {here, count, log and 1 or 0, {}}
elseif log ~= here or since > count or count - since > CHANGES_MAX then
    return {here, count, 1, {}}
end
local told = {}
for i, entry in ipairs(since < count and call("XRANGE", rows, string.format("%.0f", since + 1), "+") or {}) do
    told[i] = entry[2][2]
end
return {here, count, 0, told}
