-- args: ids. Answers a record for each, false where there is none.

local keys = {"MGET"}
for i, id in ipairs(args) do
    keys[i + 1] = job.key(id)
end
local answer = {}
for i, text in ipairs(call(unpack(keys))) do
    local j = text and job.parse(args[i], text)
    answer[i] = j and j.state ~= AWAY and record_of(j, text, true)
end
return answer
