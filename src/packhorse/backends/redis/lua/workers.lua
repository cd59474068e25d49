-- Answers the workers whose lease is live: id, what it said of itself, ms left of its lease, jobs it holds.

local found = call("ZRANGEBYSCORE", P .. "leases", "(" .. now_ms, "+inf", "WITHSCORES")
local answer = {}
for i = 1, #found, 2 do
    local worker = found[i]
    local info = call("HGET", P .. "workers", worker)
    answer[#answer + 1] = {worker, info, tonumber(found[i + 1]) - now_ms, call("SCARD", P .. "held:" .. worker)}
end
return answer
