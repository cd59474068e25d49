-- Jobs in the hands of workers (decision 3).
--
-- Token and worker are in the job itself. "held:<worker>" what it holds, "holders" the workers that hold anything;
-- "leases" worker -> end of its lease, "workers" what it said of itself; "busy" how many jobs run by type and by type
-- and key.

local running = {}
local touched, freed = {}, {}
local TOKEN_BYTES = 8

-- Answer the token a job runs under; nil: it does not run.
function running.token(j)
    return j.state == RUNNING and sub(job.tail(j), 1, TOKEN_BYTES) or nil
end

-- Answer the worker that holds a job; nil: none does.
function running.worker(j)
    return j.state == RUNNING and sub(job.tail(j), TOKEN_BYTES + 1) or nil
end

-- Count a job that starts (1) or leaves its worker (-1).
function running.count(j, change)
    store.count(store.key("busy", ""), j.type, change)
    if j.key then
        store.count(store.key("busy", ""), j.type .. ":" .. j.key, change)
    end
end

-- Take a running job from its worker: the token is void from here on.
function running.let_go(j)
    local worker = running.worker(j)
    store.later("SREM", store.key("held:", worker), j.id)
    touched[worker] = true
    job.set_tail(j, "")
    running.count(j, -1)
    freed[j.type] = true
end

-- Take a running job from a lost worker: it starts over, or ends with its last attempt. Answers what becomes of it:
-- id, queue, type, attempt, attempts at most, state.
function running.lapse(j, reason)
    job.add_error(j, cmsgpack.pack({"lapse", j.attempt, reason, now_ms}))
    running.let_go(j)
    if job.has(j, CANCEL_REQUESTED) or j.attempt >= j.attempts_max then
        family.finish(j, job.has(j, CANCEL_REQUESTED) and CANCELLED or FAILED)
        store.ring_job(j.id)
    else
        place.make_ready(j, now_ms)
        store.ring_queue(j.queue)
    end
    return {j.id, j.queue, j.type, j.attempt, j.attempts_max, j.state}
end

-- Ring the queues where jobs of a limited type wait, one of which ended.
finishers[#finishers + 1] = function()
    local queues
    for job_type in pairs(freed) do
        if call("HEXISTS", P .. "limited", job_type) == 1 then
            queues = queues or call("SMEMBERS", P .. "laned")
            for _, queue in ipairs(queues) do
                if call("HEXISTS", P .. "lanes:" .. queue, job_type) == 1 then
                    store.ring_queue(queue)
                end
            end
        end
    end
end

finishers.after = {function()
    for worker in pairs(touched) do
        if call("EXISTS", P .. "held:" .. worker) == 0 then
            call("SREM", P .. "holders", worker)
        end
    end
end}
