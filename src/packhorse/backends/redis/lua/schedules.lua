-- args: what was read before, as name, value or false, ...; and what it becomes, as name, value or false, next slot,
-- ... Answers {0} where somebody else changed one of them meanwhile, else 1 and all schedules.
-- "schedules" name -> cursor and definition, "slots" those that are not paused by their next slot (0: not worked out).

local read, changed = args[1], args[2]
if #changed > 0 then
    store.go_on_when_full()
end
for i = 1, #read, 2 do
    if call("HGET", P .. "schedules", read[i]) ~= read[i + 1] then
        return {0}
    end
end
for i = 1, #changed, 3 do
    local name, value, next_ms = changed[i], changed[i + 1], changed[i + 2]
    if value then
        call("HSET", P .. "schedules", name, value)
    else
        call("HDEL", P .. "schedules", name)
    end
    if value and next_ms then
        call("ZADD", P .. "slots", next_ms, name)
    else
        call("ZREM", P .. "slots", name)
    end
end
if #changed > 0 then
    store.ring("due")
end
store.finish()
return {1, now_ms, call("HGETALL", P .. "schedules")}
