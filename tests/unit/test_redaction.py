"""B40: a URL is shown without its password, however it was written."""

import pytest

from packhorse.backends.opening import open_backend, redact, secrets_of
from packhorse.errors import ConfigurationError

SECRET = "canary"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{SECRET}@h/db",
        f"postgresql://u:{SECRET}/x@h/db",
        f"postgresql://u:{SECRET}%40/x@h:5432/db",
        f"postgresql://u:p@ss:{SECRET}/w@h/db",
        f"postgresql://u:{SECRET}@[bad/db",
        f"redis://:{SECRET}#x@h/0",
        f"redis://:{SECRET}?x@h/0",
        f"redis://:p@ss/{SECRET}@h/0",
        f"redis+sentinel://a,b/m/0?sentinel_password={SECRET}",
        f"rediss://h/0?ssl_password={SECRET}&ssl_ca_certs=x",
        f"postgresql://h/db?sslpassword={SECRET}",
        f"postgresql://h/db?user=a&password={SECRET}",
        f"https://:{SECRET}@h/jobs?timeout=3",
        f"https://{SECRET}@h",
        f"HTTPS://anybody:{SECRET}@h:8080",
        f"https://{SECRET}/x?y#z@h",
        f"https://h?proxy=http://u:{SECRET}@p:3128",
        f"https://:token@h?proxy=http%3A%2F%2Fu%3A{SECRET}%40p",
    ],
)
def test_no_password_is_shown(url: str) -> None:
    assert SECRET not in redact(url)
    assert any(SECRET in secret for secret in secrets_of(url))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h:5432/db?options=a@b",
        "redis://h:6379/0",
        "sqlite:///a:b@c.db",
        "postgresql:///db?user=a@b",
        "https://h:8080/jobs?timeout=3",
    ],
)
def test_what_is_no_password_is_shown(url: str) -> None:
    assert redact(url) == url
    assert not secrets_of(url)


@pytest.mark.parametrize("scheme", ["postgresql", "redis"])
def test_a_password_that_a_driver_would_cut_in_two_is_refused(scheme: str) -> None:
    with pytest.raises(ConfigurationError, match="%40") as refused:
        open_backend(f"{scheme}://u:{SECRET}@x/y@h/0")
    assert SECRET not in str(refused.value)


def test_a_sqlite_url_needs_its_slashes() -> None:
    with pytest.raises(ConfigurationError, match="three slashes"):
        open_backend("sqlite:jobs.db")
