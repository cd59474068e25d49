-- args: settlements. Answers 1 for each that was applied and 0 for each that is stale.

local ID, TOKEN, STATE, DELAY, RESULT, ERROR, REFUND, PARK, FOLLOW_UPS = 1, 2, 3, 4, 5, 6, 7, 8, 9

local function note(j, settlement)
    if settlement[ERROR] then
        job.add_error(j, settlement[ERROR])
    end
    if settlement[REFUND] then
        j.attempt = j.attempt - 1
    end
    if not settlement[PARK] then
        j.parked = 0
    elseif j.parked == 0 then
        j.parked = now_ms
    end
end

local function apply(j, settlement)
    local stop = job.has(j, CANCEL_REQUESTED)
    running.let_go(j)
    note(j, settlement)
    local state = settlement[STATE]
    if state < SUCCEEDED and stop then
        state = CANCELLED
    end
    if state >= SUCCEEDED then
        if settlement[RESULT] then
            job.set(j, HAS_RESULT, true)
            job.set_tail(j, settlement[RESULT])
        end
        family.finish(j, state)
        store.ring_job(j.id)
    else
        place.start_over(j, settlement[DELAY])
    end
    if settlement[FOLLOW_UPS] then
        adding.add(settlement[FOLLOW_UPS])
    end
end

store.go_on_when_full()
local verdicts = {}
for i, settlement in ipairs(args) do
    local j = job.load(settlement[ID])
    if j and running.token(j) == settlement[TOKEN] then
        apply(j, settlement)
        verdicts[i] = 1
    else
        verdicts[i] = 0
    end
end
family.serve(BATCH_MAX)
store.finish()
return verdicts
