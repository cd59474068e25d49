"""`packhorse top`: what a store does, live on a terminal.

`sampling` asks the store, `samples` are its answers, `history` makes rates and columns of them, `drawing` with `panels`
and `lines` makes a frame of text, `choices` is what keys change, `terminal` and `live` show it, `document` is the JSON.
All but `sampling`, `terminal` and `live` are values and pure functions.
"""
