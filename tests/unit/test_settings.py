"""Where settings come from: keyword, environment, the names of others, file, default, in this order."""

from __future__ import annotations

import datetime as dt
import warnings

import pytest

from packhorse.errors import ConfigurationError, InvalidOption
from packhorse.settings import ALIASES, Settings, duration_ms, load, own_name


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (0, 0),
        (1, 1_000),
        (1.5, 1_500),
        (0.0004, 1),
        ("0", 0),
        ("30", 30_000),
        ("30s", 30_000),
        ("250ms", 250),
        ("5m", 300_000),
        ("2h", 7_200_000),
        ("1d", 86_400_000),
        (" 1.5 h ", 5_400_000),
        ("0.5ms", 1),
        (dt.timedelta(minutes=1), 60_000),
        (10 * 366 * 86_400, 10 * 366 * 86_400_000),
    ],
)
def test_durations(value, ms):
    assert duration_ms(value, "x") == ms
    assert type(duration_ms(value, "x")) is int


@pytest.mark.parametrize(
    "value",
    [
        -1,
        "-1s",
        "",
        "s",
        "1 year",
        "1e3",
        "1,5s",
        "٣s",
        "1s2",
        "inf",
        float("nan"),
        float("inf"),
        True,
        None,
        [],
        b"1s",
        10 * 366 * 86_400 + 1,
        "9" * 400,
        10**5_000,
        dt.timedelta(days=-1),
        dt.timedelta.max,
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, int) else ascii(each)[:20],
)
def test_what_is_no_duration_is_refused_with_what_to_write(value):
    with pytest.raises(InvalidOption, match=r"^x: ") as refused:
        duration_ms(value, "x")
    assert len(str(refused.value)) < 200


def settings(environ=None, directory=None, **overrides) -> Settings:
    return load(overrides, environ or {}, directory)


def test_defaults(tmp_path):
    assert settings(directory=tmp_path) == Settings()


def test_each_source_outranks_the_next(tmp_path):
    (tmp_path / "packhorse.toml").write_text('concurrency = 5\nlease = "5s"\n')
    alias = {"WORKER_CONCURRENCY": "4"}
    own = {"PACKHORSE_CONCURRENCY": "4"}
    assert settings(directory=tmp_path).concurrency == 5
    assert settings(alias, tmp_path).concurrency == 4
    assert settings(alias | own, tmp_path).concurrency == 4
    assert settings(own, tmp_path, concurrency=2).concurrency == 2
    assert settings(own, tmp_path, concurrency=None).concurrency == 4, "None counts as not given"
    assert settings(own, tmp_path).lease_ms == 5_000, "what only the file says"


def test_two_names_that_disagree_warn_with_both_names_and_no_values(tmp_path):
    environ = {"PACKHORSE_URL": "postgres://u:secret@h/a", "REDIS_URL": "redis://u:hidden@h"}
    with pytest.warns(UserWarning, match="PACKHORSE_URL and REDIS_URL disagree; PACKHORSE_URL is used") as seen:
        assert settings(environ, tmp_path).url.startswith("postgres")
    assert "secret" not in str(seen[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = {"WORKERS": "3", "WORKER_COUNT": "3", "PACKHORSE_CONCURRENCY": "3"}
        assert settings(same, tmp_path).concurrency == 3
        assert settings(environ | {"REDIS_URL": ""}, tmp_path).url.startswith("postgres"), "empty is not given"


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("REDIS_URL", "redis://h", "url", "redis://h"),
        ("WORKER_CONCURRENCY", "5", "concurrency", 5),
        ("WORKER_COUNT", "5", "concurrency", 5),
        ("WORKERS", "5", "concurrency", 5),
        ("WORKER_POLL_INTERVAL", "1s", "poll_interval_ms", 1_000),
        ("WORKER_MAX_RETRIES", "3", "max_attempts", 4),
        ("WORKER_MAX_RETRIES", "0", "max_attempts", 1),
        ("MAX_ATTEMPTS", "3", "max_attempts", 3),
        ("WORKER_SHUTDOWN_TIMEOUT", "30s", "shutdown_timeout_ms", 30_000),
        ("LOG_LEVEL", "WARNING", "log_level", "warning"),
        ("LOG_FORMAT", "json", "log_format", "json"),
    ],
)
def test_the_names_of_other_engines_are_understood(name, text, field, value, tmp_path):
    assert getattr(settings({name: text}, tmp_path), field) == value


def test_every_field_has_a_name_in_the_environment_and_every_alias_a_field():
    names = {own_name(field) for field in Settings.__struct_fields__}
    assert {"PACKHORSE_URL", "PACKHORSE_QUEUES", "PACKHORSE_LEASE", "PACKHORSE_SHUTDOWN_TIMEOUT"} <= names
    assert len(names) == len(Settings.__struct_fields__)
    assert {field for field, _ in ALIASES.values()} <= set(Settings.__struct_fields__)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PACKHORSE_CONCURRENCY", "0"),
        ("PACKHORSE_CONCURRENCY", "-1"),
        ("PACKHORSE_CONCURRENCY", "many"),
        ("PACKHORSE_CONCURRENCY", "1.5"),
        ("PACKHORSE_CONCURRENCY", "100001"),
        ("PACKHORSE_CONCURRENCY", "9" * 5_000),
        ("PACKHORSE_LEASE", "soon"),
        ("PACKHORSE_QUEUES", " , "),
        ("PACKHORSE_LOG_LEVEL", "loud"),
        ("PACKHORSE_LOG_FORMAT", "xml"),
        ("WORKER_MAX_RETRIES", "-1"),
        ("PACKHORSE_CONFIG", "/nowhere/at.all"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_name(name, text, tmp_path):
    with pytest.raises(ConfigurationError) as refused:
        settings({name: text}, tmp_path)
    assert name in str(refused.value)
    assert len(str(refused.value)) < 300


def test_keywords_are_read_as_strictly(tmp_path):
    for overrides in ({"concurrency": 10**5_000}, {"concurrency": None, "lease": object()}, {"queues": 5}):
        with pytest.raises(ConfigurationError):
            settings(directory=tmp_path, **overrides)
    with pytest.raises(ConfigurationError, match=r"there is no setting 'concurency'; there are .*concurrency"):
        settings(directory=tmp_path, concurency=5)
    assert settings(directory=tmp_path, queues=["a", "b"], lease="2s").queues == ("a", "b")


def test_files(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.packhorse]\nqueues = ["x"]\n')
    assert settings(directory=tmp_path).queues == ("x",)
    (tmp_path / "packhorse.toml").write_text('queues = "y, z"\n')
    assert settings(directory=tmp_path).queues == ("y", "z"), "its own file comes first"
    other = tmp_path / "other.toml"
    other.write_text('queues = ["named"]\n')
    assert settings({"PACKHORSE_CONFIG": str(other)}, tmp_path).queues == ("named",)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("packhorse.toml", b"queues = "),
        ("packhorse.toml", b"\xff\xfe"),
        ("packhorse.toml", b"colour = 1"),
        ("packhorse.toml", b"concurrency = 'x'"),
        ("packhorse.toml", b"concurrency = 1.5"),
        ("packhorse.toml", b"queues = 5"),
        ("pyproject.toml", b"[tool]\npackhorse = 5"),
        ("pyproject.toml", b"tool = 5"),
    ],
)
def test_a_file_that_cannot_work_is_refused_by_its_name(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigurationError, match=name):
        settings(directory=tmp_path)


def test_a_file_of_another_tool_is_not_ours(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.other]\nconcurrency = 1\n")
    assert settings(directory=tmp_path) == Settings()


def test_settings_show_no_secret_when_they_are_printed():
    settings = load({"url": "postgres://u:canary@h/a", "token": "canary-of-a-token-0123"}, {})
    assert "canary" not in f"{settings} {settings!r} {[settings]}"
    assert "concurrency=100" in repr(settings)
    assert "token=None" in repr(load({}, {}))
