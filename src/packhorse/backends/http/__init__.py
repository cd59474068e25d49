"""A server of packhorse as a backend: `Packhorse("https://jobs.example")` enqueues and works through it.

`wire` is what both ends share; the server imports nothing else from here, and so needs no HTTP client.
"""
