"""The fault proxy does to a connection what it says, and nothing else."""

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.proxy import FaultProxy


class Echo:
    """Answers every line twice, and counts them."""

    def __init__(self) -> None:
        self.lines = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb", buffering=0) as file:
            try:
                for line in file:
                    self.lines += 1
                    file.write(line + line)
            except OSError:
                return


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.socket.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy(echo.port) as proxy:
        yield proxy


def connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=60)


def ask(connection: socket.socket, line: bytes = b"hello\n") -> bytes:
    connection.sendall(line)
    answer = b""
    while len(answer) < 2 * len(line):
        more = connection.recv(100)
        if not more:
            return answer
        answer += more
    return answer


def test_it_passes(proxy: FaultProxy) -> None:
    with connect(proxy) as connection:
        assert ask(connection) == b"hello\nhello\n"
        assert proxy.sent == 6
        assert proxy.received == 12
    assert proxy.url("redis://u:p@example.com:6379/0?a=b") == f"redis://u:p@127.0.0.1:{proxy.port}/0?a=b"


def test_it_stalls_and_resumes(proxy: FaultProxy, echo: Echo) -> None:
    with connect(proxy) as connection:
        ask(connection)
        proxy.stall()
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            ask(connection)
        assert echo.lines == 1
        connection.settimeout(60)
        proxy.resume()
        assert connection.recv(100).startswith(b"hello\n")


def test_a_reply_is_lost_after_the_request_went_through(proxy: FaultProxy, echo: Echo) -> None:
    with connect(proxy) as connection, connect(proxy) as other:
        proxy.cut(when=b"second")
        assert ask(connection) == b"hello\nhello\n"
        with pytest.raises(ConnectionError):
            ask(connection, b"second\n")
        assert echo.lines == 2
        assert ask(other) == b"hello\nhello\n"


def test_a_reply_is_cut_in_its_middle(proxy: FaultProxy) -> None:
    with connect(proxy) as connection:
        proxy.cut(after_bytes=8)
        connection.sendall(b"hello\n")
        assert connection.recv(100) == b"hello\nhe"
        with pytest.raises(ConnectionError):
            connection.recv(100)


def test_it_resets_and_refuses_and_takes_connections_again(proxy: FaultProxy) -> None:
    with connect(proxy) as connection:
        ask(connection)
        proxy.reset()
        with pytest.raises(ConnectionError):
            ask(connection)
    with connect(proxy) as connection:
        ask(connection)
        proxy.refuse()
        with pytest.raises(ConnectionError):
            ask(connection)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.accept()
    with connect(proxy) as connection:
        assert ask(connection) == b"hello\nhello\n"
    assert proxy.connections() <= 1
