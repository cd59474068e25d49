#!/bin/sh
# Make a virtual environment with packhorse and what its tests need. Usage: setup.sh DIRECTORY
# Needs Python 3.11 or later; on Debian, as root, it installs what is missing. Safe to repeat.
set -eu
venv=$1

say() { printf 'setup: %s\n' "$*" >&2; }

find_python() {
    for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return 0
        fi
    done
    return 1
}

install() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "installing $*"
        apt-get update -qq >/dev/null
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    else
        return 1
    fi
}

python=$(find_python) || { install python3 python3-venv || true; python=$(find_python); } || {
    say "Python 3.11 or later is needed and was not found; install it, or name it: make PYTHON=/path/to/python3"
    exit 1
}

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    install python3-venv || { say "the venv module is missing; install python3-venv"; exit 1; }
fi

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi

# strace shows that an acknowledged enqueue was synced to disk; its test needs it.
command -v strace >/dev/null 2>&1 || install strace || say "strace is missing: its test will be skipped at a desk"

# The workers of examples/workers and the examples of docs/http.md are run by tests.
command -v node >/dev/null 2>&1 || install nodejs || say "node is missing: tests of a worker will be skipped at a desk"
command -v curl >/dev/null 2>&1 || install curl || say "curl is missing: tests of the examples will be skipped at a desk"

# PostgreSQL, Redis, a pooler and Prometheus for the tests, unless they are there; tests/servers.py starts them.
"$python" scripts/servers.py install || say "their tests will be skipped at a desk"

say "installing packhorse and its test tools"
"$venv/bin/python" -m pip install -q --disable-pip-version-check -r requirements-dev.txt
"$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
