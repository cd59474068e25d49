-- args: worker, reason. Ends a worker's lease and lapses what it holds; answers the jobs that were.

local worker, reason = args[1], args[2]
store.go_on_when_full()
call("ZREM", P .. "leases", worker)
call("HDEL", P .. "workers", worker)
local ids, lost = call("SMEMBERS", P .. "held:" .. worker), {}
table.sort(ids)
for _, id in ipairs(ids) do
    local j = job.load(id)
    if j and running.worker(j) == worker then
        lost[#lost + 1] = running.lapse(j, reason)
    end
end
call("DEL", P .. "held:" .. worker)
call("SREM", P .. "holders", worker)
family.serve(BATCH_MAX)
store.finish()
return lost
