-- args: firings, each name, revision, done_ms, new_done_ms, next_ms, specs. Answers 1 for each that took effect, 0 for
-- each that is stale: its schedule does not stand where the firing was planned from
-- (packhorse.backends.rules.may_fire).

local CURSOR = "<i8i8i8B"
local verdicts = {}
for i, firing in ipairs(args) do
    local name, revision, done_ms, new_done_ms, next_ms, specs = unpack(firing, 1, 6)
    local text = call("HGET", P .. "schedules", name)
    verdicts[i] = 0
    if text then
        local at_revision, at_ms, _, paused, rest = struct.unpack(CURSOR, text)
        if paused == 0 and at_revision == revision and at_ms == done_ms then
            adding.add(specs)
            local cursor = struct.pack(CURSOR, revision, new_done_ms, next_ms, 0)
            call("HSET", P .. "schedules", name, cursor .. sub(text, rest))
            call("ZADD", P .. "slots", next_ms, name)
            verdicts[i] = 1
        end
    end
end
family.serve(BATCH_MAX)
store.finish()
return verdicts
