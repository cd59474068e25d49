-- args: calls, each an array of specs. Answers for each call what was there already (place, id, ...), or, first -1,
-- what refuses it: a call is stored as a whole or not at all, and harms no other.

local answers = {}
for i, specs in ipairs(args) do
    local refusal = adding.refusal(specs)
    if refusal then
        answers[i] = {-1, unpack(refusal)}
    else
        answers[i] = adding.add(specs)
    end
end
family.serve(BATCH_MAX)
store.finish()
return answers
