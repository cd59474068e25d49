-- args: type, key. Answers the limits that a job of these must pass: key or false, limit, running, opens in ms or -1.

local answer = {}
for _, gate in ipairs(limit.gates(args[1], args[2])) do
    local opens_in = gate.room > 0 and 0 or gate.opens_at and gate.opens_at - now_ms or -1
    answer[#answer + 1] = {gate.key or false, gate.text, gate.running, opens_in}
end
return answer
