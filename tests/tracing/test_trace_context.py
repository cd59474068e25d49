"""The context that jobs carry: what is read, what is written, what is not believed."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.trace import TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from packhorse.job import META_MAX, JobSpec
from packhorse.observe.trace_context import (
    carrying,
    context_of,
    passed_on,
    read_traceparent,
    read_tracestate,
)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"

#: Named, as ids of tests; none of them may be believed.
HOSTILE = {
    "nothing": "",
    "a word": "on",
    "one too short": GOOD[:-1],
    "one too long": GOOD + "0",
    "an addition that version 00 does not have": GOOD + "-more",
    "not hexadecimal": f"00-{TRACE[:-1]}g-{SPAN}-01",
    "upper case": f"00-{TRACE.upper()}-{SPAN}-01",
    "upper case span": f"00-{TRACE}-{SPAN.upper()}-01",
    "a trace of zeros": f"00-{'0' * 32}-{SPAN}-01",
    "a span of zeros": f"00-{TRACE}-{'0' * 16}-01",
    "version ff": f"ff-{TRACE}-{SPAN}-01",
    "a version of one digit": f"0-{TRACE}-{SPAN}-011",
    "a later version without a dash": f"cc-{TRACE}-{SPAN}-01.more",
    "flags that are no number": f"00-{TRACE}-{SPAN}-0x",
    "other dashes": GOOD.replace("-", "_"),
    "digits of another script": f"00-{TRACE[:-1]}٣-{SPAN}-01",
    "spaces around": f" {GOOD} ",
    "a line more": GOOD + "\n",
    "a line before": "\n" + GOOD,
    "two": f"{GOOD},{GOOD}",
    "ten kB": GOOD + "-" + "a" * 10_000,
    "ten kB of digits": "0" * 10_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_not_valid_is_as_if_it_were_not_there(text: str) -> None:
    assert read_traceparent(text) is None
    spec = JobSpec(id="a", type="t")
    assert passed_on([spec], {"traceparent": text}) == [spec]


@pytest.mark.parametrize("value", [None, 1, b"00", ["00"], {}])
def test_what_is_no_text_is_not_read(value: object) -> None:
    assert read_traceparent(value) is None


@pytest.mark.parametrize(
    ("text", "sampled"),
    [
        (GOOD, True),
        (GOOD[:-2] + "00", False),
        (GOOD[:-2] + "02", False),
        (GOOD[:-2] + "03", True),
        (GOOD[:-2] + "ff", True),
        (f"cc-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", True),
    ],
)
def test_what_is_valid_is_read_as_opentelemetry_reads_it(text: str, sampled: bool) -> None:
    found = read_traceparent(text)
    assert found is not None
    assert (found.trace_id, found.span_id, found.sampled) == (TRACE, SPAN, sampled)
    context = TraceContextTextMapPropagator().extract({"traceparent": text})
    theirs = trace.get_current_span(context).get_span_context()
    assert (theirs.trace_id, theirs.trace_flags.sampled) == (int(TRACE, 16), sampled)
    assert read_traceparent(str(found)) == found


@pytest.mark.parametrize(
    "text",
    ["a=1", "vendor=1,other=2", "a=1 , b=2", "7up@v=x", "a=" + "b" * 256, ",".join(f"k{n}=v" for n in range(32))],
)
def test_a_tracestate_that_is_valid_is_carried(text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert read_tracestate(text) == text
    assert len(TraceState.from_header([text])) == text.count(",") + 1
    assert not caplog.records


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "=", "a=", "a= ", "A=b", "a=b=c", "a=1,", ",a=1", "7=x", "a=1,B=2", "a=\n1", "a=é", "a\n=1"),
        *("a" * 512, "k" * 257 + "=1", "a=" + "b" * 257, ",".join(f"k{n}=v" for n in range(33)), "a=b," * 200),
        *(None, 7),
    ],
)
def test_c22_any_other_is_not_since_who_submits_jobs_would_write_into_the_logs_of_workers(text: object) -> None:
    """OpenTelemetry warns of each member that it cannot read, at each span."""
    assert read_tracestate(text) is None


def test_a_job_carries_it_in_its_meta_beside_the_rest() -> None:
    spec = carrying(JobSpec(id="a", type="t", meta={"user": "u", "traceparent": "junk", "tracestate": "x=1"}), GOOD)
    assert spec.meta == {"user": "u", "traceparent": GOOD}
    assert context_of(spec.meta) == read_traceparent(GOOD)
    assert carrying(spec, GOOD, "y=2").meta == {"user": "u", "traceparent": GOOD, "tracestate": "y=2"}


def test_a_job_whose_meta_is_full_stays_as_it_is() -> None:
    meta = {f"name{number}": "" for number in range(META_MAX)}
    full = JobSpec(id="a", type="t", meta=meta)
    assert carrying(full, GOOD) is full
    del meta["name0"]
    nearly = JobSpec(id="a", type="t", meta=meta)
    carried = carrying(nearly, GOOD, "x=1").meta or {}
    assert len(carried) == META_MAX
    assert "tracestate" not in carried


def test_what_has_a_context_of_its_own_keeps_it() -> None:
    own = f"00-{'a' * 32}-{'b' * 16}-00"
    specs = [JobSpec(id="a", type="t", meta={"traceparent": own}), JobSpec(id="b", type="t")]
    first, second = passed_on(specs, {"traceparent": GOOD, "tracestate": "x=1"})
    assert first.meta == {"traceparent": own}
    assert second.meta == {"traceparent": GOOD, "tracestate": "x=1"}
