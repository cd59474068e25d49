"""The demo: job types that do real work, and `packhorse demo`, which runs them all and checks the promise.

Importing this package costs nothing; `jobs` holds the app (`packhorse worker packhorse.demo.jobs:app`), `run` the show.
"""
