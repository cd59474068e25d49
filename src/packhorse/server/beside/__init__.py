"""Beside the server: the worker of `--with-worker`, and the reloading of `packhorse dev`."""
