"""The document and the server say the same: schemathesis asks what the document allows, and what it does not.

Every check of schemathesis runs, on what fits the schema and on what does not. A schema cannot say all that makes a
request sensible: `SENSE` is what else may be refused, by its words, and nothing that fits is refused for other reasons.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import positive_data_acceptance

from packhorse.observe import exposition
from packhorse.server import health
from packhorse.server.app import operations
from packhorse.server.openapi import make_document
from tests.server.real import TOKEN, served
from tests.server.tasks import make_app

FULL = bool(os.environ.get("PACKHORSE_FULL"))
EXAMPLES = 100 if FULL else 5
#: Cases at the bounds of one operation; the largest bodies have thousands.
CASES = 2_000 if FULL else 100
#: Methods that the parser itself does not know: 501, whatever the URL.
UNHEARD_OF = {"QUERY", "TRACE"}
#: Operations whose document does not say which payload belongs to which type.
UNDESCRIBED = {"POST /jobs", "PUT /api/v1/schedules/{name}"}
HEADERS = {"Authorization": f"Bearer {TOKEN}"}

#: Refusals of what fits the schema.
SENSE = [
    r"printable characters",  # patterns have no common way to say it
    r"must not contain NUL|must fit in signed 64 bits|nested deeper than",  # bounds of every payload
    r"Expected `int( \| str)?`, got `float`",  # 29.0, which JSON Schema takes for a whole number
    r"is not a cursor",
    r"is out of bounds; allowed is",  # of durations as text
    r"more than ten years ahead",
    r"contradicts",
    r"say more about a unique key",
    r"unique: there is no argument",
    r"a schedule (itself says|has cron)",
    r"cron expression|cron:|time zone|tz:",
    r"every: must be from 1s to 366d",
    r"recurring: ",
    r"idempotency_key: each slot",
    r"overlap='skip' holds a unique key already",
    r"workflow: ",
    r"after: (there is no job|.* must be a job, its id)",
    r"state: .*(cannot be|can be)",  # of a verb that cannot act upon all states
    r"differs from the header",
    r"a lease of|is not an instant",
    r"must be from 1ms to 366d",
    r"only failed jobs are in groups",
    r"jitter: must be",
]
_SENSE = re.compile("|".join(SENSE))

load_all_checks()


def _schema() -> schemathesis.BaseSchema:
    app = make_app("memory://")
    return schemathesis.openapi.from_dict(make_document(operations(), app.tasks))


_OPERATIONS = {
    found.ok().label: found.ok()
    for found in _schema().get_all_operations()
    if "text/event-stream" not in str(found.ok().definition.raw)  # has no end
}


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("schemathesis")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exposition, "_REST_FACTOR", 0)  # the rest after each scrape is nothing to wait for here
        patched.setattr(health, "LOOK_MS_MAX", 60_000)  # a store that is late is 503, and the machine may make it so
        with served(make_app(f"sqlite:///{folder}/jobs.db", folder)) as found:
            yield found


def _ask(url: str, session: requests.Session, case: Case) -> None:
    """Send a case, and hold the answer to the document."""
    response = case.call(base_url=url, session=session, headers=HEADERS, timeout=60)
    case.validate_response(
        response,
        headers=HEADERS,
        transport_kwargs={"base_url": url},
        excluded_checks=[positive_data_acceptance] if _is_sense(case, response) else [],
    )


def _is_sense(case: Case, response: requests.Response) -> bool:
    """Tell whether an answer refuses what no schema could."""
    if response.status_code not in {400, 422}:
        return False
    problem = response.json()
    if case.operation.label in UNDESCRIBED and problem["type"] == "urn:packhorse:invalid-payload":
        return True
    return _SENSE.search(problem.get("detail", "")) is not None


def _waits(case: Case) -> bool:
    return isinstance(case.body, dict) and "wait" in case.body


@pytest.mark.parametrize("label", _OPERATIONS)
def test_the_server_does_as_the_document_says_at_every_bound(url: str, label: str) -> None:
    """Each parameter and member at its bounds and beyond, left out, doubled, of other types; and other methods."""
    operation = _OPERATIONS[label]
    cases = operation.schema.iter_coverage_cases(
        operation,
        generation_modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE],
        generation_config=operation.schema.config.generation_for(operation=operation),
    )
    with requests.Session() as session:
        for case in itertools.islice(cases, CASES):
            if case.method not in UNHEARD_OF and not _waits(case):
                _ask(url, session, case)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fits", "does not fit"])
@pytest.mark.parametrize("label", _OPERATIONS)
def test_the_server_does_as_the_document_says(url: str, label: str, mode: GenerationMode) -> None:
    operation = _OPERATIONS[label]
    if mode is GenerationMode.NEGATIVE and not (list(operation.iter_parameters()) or operation.body):
        return  # nothing to get wrong
    with requests.Session() as session:

        def ask(case: Case) -> None:
            if not _waits(case):
                _ask(url, session, case)

        strategy = operation.as_strategy(generation_mode=mode)
        settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )(given(strategy)(ask))()
