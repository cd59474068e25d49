-- args: ids. Answers for each what is true now.

store.go_on_when_full()
local answers = {}
for i, id in ipairs(args) do
    local j = job.load(id)
    if not j or j.state == AWAY then
        answers[i] = "missing"
    elseif j.state == RUNNING then
        answers[i] = "live"
    else
        family.forget(j)
        store.ring_job(id)
        answers[i] = "done"
    end
end
family.serve(BATCH_MAX)
store.finish()
return answers
