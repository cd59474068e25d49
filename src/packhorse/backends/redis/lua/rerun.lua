-- args: reruns, each id, delay_ms, payload, queue, priority, max_attempts; nil keeps what the job has. Answers for each
-- what is true now.

local ID, DELAY, PAYLOAD, QUEUE, PRIORITY, ATTEMPTS_MAX = 1, 2, 3, 4, 5, 6

-- Give an ended job its edits and take away what its attempts left, but the errors.
local function clear(j, request)
    local payload = request[PAYLOAD]
    if payload and payload == call("GETRANGE", job.key(j.id), j.payload_at, j.result_at - 1) then
        payload = nil
    end
    local queue = request[QUEUE] or j.queue
    if queue ~= j.queue then
        if j.unique then
            unique.drop(j.queue, j.unique, j.id)
        end
        job.recount(j, j.state, nil)
        j.queue = queue
        job.recount(j, nil, j.state)
    end
    if payload then
        call("DEL", P .. "s:" .. j.id)
    end
    call("DEL", P .. "x:" .. j.id)
    if payload or request[QUEUE] or job.has(j, HAS_RESULT) then
        job.rewrite(j, payload)
    end
    j.priority = request[PRIORITY] or j.priority
    j.attempts_max = request[ATTEMPTS_MAX] or j.attempts_max
    j.attempt, j.finished, j.started, j.parked = 0, 0, 0, 0
    job.set(j, CANCEL_REQUESTED, false)
    job.set(j, HAS_RESULT, false)
end

local function rerun(request)
    local j = job.load(request[ID])
    if not j or j.state == AWAY then
        return "missing"
    elseif j.state <= RUNNING then
        return "live"
    elseif unique.is_taken(j, request[QUEUE] or j.queue) then
        return "conflict"
    end
    local ended = j.state
    family.unfinish(j)
    clear(j, request)
    if j.unique then
        unique.take(j.queue, j.unique, j.id)
    end
    family.take_back(j)
    local delay_ms = request[DELAY]
    if family.wait(j) then
        j.due = j.created + delay_ms
        job.save(j)
    else
        place.start_over(j, delay_ms)
    end
    if ended ~= SUCCEEDED then
        family.revive(j)
    end
    return "done"
end

local answers = {}
for i, request in ipairs(args) do
    answers[i] = rerun(request)
end
store.finish()
return answers
