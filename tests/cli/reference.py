# ruff: noqa: E501  # rows of tables
# rows of tables
"""Writes docs/reference/cli.md and settings.md from the code: `python -m tests.cli.reference`.

The tests fail when a page is not what this writes, so no command, option or setting can be missing there.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from packhorse.cli.lazy import LazyGroup
from packhorse.cli.main import root
from packhorse.cli.output import age
from packhorse.settings import _READERS, ALIASES, Settings, own_name
from packhorse.why import CODES

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"

_HEAD = "<!-- Written by `python -m tests.cli.reference`. Change the code, then run it; a test compares. -->\n"

_CLI_INTRO = """# Command line

`packhorse` and `python -m packhorse` are the same command. Every command explains itself with `--help`.

## Which store

`--url URL`, before or after the command; otherwise `PACKHORSE_URL`; otherwise `packhorse.toml` or `[tool.packhorse]` in
`pyproject.toml`; otherwise `sqlite:///packhorse.db`. See [settings](settings.md).

- `submit`, `worker` and `migrate` make a SQLite file that is not there. All other commands refuse: to look must not
  make an empty store out of a mistyped name.
- `memory://` is refused: its jobs live inside one process, and a command is another one.
- A password belongs into `PACKHORSE_URL` or the configuration file. With `--url` everyone on the machine can see it, and
  a warning says so. No output ever shows it.

## Output

Tables are for people. No cell is cut or broken: where a terminal is too narrow, instants become `5m ago` and errors go below their
row. Elsewhere than on a terminal tables are plain aligned lines, without colours. `--json` prints one JSON document, in ASCII. What comes from the store (names, errors, payloads) is shown with control characters escaped.
Errors and hints go to stderr: an error is one line that says what to do. `PACKHORSE_DEBUG=1` adds where it came from.

| exit code | means |
|---|---|
| 0 | done |
| 1 | refused, not found, or the store does not answer |
| 2 | wrong usage or configuration |
| 130 | Ctrl+C, also where a command only watches (`logs --follow`, `stats --watch`, `top`); `worker`, `serve` and `dev` stop in order: 0 |
| 141 | whoever read the output stopped reading (as in `… | head`) |

## Shapes of `--json`

A **job** is `id type queue state priority attempt max_attempts key tags meta payload result error errors progress
progress_note cancel_requested unique after after_failed waiting_for workflow node schedule slot worker timeout_ms created_at due_at started_at finished_at`. Instants are RFC 3339 in UTC;
what does not apply is `null`. `error` is the last one as text, `null` once the job has succeeded; an item of `errors` is
`{"attempt", "at", "kind", "message", "traceback"}`. Stored bytes that are not JSON are shown as `{"undecodable": "<hex>"}`.

| command | answers |
|---|---|
| `jobs list`, `list-failed` | `{"items": [job], "next": cursor or null}` |
| `jobs show` | a job |
| `list-failed --group` | `{"jobs", "items": [group], "others": group or null, "next": null}`; a group is `fingerprint title jobs first_at last_at types queues example`, `others` are the errors past the first 1,000 kinds |
| `jobs why` | `{"id", "type", "queue", "state", "causes": [{"code", "text", "remedy", "until", "jobs"}]}`, the most decisive first; the codes are below |
| `jobs cancel`, `rerun`, `edit`, `delete` and `retry` by id | `{"items": [{"id", "answer"}], "next": null}`; an answer is `done`, `requested` (it runs, its worker will stop it), `ended`, `live`, `conflict` or `missing` |
| the same by filter, `retry-all` | `{"matched", "dry_run", "done", "requested", "ended", "live", "conflict", "missing"}` |
| `purge` | `{"queue", "deleted", "running", "added"}`; with a filter as the verbs by filter |
| `logs ID` | `{"id", "type", "queue", "state", "attempt", "left_out", "items": [{"at", "level", "logger", "attempt", "message"}]}`; with `--follow` such an item a line |
| `logs` | a list of lines, as `GET /logs`; with `--follow` one a line |
| `stats` | `{"states": {state: jobs}, "queues": {queue: {"states", "oldest_pending_ms", "paused"}}}` |
| `top` | `{"store", "at", "answer_ms", "span_ms", "states", "rates", "queues": {queue: {"states", "oldest_pending_ms", "paused", "has_worker", "rates"}}, "workers": [worker], "dead_letters": {"jobs", "grew_by", "looked_at", "groups"}, "failures", "running"}`; `rates` are `in`, `out` and `failed`, jobs a second, null where they are not known; with `at_least` more came than could be counted |
| `health` | `{"status", "service", "version", "latency_ms", "workers", "pending", "problems"}`; `status` is `OK` or `UNAVAILABLE` |
| `queues list` | `{"items": [{"queue", "states", "oldest_pending_ms", "paused", "capacity"}], "next": null}` |
| `queues pause`, `resume` | `{"items": [{"queue", "paused"}], "next": null}` |
| `queues capacity` | `{"queue", "capacity"}` |
| `limits list`, `show` | `{"items": [limit], "next": null}`; a limit is `type key rate burst concurrency source`, `key` is `*` for each key alone, `source` is `operator` or `code`; `show` adds `running` and `opens_in_ms`: 0 is open, null is when a running job ends |
| `limits set` | a limit and `known`: whether a live worker knows the type or a job has it |
| `limits clear` | `{"type", "key", "cleared"}` |
| `schedules list` | `{"items": [schedule], "next": null}`; a schedule is `name type payload queue priority max_attempts timeout_ms key tags cron every_ms tz missed overlap jitter_ms source paused next done_until`: `source` is `app:NAME` where an app's code defines it, `next` is null while it is paused, slots up to `done_until` are dealt with |
| `schedules show` | a schedule |
| `schedules add` | a schedule and `answer`: `added`, `changed` or `unchanged` |
| `schedules pause`, `resume`, `remove` | `{"items": [{"name", "paused"}], "next": null}`, or `"removed"` |
| `schedules run` | `{"id", "created"}`; `created` is false where a job of it has not ended and `overlap` is `skip` |
| `schedules next` | `{"items": [{"at", "local"}], "next": null}`; `local` is the same instant with the offset of the zone |
| `workflows list` | `{"items": [{"id", "name", "state", "states", "created_at"}], "next": cursor}`; `state` is `live` while a job of it has not ended, then `failed`, `cancelled` or `succeeded` |
| `workflows show` | the same and `nodes`, parents before children: `id node type queue state level after after_failed waiting_for attempt max_attempts error started_at finished_at duration_ms`; `after` has names of nodes, or the ids of jobs outside |
| `workflows cancel`, `rerun` | `{"items": [{"id", "answer"}], "next": null}` for each job that was met |
| `workers` | `{"items": [{"id", "host", "pid", "queues", "types", "concurrency", "busy", "running", "started_at", "lease_left_ms", "version", "trouble"}], "next": null}`; `trouble` is what its keeper sees wrong with it now, or null |
| `stacks` | `{"worker", "pid", "trouble", "notes", "stacks": [{"thread", "loop", "doing", "job", "type", "frames": [{"file", "line", "function"}]}]}`; frames are innermost first, `doing` is `runs` or `waits`, `thread` is null of a run that waits, `loop` is the thread of the event loop |
| `profile` | `{"mode", "rate", "duration_ms", "samples", "processes", "total_us", "types": [{"type", "total_us"}], "functions": [{"function", "self_us", "total_us"}], "notes"}`, the most expensive first, at most 100 functions |
| `submit` | `{"id", "created"}`; `created` is false where a live job holds the unique key, whose id it is. With `recurring`: `{"schedule", "answer"}` |
| `move` | `{"moved": {state: jobs}, "schedules", "limits", "queues", "known", "known_ids", "left": {state: jobs}, "done"}`; `known` jobs were left out, for the target had their ids; `done` is false where something is left |
| `tokens create`, `list` | a token is `{"name", "role", "queues", "created_at", "expires_at"}`, `queues` null is all; `create` adds the `token` itself, `list` has `{"items": [token], "next": null}` |
| `tokens revoke` | `{"items": [{"name", "revoked"}], "next": null}` |
| `migrate`, `version` | `{"schema"}`, `{"version"}` |

## Codes of `jobs why`

| code | means |
|---|---|
{codes}

## Commands
"""

_SETTINGS_INTRO = """# Settings

Rank, highest first: a keyword of `Packhorse(...)` or an option of the command line; `PACKHORSE_*` in the environment; the
older names, which other job engines use; `packhorse.toml`, or `[tool.packhorse]` in `pyproject.toml`; the default.
Where two names in the environment disagree, the higher one wins (of the older ones, the one that is listed first) and a
warning names both. An empty variable counts as not set. A name in a file that does not exist, or a value that cannot be
read, is an error that says what is allowed.

Durations are seconds, or text as `250ms`, `30s`, `5m`, `2h`, `1d`.

```toml
# packhorse.toml
url = "sqlite:///jobs.db"
queues = ["mail", "default"]
lease = "30s"
```

| setting | environment | older names | default | means |
|---|---|---|---|---|
"""

_SETTINGS_END = """
Two variables are no settings: `PACKHORSE_CONFIG` names the configuration file, and `PACKHORSE_DEBUG=1` makes the command
line show where an error came from.

`MAX_ATTEMPTS=3` is three runs; `WORKER_MAX_RETRIES=3` is four, the first and three retries.
"""

_MEANINGS = {
    "url": "The store. `sqlite:///FILE` (three slashes: relative, four: absolute), or `memory://` inside one program.",
    "store": "The store beside a URL that is a transport.",
    "token": 'What a server of packhorse, `url = "https://…"`, is shown to let us in, where the URL itself has no token.',
    "namespace": "Which store on a shared server: the schema in PostgreSQL, the prefix of keys in Redis, where the URL names none.",
    "queues": "The queues a worker takes from, strictly in order; in the environment joined by commas. With weights, as `a=6,b=1`, each claim takes them in a random order with these odds.",
    "concurrency": "Jobs at once in each runner process.",
    "processes": "Runner processes of a worker.",
    "max_attempts": "Runs of a job that does not say it itself.",
    "enqueue_timeout_ms": "How long an enqueue waits for room in a full queue; `0` refuses at once.",
    "capacity": "Pending jobs that each queue of a worker may hold, where nobody has set it for the queue.",
    "lease_ms": "How long a claim holds without a sign of life; 1s to 1d.",
    "shutdown_timeout_ms": "How long running jobs have to end when a worker stops.",
    "poll_interval_ms": "How often an idle worker looks, if nothing wakes it.",
    "park_ms": "How long a job of a type that no worker knows is kept waiting before it fails.",
    "keep_succeeded_ms": "How long jobs that succeeded are kept.",
    "keep_failed_ms": "How long jobs that failed are kept.",
    "keep_cancelled_ms": "How long jobs that were cancelled are kept.",
    "log_level": "debug, info, warning or error.",
    "log_format": "console (for people) or json (one object a line).",
    "blocked_ms": "An event loop that does not turn for so long is warned of, with the stack that blocks it; 0: never. See [profiling](../profiling.md).",
    "log_jobs": "Which ends of runs a worker writes a line about: `some` (20 a second of each level, the rest in one sum), `all`, or `none` (only failures for good). See [logs](../logs.md).",
    "keep_log": "From which level on what a run logs is kept with its job: debug, info, warning, error, or `off`. See [logs](../logs.md).",
    "metrics": "where a worker answers `/metrics` and `/health`, as `127.0.0.1:9091` or `9091`; unset: nowhere, and any other address needs tokens. Not from the app's code. See [metrics](../metrics.md)",
    "tracing": "Traces by OpenTelemetry: `off`, `on` (to the provider that the program has set up, else as `OTEL_*` says), or the URL of a receiver of OTLP over HTTP, as `http://127.0.0.1:4318`. Needs the extra `otel`. See [tracing](../tracing.md).",
    "tracing_sample": "The share of the traces that begin in packhorse which are kept, 0 to 1; below a span of somebody else that one decides.",
    "host": "Where the server listens. Any address but one of the loopback needs tokens.",
    "port": "The port of the server; `0` takes a free one.",
    "tokens": "Tokens of the server, as `ROLE[@queue+queue]:TOKEN` joined by commas, for containers; TOKEN is the token itself (22 characters or more that nobody can guess) or `sha256:` and its SHA-256 in hex. ROLE is read, submit, work or admin, which it is if left out.",
    "tokens_file": "Where `packhorse tokens` keeps the tokens of the server, as hashes. A running server follows its changes.",
    "allowed_hosts": "Names by which the server may be asked, beside those of the loopback and its address: `jobs.example.com`, `*.example.com`, `10.0.0.5:8080`. Others get 403.",
    "redact": "Parts of keys whose values are shown as `***` to who may not steer, beside the usual ones (password, secret, token, api_key, authorization, cookie, private_key, credential ...).",
    "read_timeout_ms": "How long a client may take to send a request's body, and its head if this is below 10s; 1s to 1h.",
    "write_timeout_ms": "How long a client may read nothing of its answer before it is dropped; 1s to 1h.",
    "webhooks": "Whom the server tells of the end of jobs: a list of tables, in the environment the name of a JSON file with such a list. See [events and webhooks](../events.md).",
    "webhooks_allow": "Networks and addresses that webhooks may go to beside public ones: `10.20.0.0/16,127.0.0.1`.",
}


def commands(group: click.Group = root, path: tuple[str, ...] = ("packhorse",)) -> Iterator[tuple[str, click.Command]]:
    """Answer every command that is not a group, by the words one types."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        words = (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, words)
        else:
            yield " ".join(words), command


def aliases(words: str) -> tuple[str, ...]:
    """Answer the other names of a command."""
    group: click.Command | None = root
    *groups, name = words.split()[1:]
    for step in groups:
        assert isinstance(group, click.Group)
        group = group.get_command(click.Context(group), step)
    assert isinstance(group, LazyGroup)
    return group.entries[name].aliases


def cli_page() -> str:
    codes = "\n".join(f"| `{code}` | {meaning} |" for code, meaning in CODES.items())
    parts = [_HEAD, _CLI_INTRO.replace("{codes}", codes)]
    for words, command in commands():
        usage = " ".join([words, *command.collect_usage_pieces(click.Context(command))])
        names = " and ".join(f"`{alias}`" for alias in aliases(words))
        also = f"Also called {names}.\n\n" if names else ""
        parts.append(f"### `{words}`\n\n```\n{usage}\n```\n\n{also}{_help(command)}\n")
        rows = [_option_row(param) for param in command.params if isinstance(param, click.Option)]
        parts.append("| option | means |\n|---|---|\n" + "\n".join(rows) + "\n" if rows else "")
    return "\n".join(part for part in parts if part)


def _help(command: click.Command) -> str:
    before, _, example = inspect.cleandoc(command.help or "").partition("\b")
    return before.strip() + (f"\n\n```\n{example.strip()}\n```" if example else "")


def _option_row(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = option.make_metavar(click.Context(click.Command("x"))).replace("|", r"\|")
    metavar = "" if option.is_flag else f" `{value}`"
    default = f" Default: `{option.default}`." if option.show_default and option.default not in (None, ()) else ""
    envvar = f" Also `{option.envvar}` in the environment." if option.envvar else ""
    return f"| {names}{metavar} | {option.help}{default}{envvar} |"


def settings_page() -> str:
    defaults = Settings()
    rows = []
    for field in _READERS:
        name = field.removesuffix("_ms")
        older = ", ".join(f"`{alias}`" for alias, (meant, _) in ALIASES.items() if meant == field)
        rows.append(
            f"| `{name}` | `{own_name(field)}` | {older} | {_default(field, getattr(defaults, field))} | {_MEANINGS[field]} |"
        )
    return f"{_HEAD}\n{_SETTINGS_INTRO}" + "\n".join(rows) + "\n" + _SETTINGS_END


def _default(field: str, value: object) -> str:
    if value is None or value == ():
        return "`4`" if field == "max_attempts" else ""
    if field.endswith("_ms"):
        assert isinstance(value, int)
        return f"`{age(value)}`"
    return f"`{','.join(value)}`" if isinstance(value, tuple) else f"`{value}`"


PAGES = {"cli.md": cli_page, "settings.md": settings_page}

if __name__ == "__main__":
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, write in PAGES.items():
        (REFERENCE / name).write_text(write(), encoding="utf-8")
