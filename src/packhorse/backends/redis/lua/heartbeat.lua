-- args: worker, lease_ms, info, notes. Answers what it holds (id, token, ...) and which of these are to be stopped.

local worker, lease_ms, info, notes = unpack(args, 1, 4)
local ID, TOKEN, PROGRESS, TEXT, STEP, RESULT = 1, 2, 3, 4, 5, 6

local function keep(j, note)
    local key = P .. "x:" .. j.id
    if note[PROGRESS] then
        call("HSET", key, "progress", note[PROGRESS])
    end
    if note[TEXT] then
        call("HSET", key, "note", note[TEXT])
    end
    if note[STEP] then
        call("HSET", P .. "s:" .. j.id, note[STEP], note[RESULT])
    end
    if not job.has(j, HAS_NOTES) then
        job.set(j, HAS_NOTES, true)
        job.save(j)
    end
end

store.go_on_when_full()
call("ZADD", P .. "leases", now_ms + lease_ms, worker)
call("HSET", P .. "workers", worker, info)
for _, note in ipairs(notes) do
    local j = job.load(note[ID])
    if j and running.token(j) == note[TOKEN] then
        keep(j, note)
    end
end
local held, cancel = {}, {}
for _, id in ipairs(call("SMEMBERS", P .. "held:" .. worker)) do
    local j = job.load(id)
    if j and running.worker(j) == worker then
        held[#held + 1] = id
        held[#held + 1] = running.token(j)
        if job.has(j, CANCEL_REQUESTED) then
            cancel[#cancel + 1] = id
        end
    else
        call("SREM", P .. "held:" .. worker, id) -- its row was lost: a sweep counts anew
    end
end
store.finish()
return {held, cancel}
