"""PostgreSQL and Redis for the tests: found, else started privately, else installed; and removed again at the end.

    python3 scripts/servers.py install              install what is missing (Debian, as root)
    python3 scripts/servers.py run COMMAND …        run a command with PACKHORSE_TEST_POSTGRES and _REDIS set

In this order: the URL in PACKHORSE_TEST_POSTGRES or PACKHORSE_TEST_REDIS; a server on the default port of this machine
that lets us in without a password; a private one in a temporary directory. Packages that were installed stay; servers
and directories made here go when this process ends, however it ends. Nothing else is ever stopped.

Only the standard library, so that it runs before there is a virtual environment.
"""

from __future__ import annotations

import grp
import os
import pwd
import random
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

sys.path.insert(0, str(Path(__file__).parent))  # as a script and as a module of the tests
from guard import children_of, guard  # after its directory is known

KINDS = ("postgres", "redis")
VARIABLES = {"postgres": "PACKHORSE_TEST_POSTGRES", "redis": "PACKHORSE_TEST_REDIS"}
DEFAULT_PORTS = {"postgres": 5432, "redis": 6379}
#: Which Debian package brings a program.
PACKAGES = {
    "postgres": "postgresql",
    "redis-server": "redis-server",
    "pgbouncer": "pgbouncer",
    "openssl": "openssl",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "systemd-analyze": "systemd",
}

START_S = 60.0
STOP_S = 20.0
#: Processes that run tests at once, at most, for ports that are no others'.
TESTERS_MAX = 16


class Missing(Exception):
    """A program is not installed and cannot be installed from here."""


# ---- programs ----------------------------------------------------------------------------------------------


def program(name: str) -> str:
    """Answer the path of a program. Raises Missing with the remedy."""
    places = [*os.get_exec_path(), "/usr/sbin", "/usr/local/sbin"]
    # Debian keeps PostgreSQL's programs out of PATH, by version; the newest first.
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name))
    found = shutil.which(name, path=os.pathsep.join([*map(str, versions), *places]))
    if found is None:
        raise Missing(f"{name} is not installed: apt-get install {PACKAGES.get(name, name)}")
    return found


def install(names: Iterable[str] = tuple(PACKAGES)) -> None:
    """Install the programs that are missing, without starting what their packages would start. Raises Missing."""
    packages: list[str] = []
    for name in names:
        try:
            program(name)
        except Missing:
            if PACKAGES[name] not in packages:
                packages.append(PACKAGES[name])
    if not packages:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Missing(f"{', '.join(packages)}: not installed, and only root on Debian can do it: apt-get install")
    print(f"servers: installing {' '.join(packages)}", file=sys.stderr)
    made: list[Path] = []
    try:
        # Debian would make and start a cluster of its own, and Redis and Prometheus on their default ports: not wanted.
        made += _write_new(
            Path("/etc/postgresql-common/createcluster.d/packhorse.conf"), "create_main_cluster = false\n"
        )
        made += _write_new(Path("/usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 101\n", mode=0o755)
        quietly = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
            subprocess.run(["apt-get", *command], env=quietly, capture_output=True, check=True, timeout=900)
    except subprocess.CalledProcessError as error:
        raise Missing(f"{', '.join(packages)} could not be installed: {error.stderr.decode()[-2000:]}") from error
    except (subprocess.SubprocessError, OSError) as error:
        raise Missing(f"{', '.join(packages)} could not be installed: {error}") from error
    finally:
        for path in made:
            path.unlink(missing_ok=True)


def _write_new(path: Path, text: str, mode: int = 0o644) -> list[Path]:
    """Write a file unless there is one; answers what was made."""
    if path.exists():
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return [path]


def unprivileged() -> tuple[int, int] | None:
    """Answer the user and group to run a server as: PostgreSQL and PgBouncer refuse root. None: this user will do."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            return user.pw_uid, user.pw_gid
    return 65534, grp.getgrgid(65534).gr_gid


def free_port() -> int:
    """Answer a port of 127.0.0.1 that nobody listens on; nor on the one 10,000 above, Redis Cluster's second."""
    tester = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for _ in range(100):
        # Below what systems hand out to clients, and none of the testers beside us: nobody takes it meanwhile.
        port = random.randrange(15_000, 22_000, TESTERS_MAX) + tester % TESTERS_MAX
        try:
            for each in (port, port + 10_000):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", each))
        except OSError:
            continue
        return port
    raise RuntimeError("no free port found")


# ---- is it there? ------------------------------------------------------------------------------------------


def postgres_answers(port: int, host: str = "127.0.0.1", user: str = "postgres") -> bool:
    """Answer whether a PostgreSQL there takes queries from `user` without a password."""
    body = struct.pack("!i", 196608) + f"user\0{user}\0database\0postgres\0\0".encode()
    try:
        with socket.create_connection((host, port), timeout=2) as connection:
            connection.sendall(struct.pack("!i", len(body) + 4) + body)
            reply = connection.recv(9)
            connection.sendall(b"X\0\0\0\4")
    except OSError:
        return False
    return reply == b"R" + struct.pack("!ii", 8, 0)


def redis_answers(port: int, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> bytes:
    """Answer what a Redis there says to PING: `+PONG`, an error such as `-NOAUTH …` or `-LOADING …`, or nothing."""
    try:
        with socket.create_connection((host, port), timeout=2) as plain:
            connection = plain if tls is None else tls.wrap_socket(plain, server_hostname=host)
            with connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(256).strip()
    except OSError:
        return b""


def find(kind: str) -> str | None:
    """Answer the URL of a server that is there already: named by the environment, or on the default port."""
    named = os.environ.get(VARIABLES[kind])
    if named:
        return named
    port = DEFAULT_PORTS[kind]
    if kind == "postgres":
        return f"postgresql://postgres@127.0.0.1:{port}/postgres" if postgres_answers(port) else None
    return f"redis://127.0.0.1:{port}/0" if redis_answers(port) == b"+PONG" else None


def provide(kind: str) -> tuple[str, Server | None]:
    """Answer the URL of a server and, where it had to be started, the server, to be closed. Raises Missing."""
    url = find(kind)
    if url is not None:
        return url, None
    install(["postgres"] if kind == "postgres" else ["redis-server"])
    server: Server = PrivatePostgres() if kind == "postgres" else PrivateRedis()
    server.start()
    return server.url, server


# ---- private servers ---------------------------------------------------------------------------------------


class Server:
    """A process on 127.0.0.1 with a directory of its own. Everything is done to that process, by its id, only."""

    def __init__(self) -> None:
        self.user = unprivileged()
        # Short: the path of a Unix socket has at most 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix=f"packhorse-{os.getpid()}-", dir="/tmp"))
        self._own(self.directory)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        guard.mind(directory=self.directory)

    url: str

    def command(self) -> list[str]:
        """Answer the command that runs the server in the foreground."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Answer whether it takes requests."""
        raise NotImplementedError

    #: What asks for a quick and clean end.
    stop_signal = signal.SIGTERM

    def start(self, *, wait: bool = True) -> Self:
        """Start it and, unless told otherwise, wait until it takes requests. A second start does nothing."""
        if self.process is not None and self.process.poll() is None:
            return self
        deadline = time.monotonic() + START_S
        while True:
            self._launch()
            if not wait or self._until_ready(deadline):
                return self
            # After a kill -9 the memory of the old server may be in use for a moment: start again.
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.command()[0]} did not start:\n{self.output()[-3000:]}")
            time.sleep(0.1)

    def _launch(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us, not for the server
                **self._as_user(),
            )
        guard.mind(pid=self.process.pid)

    def _until_ready(self, deadline: float) -> bool:
        assert self.process is not None
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.ready():
                return True
            time.sleep(0.02)
        return False

    def stop(self) -> None:
        """End it cleanly, or by force after `STOP_S`."""
        if self.process is None or self.process.poll() is not None:
            return
        self.thaw()
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.stop_hard()

    def stop_hard(self) -> None:
        """kill -9 of the server and all its processes."""
        if self.process is None:
            return
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(STOP_S)

    def restart(self, *, hard: bool = False) -> None:
        """Stop it, by kill -9 if `hard`, and start it again."""
        if hard:
            self.stop_hard()
        else:
            self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def pids(self) -> list[int]:
        """Answer the ids of its live processes, the server itself first."""
        if self.process is None or self.process.poll() is not None:
            return []
        return [self.process.pid, *children_of(self.process.pid)]

    def output(self) -> str:
        """Answer what it has logged so far."""
        log = self.directory / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    def close(self) -> None:
        """Stop it and remove its directory. Idempotent."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _own(self, path: Path) -> None:
        if self.user is not None:
            os.chown(path, *self.user)

    def _as_user(self) -> dict[str, object]:
        return {} if self.user is None else {"user": self.user[0], "group": self.user[1], "extra_groups": []}

    def run(self, *command: str) -> str:
        """Run a command of the server's package as its user; answers what it printed. Raises CalledProcessError."""
        done = subprocess.run(
            [program(command[0]), *command[1:]],
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **self._as_user(),
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def write(self, name: str, lines: Iterable[str]) -> Path:
        """Write a file of settings into the directory."""
        path = self.directory / name
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o600)
        self._own(path)
        return path


class PrivatePostgres(Server):
    """A PostgreSQL cluster that lets the user `postgres` in without a password. `options`: lines of postgresql.conf.

    `standby_of`: a started one that this one copies and follows, read-only.
    """

    stop_signal = signal.SIGINT  # its "fast" shutdown

    def __init__(
        self, options: Mapping[str, object] | None = None, *, standby_of: PrivatePostgres | None = None
    ) -> None:
        super().__init__()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self.data = self.directory / "data"
        if standby_of is None:
            how = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"]
            self.run("initdb", "-D", str(self.data), *how)
        else:
            self.run("pg_basebackup", "-D", str(self.data), "-R", "-c", "fast", "-d", standby_of.url)
        self.configure(
            {"listen_addresses": "127.0.0.1", "unix_socket_directories": self.directory, "port": self.port}
            | {"timezone": "UTC", "log_timezone": "UTC", "cluster_name": "packhorse-test"}
            | dict(options or {})
        )

    def configure(self, options: Mapping[str, object]) -> None:
        """Add settings; they hold after the next start or `reload`."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in options.items())

    def reload(self) -> None:
        """Have it read its settings again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def command(self) -> list[str]:
        return [program("postgres"), "-D", str(self.data)]

    def ready(self) -> bool:
        return postgres_answers(self.port)


class PrivateRedis(Server):
    """A Redis without persistence unless `config` says otherwise; `config`: lines of redis.conf, by name.

    With `tls` it takes encrypted connections only, with a certificate that `self.ca` (in the URL) has signed.
    """

    def __init__(self, config: Mapping[str, object] | None = None, *, tls: bool = False) -> None:
        super().__init__()
        self.config: dict[str, object] = {"save": '""', "appendonly": "no", "bind": "127.0.0.1", "dir": self.directory}
        self.config |= {"port": self.port} if not tls else {"port": 0, "tls-port": self.port, **self._certificate()}
        self.config |= dict(config or {})
        password = str(self.config.get("requirepass", ""))
        secret = f":{password}@" if password else ""
        self.url = f"{'rediss' if tls else 'redis'}://{secret}127.0.0.1:{self.port}/0"
        self._tls: ssl.SSLContext | None = None
        if tls:
            self.url += f"?ssl_ca_certs={self.ca}"
            self._tls = ssl.create_default_context(cafile=str(self.ca))

    def _certificate(self) -> dict[str, object]:
        """Make a certificate for 127.0.0.1 that is its own authority; answers the settings that use it."""
        self.ca = self.directory / "redis.crt"
        key = self.directory / "redis.key"
        uses = ["subjectAltName=IP:127.0.0.1,DNS:localhost", "keyUsage=critical,digitalSignature,keyCertSign"]
        extensions = [word for use in uses for word in ("-addext", use)]
        new = ["-newkey", "rsa:2048", "-nodes", "-sha256", "-days", "2", "-subj", "/CN=127.0.0.1"]
        self.run("openssl", "req", "-x509", *new, *extensions, "-keyout", str(key), "-out", str(self.ca))
        self.directory.chmod(0o755)  # clients read it
        self.ca.chmod(0o644)
        return {"tls-cert-file": self.ca, "tls-key-file": key, "tls-ca-cert-file": self.ca, "tls-auth-clients": "no"}

    def command(self) -> list[str]:
        path = self.directory / "redis.conf"
        if not path.exists():  # sentinels and clusters write into theirs
            self.write("redis.conf", (f"{name} {value}" for name, value in self.config.items()))
        return [program("redis-server"), str(path)]

    def ready(self) -> bool:
        reply = redis_answers(self.port, tls=self._tls)
        return bool(reply) and not reply.startswith(b"-LOADING")


# ---- command line ------------------------------------------------------------------------------------------


def run(command: list[str]) -> int:
    """Run a command with both servers; answers its exit code."""
    environ = dict(os.environ)
    made: list[Server] = []
    try:
        for kind in KINDS:
            url, server = provide(kind)
            environ[VARIABLES[kind]] = url
            made += [server] if server is not None else []
            print(f"servers: {VARIABLES[kind]}={url}{'' if server is None else ' (private)'}", file=sys.stderr)
        process = subprocess.Popen(command, env=environ)
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the command got it too, and ends by itself
                continue
    finally:
        for server in made:
            server.close()


def main(arguments: list[str]) -> int:
    """Do what the command line says; answers the exit code."""
    actions: dict[str, Callable[[], None]] = {"install": install}
    try:
        if arguments[:1] == ["run"] and len(arguments) > 1:
            return run(arguments[1:])
        if len(arguments) == 1 and arguments[0] in actions:
            actions[arguments[0]]()
            return 0
    except Missing as error:
        print(f"servers: {error}", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
