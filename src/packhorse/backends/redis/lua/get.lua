-- args: ids. Answers a record for each, false where there is none: of the first ones only, where the records are too
-- many bytes for one answer. The caller asks for the others.

local BYTES_MAX = 4000000
local answer, bytes = {}, 0
for i, id in ipairs(args) do
    local text = call("GET", job.key(id))
    local j = text and job.parse(id, text)
    answer[i] = j and j.state ~= AWAY and record_of(j, text, true)
    bytes = bytes + (answer[i] and bytes_of(answer[i]) or 0)
    if bytes > BYTES_MAX then
        break
    end
end
return answer
