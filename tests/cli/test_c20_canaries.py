"""C20: secrets put into every place that has a right to them, and looked for in all that is shown of a worker."""

from __future__ import annotations

import re
from pathlib import Path

from tests.tracing.receiver import Receiver, receiving

from .kit import process
from .serving import Command, until
from .test_worker_metrics import get

ADMIN = "CANARYADMINtoken0123456789abcdef"
READ = "CANARYREADtoken0123456789abcdefg"

APP = """
import asyncio, logging, os
from packhorse import Context, Packhorse

app = Packhorse()
log = logging.getLogger("shop")

@app.task(max_attempts=2, backoff=0)
async def leaky(ctx: Context, password: str, note: str) -> str:
    local_secret = "CANARYLOCAL" + note
    log.info("paying", extra={"password": "CANARYEXTRA", "deep": {"api_key": "CANARYDEEP"}})
    log.info("at https://user:CANARYURL@bank.example/")
    ctx.log.error("the store is %s", os.environ["PACKHORSE_URL"])
    raise ConnectionError("postgres://me:CANARYERROR@db.example/shop does not answer")

@app.task
async def quiet(password: str) -> dict:
    return {"token": "CANARYRESULT"}

@app.task(timeout=120)
async def hangs(password: str, go: str) -> None:
    mine = "CANARYLOCAL"
    while not os.path.exists(go):
        await asyncio.sleep(0.01)
        sum(range(20_000))
"""


def canaries(text: str) -> list[str]:
    """Answer what should not stand in a text."""
    return sorted({text[place.start() : place.start() + 30] for place in re.finditer("CANARY", text)})


def test_c20_no_secret_is_in_anything_that_is_shown_of_a_worker(directory: Path) -> None:
    (directory / "jobs.py").write_text(APP)
    (directory / "server").mkdir()
    tokens = f"admin:{ADMIN},read:{READ}"
    with receiving() as receiver:
        tracing = receiver.url.replace("//", "//user:CANARYTRACES@")
        served = {"PACKHORSE_TOKENS": tokens, "PACKHORSE_TRACING": tracing, "PACKHORSE_LOG_LEVEL": "debug"}
        with Command(directory / "server", "serve", "--port", "0", environ=served) as server:
            store = server.url.replace("//", f"//:{ADMIN}@")
            environ = {
                "PACKHORSE_URL": store,
                "PACKHORSE_TRACING": tracing,
                "PACKHORSE_TOKENS": tokens,
                "XDG_RUNTIME_DIR": str(directory),
            }
            options = ("--metrics", "127.0.0.1:0", "--log-level", "debug", "--log-format", "json")
            with Command(directory, "worker", "jobs", *options, environ=environ) as worker:
                check(directory, server, worker, receiver, environ)


def check(directory: Path, server: Command, worker: Command, receiver: Receiver, environ: dict[str, str]) -> None:
    admin, read = {"Authorization": f"Bearer {ADMIN}"}, {"Authorization": f"Bearer {READ}"}

    def submit(job_type: str, **payload: str) -> str:
        body = {"type": job_type, "payload": {"password": "CANARYPAYLOAD", **payload}}
        return str(server.ask("/api/v1/jobs", body, admin)["id"])

    def wait_for(job_id: str, state: str) -> None:
        until(lambda: server.ask(f"/api/v1/jobs/{job_id}", headers=admin)["state"] == state, 60)

    go = directory / "go"
    leaky, quiet = submit("leaky", note="x"), submit("quiet")
    hangs = submit("hangs", go=str(go))
    wait_for(leaky, "failed")
    wait_for(quiet, "succeeded")
    wait_for(hangs, "running")
    metrics = worker.output.partition("metrics and health at ")[2].split()[0].partition('"')[0]
    paths = ["/metrics", "/logs", "/health", "/jobs", "/api/v1/jobs", "/api/v1/dead-letter", "/api/v1/workers"]
    paths += [f"/api/v1/jobs/{one}{rest}" for one in (leaky, quiet, hangs) for rest in ("", "/log", "/why")]
    texts = {f"GET {path}": get(server.url + path, **read)[1] for path in paths}
    texts["metrics of the worker"] = get(metrics, **read)[1]

    def command(*args: str) -> None:
        done = process(*args, environ=environ, cwd=directory)
        texts[" ".join(args)] = done.stdout + done.stderr

    command("top", "--once", "--interval", "1s")
    command("top", "--json", "--interval", "1s")
    command("logs", leaky)
    command("logs", leaky, "--json")
    command("logs")
    (runner,) = (str(one["pid"]) for one in server.ask("/api/v1/workers", headers=admin)["items"])
    command("stacks", runner)
    command("stacks", runner, "--json")
    for form in ("folded", "svg"):
        command("profile", runner, "--seconds", "0.5", "--mode", "wall", "--format", form)
    command("list-failed", "--group")
    command("doctor")
    for number, (pid, _) in enumerate(
        [*worker.tree(), *server.tree(), (worker.process.pid, ""), (server.process.pid, "")]
    ):
        texts[f"command line {number}"] = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    go.touch()
    wait_for(hangs, "succeeded")
    for one in (worker, server):
        one.process.terminate()
        assert one.process.wait(60) == 0
    texts["worker log"], texts["server log"] = worker.output, server.output
    texts["spans"] = "\n".join(span.text for span in receiver.seen)
    assert receiver.named("process default")
    assert {where: canaries(text) for where, text in texts.items() if canaries(text)} == {}
