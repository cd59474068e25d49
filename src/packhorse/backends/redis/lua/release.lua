-- args: ids, token. Gives jobs back that were claimed for a caller who was cancelled meanwhile: as if never claimed.

store.go_on_when_full()
local ids, token = args[1], args[2]
for _, id in ipairs(ids) do
    local j = job.load(id)
    if j and running.token(j) == token then
        running.let_go(j)
        j.attempt = j.attempt - 1
        if job.has(j, CANCEL_REQUESTED) then
            family.finish(j, CANCELLED)
            store.ring_job(id)
        else
            place.start_over(j, 0)
        end
    end
end
family.serve(BATCH_MAX)
store.finish()
return #ids
