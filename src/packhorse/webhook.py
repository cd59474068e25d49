"""What a webhook is: whom to tell of the end of which jobs. Values of the settings, read strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from .errors import ConfigurationError, InvalidName, shown
from .job import TERMINAL, State, check_name
from .wording import quantity

#: Webhooks of one server.
WEBHOOKS_MAX = 16
URL_CHARS_MAX = 2_048
#: Characters of a secret: at least what nobody guesses.
SECRET_CHARS_MIN = 16
SECRET_CHARS_MAX = 512
CONCURRENCY_MAX = 4
_FILE_BYTES_MAX = 1 << 20
_NAMES_MAX = 100

#: Printable ASCII, without what programs read in two ways. A name in other scripts is written as `xn--…`.
_URL = re.compile(r"https?://[!$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]+", re.ASCII)
_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*", re.ASCII)
#: A last part that is a number makes a host an address in many programs: 127.1, 0x7f000001, 2130706433.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to tell. `states` that are told; `queues` and `types`: of any if there are none.

    `secret` signs what is sent, and is never shown.
    """

    url: str
    secret: str
    states: tuple[State, ...] = (State.SUCCEEDED, State.FAILED, State.CANCELLED)
    queues: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    concurrency: int = 2

    def __repr__(self) -> str:
        return f"<Webhook {self.place}>"

    @property
    def place(self) -> str:
        """Where it goes, for people: paths and queries of such URLs are often secrets themselves."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}/…"


def read_webhooks(value: object, what: str) -> tuple[Webhook, ...]:
    """Read a list of tables, or the name of a JSON file with one. Raises ConfigurationError, without any secret."""
    if isinstance(value, str):
        return read_webhooks(_read_file(value, what), Path(value).name)
    if isinstance(value, tuple) and all(isinstance(item, Webhook) for item in value):
        return value
    if not isinstance(value, list | tuple):
        raise ConfigurationError(f"{what} must be a list of tables with url and secret")
    if len(value) > WEBHOOKS_MAX:
        raise ConfigurationError(f"{what} has {quantity(len(value), 'webhook')}; at most {WEBHOOKS_MAX} are taken")
    return tuple(_read(item, f"{what}[{number}]") for number, item in enumerate(value))


def read_networks(value: object, what: str) -> tuple[str, ...]:
    """Read networks as `10.0.0.0/8` or addresses as `127.0.0.1`: a list, or text with commas."""
    import ipaddress  # costs each start about a ms

    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise ConfigurationError(f"{what} must be a list of networks, as 10.1.0.0/16")
    found = []
    for item in items:
        text = str(item).strip()
        try:
            found.append(str(ipaddress.ip_network(text)))
        except ValueError:
            raise ConfigurationError(
                f"{what}: {shown(text)} is no network; write it as 10.1.0.0/16, fd00:1::/32 or 127.0.0.1 (not a name: "
                "what a name stands for is up to others)"
            ) from None
    return tuple(found)


def check_url(url: object, what: str) -> str:
    """Answer `url` if any program reads it in the same way, else raise ConfigurationError.

    So no user, no fragment, no name that is written other than in lower-case ASCII or that is nearly an address.
    """
    if not isinstance(url, str) or len(url) > URL_CHARS_MAX or not _URL.fullmatch(url):
        raise ConfigurationError(
            f"{what}: the URL must begin with https:// or http:// and be printable ASCII of at most {URL_CHARS_MAX} "
            "characters (write a name of other scripts as xn--…, a space as %20)"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ConfigurationError(f"{what}: the URL has no host and port that can be read") from None
    if "@" in parts.netloc:
        raise ConfigurationError(f"{what}: the URL must not have a user or password; the signature proves who sends")
    if port == 0 or parts.netloc.endswith(":"):
        raise ConfigurationError(f"{what}: the URL's port must be a number from 1 to 65535, or left out")
    if "[" in parts.netloc:
        rest = parts.netloc.partition("]")[2]
        if not _is_address(host, 6) or not parts.netloc.startswith("[") or not (rest == "" or rest.startswith(":")):
            raise ConfigurationError(f"{what}: the URL's host is not an IPv6 address")
    elif _NUMBER.fullmatch(host.rpartition(".")[2]):
        if not _is_address(host, 4):
            raise ConfigurationError(f"{what}: write an IPv4 address as four decimal numbers, as 192.0.2.1")
    elif not _HOST.fullmatch(host) or len(host) > 253:
        raise ConfigurationError(f"{what}: {shown(host)} is not the name of a host")
    return url


def _is_address(host: str, version: int) -> bool:
    import ipaddress

    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.version == version and getattr(address, "scope_id", None) is None


def _read(item: object, what: str) -> Webhook:
    if not isinstance(item, Mapping):
        raise ConfigurationError(f"{what} must be a table with url and secret")
    unknown = [name for name in item if name not in Webhook.__struct_fields__]
    if unknown:
        raise ConfigurationError(
            f"{what} has no setting {shown(unknown[0])}; there are {', '.join(Webhook.__struct_fields__)}"
        )
    secret = item.get("secret")
    if not isinstance(secret, str) or not SECRET_CHARS_MIN <= len(secret) <= SECRET_CHARS_MAX:
        raise ConfigurationError(
            f"{what}: the secret must be text of {SECRET_CHARS_MIN} to {SECRET_CHARS_MAX} characters; "
            "`openssl rand -hex 32` makes one"
        )
    concurrency = item.get("concurrency", 2)
    if not isinstance(concurrency, int) or not 1 <= concurrency <= CONCURRENCY_MAX:
        raise ConfigurationError(f"{what}: concurrency must be a whole number from 1 to {CONCURRENCY_MAX}")
    return Webhook(
        url=check_url(item.get("url"), what),
        secret=secret,
        states=_states(item.get("states"), what),
        queues=_names(item.get("queues", ()), "queue", what),
        types=_names(item.get("types", ()), "job type", what),
        concurrency=concurrency,
    )


def _states(value: object, what: str) -> tuple[State, ...]:
    if value is None:
        return (State.SUCCEEDED, State.FAILED, State.CANCELLED)
    words = list(value) if isinstance(value, list | tuple) else []
    found = tuple(state for state in State if state in TERMINAL and state in words)
    if not found or len(found) != len(words):
        raise ConfigurationError(f"{what}: states must be some of {', '.join(sorted(TERMINAL))}, each once")
    return found


def _names(value: object, kind: str, what: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > _NAMES_MAX:
        raise ConfigurationError(f"{what}: write names of a {kind} as a list, at most {_NAMES_MAX}")
    try:
        return tuple(check_name(name, kind) for name in value)
    except InvalidName as error:
        raise ConfigurationError(f"{what}: {error}") from None


def _read_file(name: str, what: str) -> object:
    path = Path(name)
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
        if len(data) > _FILE_BYTES_MAX:
            raise ConfigurationError(f"{what} names {name}, which is larger than {_FILE_BYTES_MAX:,} bytes")
        found: object = msgspec.json.decode(data)
    except OSError as error:
        raise ConfigurationError(f"{what} names {name}, which cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ConfigurationError(f"{what} names {name}, which is not JSON") from None
    if isinstance(found, str):
        raise ConfigurationError(f"{what} names {name}, which must have a list of tables with url and secret")
    return found
