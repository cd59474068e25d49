-- args: worker, reason. Ends a worker's lease and lapses what it holds; answers how many jobs that were.

local worker, reason = args[1], args[2]
store.go_on_when_full()
call("ZREM", P .. "leases", worker)
call("HDEL", P .. "workers", worker)
local ids, lost = call("SMEMBERS", P .. "held:" .. worker), 0
table.sort(ids)
for _, id in ipairs(ids) do
    local j = job.load(id)
    if j and running.worker(j) == worker then
        running.lapse(j, reason)
        lost = lost + 1
    end
end
call("DEL", P .. "held:" .. worker)
call("SREM", P .. "holders", worker)
family.serve(BATCH_MAX)
store.finish()
return lost
