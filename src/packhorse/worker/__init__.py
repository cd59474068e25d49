"""Running jobs: one keeper process that watches, and runner processes that work.

Reading order, which is a job's way: claimer → runner → handler → settler; beside it lease, heart and ticker keep
time. `engine` joins them in one event loop; `local` runs an engine inside a program, `keeper` and `runner_process` run
it in processes of their own.
"""
