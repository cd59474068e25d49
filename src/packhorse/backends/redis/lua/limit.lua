-- Rate and concurrency limits: packhorse.limits, in Lua. Decision 10.
--
-- "limits" type or type:key -> the limit; "limited" type -> how many of its limits are by key; "buckets" type or
-- type:key -> the instant its bucket is full again, "full" the same by ms; "openings" queue -> when a rate opens.
-- An instant in ns does not fit a Lua number: it is a pair of ms and ns, so that all agrees with Python to the ns.

local limit = {}
local NS = 1000000
local NO_LIMIT = 1073741824

local function step_of(rule)
    local period, rate = rule.period, rule.rate
    return {floor(period / rate), floor((period % rate) * NS / rate)}
end

local function times(step, n)
    local ns = step[2] * n
    return {step[1] * n + floor(ns / NS), ns % NS}
end

local function plus(one, two)
    local ns = one[2] + two[2]
    return {one[1] + two[1] + floor(ns / NS), ns % NS}
end

local function less(one, two)
    return one[1] < two[1] or (one[1] == two[1] and one[2] < two[2])
end

local function divided_up(ahead, step)
    local n = floor((ahead[1] * NS + ahead[2]) / (step[1] * NS + step[2]))
    while less(times(step, n), ahead) do
        n = n + 1
    end
    while n > 0 and not less(times(step, n - 1), ahead) do
        n = n - 1
    end
    return n
end

local function burst_of(rule)
    return rule.burst > 0 and rule.burst or math.max(1, floor(rule.rate * BURST_MS / rule.period))
end

-- One further ahead than an empty bucket can be starts anew, as full.
local function base(rule, full)
    local now = {now_ms, 0}
    if less(now, full) and not less(plus(now, times(step_of(rule), burst_of(rule))), full) then
        return full
    end
    return now
end

local function tokens(rule, full)
    local from = base(rule, full)
    return burst_of(rule) - divided_up({from[1] - now_ms, from[2]}, step_of(rule))
end

local function opens_at(rule, full)
    if tokens(rule, full) > 0 then
        return now_ms
    end
    local back = times(step_of(rule), burst_of(rule) - 1)
    local ms, ns = full[1] - back[1], full[2] - back[2]
    if ns < 0 then
        ms, ns = ms - 1, ns + NS
    end
    return math.max(now_ms + 1, ms + (ns > 0 and 1 or 0))
end

local function bucket(name)
    local text = call("HGET", P .. "buckets", name)
    if not text then
        return {0, 0}
    end
    local ms, ns = struct.unpack("<i8I4", text)
    return {ms, ns}
end

-- A gate is what one limit lets start in one claim.
local function make_gate(text, name)
    local rule = {}
    rule.rate, rule.period, rule.burst, rule.concurrency = unpack(cmsgpack.unpack(text), 1, 4)
    local gate = {rule = rule, name = name, used = 0, text = text, running = store.counted(P .. "busy", name)}
    gate.room = rule.concurrency > 0 and rule.concurrency - gate.running or NO_LIMIT
    gate.opens_at = now_ms
    if gate.room <= 0 then
        gate.room, gate.opens_at = 0, nil
    elseif rule.rate > 0 then
        gate.full = bucket(name)
        gate.room = math.min(gate.room, tokens(rule, gate.full))
        gate.opens_at = opens_at(rule, gate.full)
    end
    return gate
end

local gates = {}

-- Answer the gates that a job of a type and key must pass; one for the very key goes before the one for each.
function limit.gates(job_type, key)
    local name = key and job_type .. ":" .. key or job_type
    local found = gates[name]
    if found then
        return found
    end
    found = {}
    gates[name] = found
    if key then
        found[1] = limit.gates(job_type, nil)[1]
        local texts = call("HMGET", P .. "limits", name, job_type .. ":*")
        local text = texts[1] or texts[2]
        if text then
            found[#found + 1] = make_gate(text, name)
            found[#found].key = texts[1] and key or EACH_KEY
        end
    else
        local text = call("HGET", P .. "limits", job_type)
        if text then
            found[1] = make_gate(text, name)
        end
    end
    return found
end

local function after_use(gate)
    local full = gate.full or bucket(gate.name)
    if gate.used == 0 then
        return full
    end
    return plus(base(gate.rule, full), times(step_of(gate.rule), gate.used))
end

-- Answer when the rate of a gate lets one more start; nil where no rate holds it back.
function limit.opens(gate)
    if gate.rule.rate == 0 then
        return nil
    end
    local at_ms = opens_at(gate.rule, after_use(gate))
    return at_ms > now_ms and at_ms or nil
end

-- Take what the starts of this claim cost, and answer when the first of the shut gates opens (nil: none does by time).
function limit.use()
    local first
    for name, list in pairs(gates) do
        for _, gate in ipairs(list) do
            if gate.name == name then
                local at_ms = gate.room <= 0 and limit.opens(gate)
                if at_ms and (not first or at_ms < first) then
                    first = at_ms
                end
                if gate.rule.rate > 0 and gate.used > 0 then
                    local full = after_use(gate)
                    call("HSET", P .. "buckets", name, struct.pack("<i8I4", full[1], full[2]))
                    call("ZADD", P .. "full", full[1] + (full[2] > 0 and 1 or 0), name)
                end
            end
        end
    end
    gates = {}
    return first
end

-- Drop a bucket.
function limit.drop_bucket(name)
    call("HDEL", P .. "buckets", name)
    call("ZREM", P .. "full", name)
end

-- Drop buckets that are full again: they are as new ones.
function limit.forget_full(most)
    for _, name in ipairs(call("ZRANGEBYSCORE", P .. "full", "-inf", now_ms, "LIMIT", 0, most)) do
        limit.drop_bucket(name)
    end
end
