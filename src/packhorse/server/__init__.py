"""Jobs in and out over HTTP: for programs in any language, for operators, for the page.

Reading order, which is a request's way: `net` (the process, its sockets, and what a hostile network may not do) → `app`
(the application) → `door` (who is asking) → `operation` (from a request to a call, from an answer or error to a
response) → `routes/` (thin: read, call the admin's or the app's verb, answer). `service` is what they share.

Beside the requests: `feed` follows the store's changes while somebody listens, `hooks` posts them to others, `ticking`
moves time on, `beside` is the worker of `--with-worker`.
"""
