-- args: limit, before. Answers workflows, newest id first: id, created_at_ms, state and count, ...

local most, before = args[1], args[2]
local answer = {}
for _, id in ipairs(call("ZREVRANGEBYLEX", P .. "flows", before and "(" .. before or "+", "-", "LIMIT", 0, most)) do
    local first = call("ZRANGE", P .. "jobs_of:" .. id, 0, 0)[1]
    local j = first and job.load(first)
    answer[#answer + 1] = {id, j and j.created or now_ms, call("HGETALL", P .. "flow:" .. id)}
end
return answer
