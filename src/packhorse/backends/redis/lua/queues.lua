-- args: changes, each queue, paused or nil, capacity or nil. Answers queue -> "1" if paused, else "0", and its
-- capacity.

if #args > 0 then
    store.go_on_when_full()
end
for _, change in ipairs(args) do
    local queue, paused, capacity = unpack(change, 1, 3)
    local is_paused, has_capacity = store.settings(queue)
    if paused ~= nil then
        is_paused = paused
    end
    local text = (is_paused and "1" or "0") .. (capacity or has_capacity)
    call("HSET", P .. "settings", queue, text)
    store.forget_settings(queue)
    store.ring_queue(queue)
end
store.finish()
return call("HGETALL", P .. "settings")
