"""`packhorse dev`: a server and a worker that follow the code."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from packhorse.server.beside.reloading import Sources, broken, roots_of

from .kit import Cli
from .serving import APP, Command, alive, stored, until


def save(directory: Path, text: str, name: str = "jobs.py") -> None:
    """Write a file as an editor does that keeps the old one until the new one is whole."""
    (directory / (name + ".new")).write_text(text)
    (directory / (name + ".new")).replace(directory / name)


@pytest.fixture
def jobs(directory: Path) -> Path:
    save(directory, APP)
    return directory


def dev(directory: Path, *args: str) -> Command:
    return Command(directory, "dev", "jobs", "--port", "0", *args)


def restarted(command: Command, times: int) -> bool:
    """Answer whether the server has said where it is so many times."""
    return command.output.count("packhorse serves http") >= times


def test_a_saved_file_is_what_runs_next_at_the_same_place(jobs: Path) -> None:
    with dev(jobs) as command:
        url = command.url
        assert command.wait_for(command.submit("greet", name="you"), "succeeded")["result"] == "Hello you"
        save(jobs, APP.replace("Hello", "Good morning"))
        until(lambda: restarted(command, 2))
        assert "jobs.py changed; starting anew" in command.output
        assert command.output.count(url) == 2
        assert command.wait_for(command.submit("greet", name="you"), "succeeded")["result"] == "Good morning you"
        assert command.stop() == 0


def test_a_mistake_is_shown_and_the_next_save_tries_again(jobs: Path) -> None:
    with dev(jobs) as command:
        assert command.url
        until(lambda: " ready: " in command.output)  # a runner that starts reads the file too
        save(jobs, APP + "\ndef broken(:\n")
        until(lambda: ": invalid syntax; what runs stays as it was" in command.output)
        assert command.ask("/health")["status"] == "OK"
        save(jobs, APP.replace("Hello", "Good morning"))
        until(lambda: restarted(command, 2))
        assert command.wait_for(command.submit("greet", name="you"), "succeeded")["result"] == "Good morning you"
        tree = command.tree()
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(60) == 0
        until(lambda: not any(alive(one) for one in tree))


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        (
            "import nosuchmodule",
            "jobs.py:16: import nosuchmodule\nModuleNotFoundError: No module named 'nosuchmodule'",
        ),
        ("raise SystemExit(7)", "jobs ends the program when it is imported (exit code 7)"),
        ("import os; os._exit(7)", "jobs ends the program when it is imported (exit code 7)"),
        ("del app", "jobs has no Packhorse app called 'app'"),
    ],
    ids=["no module", "exit", "hard exit", "no app"],
)
def test_what_cannot_be_imported_is_shown_and_what_runs_stays(jobs: Path, mistake: str, says: str) -> None:
    with dev(jobs) as command:
        job_id = command.submit("slow", seconds=100)
        command.wait_for(job_id, "running")
        save(jobs, f"{APP}\n{mistake}\n")
        until(lambda: "; what runs stays as it was; save again" in command.output)
        assert says in command.output
        assert "Traceback" not in command.output
        assert not restarted(command, 2)
        assert command.wait_for(command.submit("greet", name="you"), "succeeded")["result"] == "Hello you"
        assert command.job(job_id)["state"] == "running"
        save(jobs, APP.replace("Hello", "Good morning"))
        until(lambda: restarted(command, 2))
        assert command.wait_for(command.submit("greet", name="you"), "succeeded")["result"] == "Good morning you"


def test_what_is_saved_during_an_import_that_takes_long_is_tried_instead(jobs: Path) -> None:
    with dev(jobs) as command:
        assert command.url
        until(lambda: " ready: " in command.output)
        save(jobs, f"{APP}\nfrom pathlib import Path\nPath('begun').touch()\nimport time; time.sleep(3600)\n")
        until((jobs / "begun").exists)
        save(jobs, APP.replace("Hello", "Good morning"))
        until(lambda: restarted(command, 2))
        assert command.wait_for(command.submit("greet", name="you"), "succeeded")["result"] == "Good morning you"
        assert command.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_import_that_takes_long_does_not_outlive_it(jobs: Path, number: signal.Signals) -> None:
    with dev(jobs) as command:
        assert command.url
        until(lambda: " ready: " in command.output)
        save(jobs, f"{APP}\nfrom pathlib import Path\nPath('begun').touch()\nimport time; time.sleep(3600)\n")
        until((jobs / "begun").exists)
        tree = command.tree()
        command.process.send_signal(number)
        command.process.wait(60)
        until(lambda: not any(alive(one) for one in tree))


def test_a_server_that_could_not_start_waits_for_a_save(directory: Path) -> None:
    save(directory, "import nosuchmodule\n")
    with dev(directory) as command:
        until(lambda: "the server has ended; save a file to start it again" in command.output)
        save(directory, "import nosuchmodule_either\n")
        until(lambda: "No module named 'nosuchmodule_either'; save again to start" in command.output)
        save(directory, APP)
        assert command.wait_for(command.submit("greet", name="you"), "succeeded")["result"] == "Hello you"


def test_a_running_job_is_given_back_and_runs_again_with_the_new_code(jobs: Path) -> None:
    with dev(jobs) as command:
        job_id = command.submit("slow", seconds=100)
        command.wait_for(job_id, "running")
        save(jobs, APP.replace("await asyncio.sleep(seconds)", "pass"))
        until(lambda: restarted(command, 2))
        command.wait_for(job_id, "succeeded")
        assert command.stop() == 0
    assert stored(jobs, job_id).attempt == 1


def test_ctrl_c_ends_all_of_it(jobs: Path) -> None:
    with dev(jobs) as command:
        command.wait_for(command.submit("greet", name="you"), "succeeded")
        tree = command.tree()
        assert len(tree) >= 3
        command.interrupt()
        assert command.end(tree) == 0


def test_nothing_outlives_it_even_when_it_is_killed(jobs: Path) -> None:
    with dev(jobs) as command:
        command.wait_for(command.submit("greet", name="you"), "succeeded")
        tree = command.tree()
        os.kill(command.process.pid, signal.SIGKILL)
        command.process.wait()
        until(lambda: not any(alive(one) for one in tree))


def test_refuses_what_serve_refuses_before_anything_is_started(directory: Path) -> None:
    cli = Cli(None)  # type: ignore[arg-type]
    assert "no tokens" in cli("dev", "jobs", "--host", "0.0.0.0", code=2).stderr
    assert "is a file" in cli("dev", "jobs.py", code=2).stderr
    assert "Missing argument" in cli("dev", code=2).stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "is taken" in cli("dev", "jobs", "--port", str(taken.getsockname()[1]), code=2).stderr


# ---- which files ---------------------------------------------------------------------------------------


def test_sees_files_that_come_change_and_go(directory: Path) -> None:
    (directory / "shop" / "jobs").mkdir(parents=True)
    save(directory, "a = 1")
    sources = Sources([directory])
    assert sources.changed() == []
    save(directory, "a = 2 ")
    save(directory / "shop" / "jobs", "", "mail.py")
    (directory / "notes.txt").write_text("no code")
    assert sources.changed() == [directory / "jobs.py", directory / "shop" / "jobs" / "mail.py"]
    assert sources.changed() == []
    (directory / "jobs.py").unlink()
    assert sources.changed() == [directory / "jobs.py"]


def test_does_not_look_where_no_code_of_the_project_is(directory: Path) -> None:
    for name in (".git", "node_modules", "__pycache__", "env", "deep"):
        (directory / name).mkdir()
        save(directory / name, "", "x.py")
    (directory / "env" / "pyvenv.cfg").write_text("home = /usr/bin")
    (directory / "deep" / "loop").symlink_to(directory)
    (directory / "nowhere.py").symlink_to(directory / "gone")
    sources = Sources([directory, directory / "deep"])
    assert len(sources) == 1
    save(directory / "deep", "changed", "x.py")
    assert sources.changed() == [directory / "deep" / "x.py"]


def test_a_tree_too_large_is_looked_at_in_part(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packhorse.server.beside.reloading.ENTRIES_MAX", 10)
    for number in range(20):
        save(directory, "", f"m{number}.py")
    sources = Sources([directory])
    assert sources.cut
    assert len(sources) <= 10


def test_finds_the_package_of_an_app_that_lies_elsewhere(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = directory / "elsewhere"
    (elsewhere / "shop_of_test").mkdir(parents=True)
    save(elsewhere / "shop_of_test", "raise RuntimeError('imported')", "__init__.py")
    save(elsewhere, "raise RuntimeError('imported')", "single_of_test.py")
    here = directory / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(elsewhere))
    assert roots_of("shop_of_test.jobs:app") == [here, elsewhere / "shop_of_test"]
    assert roots_of("single_of_test") == [here, elsewhere / "single_of_test.py"]
    assert len(Sources(roots_of("single_of_test"))) == 1
    assert roots_of("no_such_module_at_all:app") == [here]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"a = 1", None),
        (b"def f(:", "jobs.py:1: invalid syntax"),
        (b"a = '\xff'", "jobs.py"),
        (b"a = 1\0", "jobs.py"),
        (b"(" * 1_000, "jobs.py"),
    ],
)
def test_says_what_is_no_python(directory: Path, text: bytes, says: str | None) -> None:
    (directory / "jobs.py").write_bytes(text)
    found = broken([directory / "gone.py", directory / "jobs.py"])
    assert found is None if says is None else says in (found or "")
