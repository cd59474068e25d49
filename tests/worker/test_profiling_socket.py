"""The keeper's control socket: who gets in, what it withstands, what is left behind."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from looking_in import runtime  # noqa: F401  # a fixture

from packhorse.errors import ConfigurationError
from packhorse.worker import control
from packhorse.worker.control import AskProfile, AskStacks, Keeps, NoControl, Refused, Who, ask, runners_here
from packhorse.worker.controlled import Controlled

NOBODY = 65534


def open_socket(scenario: Callable[[Path], Awaitable[None] | None]) -> None:
    """Do something while a keeper without runners listens; `scenario` runs in a thread of its own."""

    async def main() -> None:
        controlled = Controlled(list)
        await controlled.start()
        try:
            ((_, path),) = control.sockets(control.directories()[0])
            await asyncio.wait_for(asyncio.to_thread(scenario, path), 100)
        finally:
            await controlled.stop()
        assert not path.exists()

    asyncio.run(main())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o777], ids=["open", "closed"])
def test_nobody_else_gets_at_the_socket_whatever_the_umask(runtime: Path, umask: int) -> None:  # noqa: F811
    """C27."""
    before = os.umask(umask)
    try:

        def look(path: Path) -> None:
            assert mode(path) == 0o600
            assert mode(path.parent) == 0o700
            assert path.parent.lstat().st_uid == os.getuid()
            assert isinstance(ask(path, Who()), Keeps)

        open_socket(look)
    finally:
        os.umask(before)


def test_a_directory_that_is_a_link_or_open_to_others_is_not_used(runtime: Path) -> None:  # noqa: F811
    """C27: somebody may have put it there before us."""
    elsewhere = runtime / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (runtime / "packhorse").symlink_to(elsewhere)
    (runtime / "packhorse-other").mkdir()
    (runtime / "packhorse-other").chmod(0o777)
    with pytest.raises(ConfigurationError, match="set XDG_RUNTIME_DIR"):
        control.make_directory()
    (elsewhere / "keeper-1.sock").touch()
    assert list(control.sockets(runtime / "packhorse")) == []
    assert list(control.sockets(runtime / "packhorse-other")) == []


def test_a_worker_works_without_a_socket(
    runtime: Path,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("packhorse", "packhorse-other"):
        (runtime / name).write_text("a file")

    async def main() -> None:
        controlled = Controlled(list)
        await controlled.start()
        await controlled.stop()

    asyncio.run(main())
    assert "cannot look into this worker" in caplog.text


def test_a_path_too_long_for_a_socket_is_passed_over(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(control, "directories", lambda: [runtime / ("x" * 100), runtime / "packhorse"])
    assert control.make_directory() == runtime / "packhorse"


def test_sockets_of_dead_keepers_are_swept_and_others_stay(runtime: Path) -> None:  # noqa: F811
    directory = control.make_directory()
    dead = control.path_of(directory, 999_999)
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(dead))
    stranger = directory / "notes.txt"
    stranger.touch()

    def look(path: Path) -> None:
        assert not dead.exists()
        assert stranger.exists()
        control.sweep(directory)
        assert path.exists()

    open_socket(look)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_even_if_the_modes_let_him_in(
    runtime: Path,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    def look(path: Path) -> None:
        runtime.chmod(0o755)
        path.parent.chmod(0o755)
        path.chmod(0o666)
        child = os.fork()
        if child == 0:  # as another user, with nothing but system calls
            code = 3
            try:
                os.setresuid(NOBODY, NOBODY, NOBODY)
                end = socket.socket(socket.AF_UNIX)
                end.settimeout(60)
                end.connect(str(path))
                end.sendall(control.pack(Who()))
                code = 0 if end.recv(10) == b"" else 1
            except ConnectionError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    open_socket(look)
    assert "user 65534 tried to look into this worker and was refused" in caplog.text


GARBAGE = {
    "nothing": b"",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": b"\0" * 64,
    "huge": b"\xff\xff\xff\xff" + b"x" * 100,
    "half": control.pack(Who())[:-1],
    "not msgpack": (4).to_bytes(4) + b"\xc1\xc1\xc1\xc1",
    "another shape": (1).to_bytes(4) + b"\x90",
    "a question and more": control.pack(Who()) + b"more",
}


def test_garbage_does_not_hurt_the_keeper(runtime: Path, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    def look(path: Path) -> None:
        for data in GARBAGE.values():
            with socket.socket(socket.AF_UNIX) as end:
                end.settimeout(60)
                end.connect(str(path))
                end.sendall(data)
                end.shutdown(socket.SHUT_WR)
                while end.recv(1_000):
                    pass
        assert ask(path, Who()) == Keeps([])

    open_socket(look)
    assert "bug" not in caplog.text


def test_many_who_ask_nothing_do_not_keep_others_out_for_ever(
    runtime: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("packhorse.worker.controlled._QUESTION_S", 0.3)

    def look(path: Path) -> None:
        silent = [socket.socket(socket.AF_UNIX) for _ in range(12)]
        for end in silent:
            end.connect(str(path))
        for end in silent[:8]:  # cut off in time
            end.settimeout(60)
            assert end.recv(10) == b""
        assert ask(path, Who()) == Keeps([])
        for end in silent:
            end.close()

    open_socket(look)


def test_a_worker_that_ended_and_a_question_out_of_bounds_are_refused(runtime: Path) -> None:  # noqa: F811
    def look(path: Path) -> None:
        for question in (AskStacks("gone"), AskProfile("gone", 1_000, 100, "cpu")):
            answer = ask(path, question)
            assert isinstance(answer, Refused)
            assert "has ended" in answer.reason

    open_socket(look)


def test_an_answer_that_never_comes_or_breaks_off_is_a_clear_error(runtime: Path) -> None:  # noqa: F811
    directory = control.make_directory()
    end, path = control.listen(directory)

    def serve(data: bytes) -> None:
        peer, _ = end.accept()
        peer.recv(100)
        peer.sendall(data)
        peer.close()

    for data, said in ((b"", "ended before"), (b"\0\0\0\x09half", "ended before"), (b"\xff" * 8, "larger than")):
        thread = threading.Thread(target=serve, args=(data,))
        thread.start()
        with pytest.raises(NoControl, match=said):
            ask(path, Who())
        thread.join()
    with pytest.raises(NoControl, match="does not answer in time"):
        ask(path, Who(), 0.1)
    end.close()
    assert runners_here() == []
