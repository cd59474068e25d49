"""Bytes come back as they went in: payloads, results and texts."""

from __future__ import annotations

import json

from ... import codec
from ...backends.base import Rerun
from ...errors import InvalidPayload
from ...job import JobError, State
from .case import case, equal, true
from .harness import Harness

#: Plain JSON as bytes, each valid for `codec.parse`. Spaces, escapes and the form of numbers must survive too.
CORPUS: tuple[bytes, ...] = (
    b"{}",
    b"[]",
    b"null",
    b"true",
    b"0",
    b"-0.0",
    b'""',
    b'"plain text"',
    b'  { "a" : 1 ,\n\t"b":[ ] }  ',
    b'{"b":1,"a":2}',
    b"1e2",
    b"1.0",
    b"1.10",
    b"5e-324",
    b"1.7976931348623157e308",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"0.1",
    '"ümlaut, 🐴, \u2028, \u202e, \ufeff"'.encode(),
    '"e\u0301 and \u00e9"'.encode(),
    b'"\\ud83d\\udc34 \\u00e9 \\/ \\n"',
    b'"\x7f"',
    b'"\'; DROP TABLE jobs; --"',
    b'{"":{"":[""]}}',
    b'{"$ne":null,"__class__":"os","@type":"x","%s":"{0}"}',
    b'"</script><img src=x onerror=alert(1)>"',
    b"[" * 63 + b"]" * 63,
    json.dumps({"list": list(range(500))}).encode(),
    b'"' + b"x" * (codec.PAYLOAD_BYTES_MAX - 2) + b'"',
)


def _valid(document: bytes) -> bool:
    try:
        codec.parse(document)
    except InvalidPayload:
        return False
    return True


@case("B37", "C13")
async def payloads_come_back_byte_equal(h: Harness) -> None:
    true(all(_valid(document) for document in CORPUS), "the corpus itself is not valid")
    specs = [h.spec(payload=document) for document in CORPUS]
    await h.backend.enqueue(specs)
    for record, document in zip(await h.backend.get([spec.id for spec in specs]), CORPUS, strict=True):
        true(record is not None and record.payload == document, f"got back otherwise: {document[:60]!r}")
    claimed = {job.id: job.payload for job in await h.claim(len(specs))}
    for spec in specs:
        true(claimed[spec.id] == spec.payload, f"claimed otherwise: {spec.payload[:60]!r}")


@case("B37", "C13")
async def results_come_back_byte_equal(h: Harness) -> None:
    for number, document in enumerate(CORPUS):
        job = await h.start(queue=f"q{number}")
        await h.settle(job, State.SUCCEEDED, result=document)
        true((await h.record(job.id)).result == document, f"got back otherwise: {document[:60]!r}")


@case()
async def no_result_differs_from_the_result_null(h: Harness) -> None:
    for result in (None, b"null", b""):
        job = await h.start()
        await h.settle(job, State.SUCCEEDED, result=result)
        equal((await h.record(job.id)).result, result, "result")


@case("B37")
async def edited_payloads_come_back_byte_equal(h: Harness) -> None:
    for document in CORPUS:
        job_id, _ = await h.put(State.SUCCEEDED)
        await h.backend.rerun([Rerun(id=job_id, payload=document, queue="edited")])
        true((await h.record(job_id)).payload == document, f"got back otherwise: {document[:60]!r}")
        equal([job.payload == document for job in await h.claim(5, "edited")], [True], "claimed")


@case()
async def texts_come_back_as_they_were(h: Harness) -> None:
    texts = ("", "plain", "ümlaut 🐴", "a\nb\tc\x1b[31m", "'; DROP TABLE jobs; --", "%s {0} $1 ?1 :a", "x" * 16_384)
    job = await h.start(max_attempts=100)
    errors = []
    for number, text in enumerate(texts):
        error = JobError(attempt=number + 1, at_ms=number, kind=text[:128], message=text[:4_096], traceback=text)
        errors.append(error)
        await h.settle(job, State.PENDING, error=error)
        (job,) = await h.claim()
    equal((await h.record(job.id)).errors, tuple(errors), "errors")


@case("C9")
async def a_key_or_tag_of_any_text_is_only_text(h: Harness) -> None:
    texts = ("' OR 1=1 --", '"; DELETE FROM jobs', "%", "_", "a,b", '["x"]', "*", "\\", "ü🐴", " ")
    ids = [await h.add(key=text, meta={text: text}) for text in texts]
    for text, job_id in zip(texts, ids, strict=True):
        equal([job.id for job in await h.all(key=text)], [job_id], f"found by key {text!r}")
        equal((await h.record(job_id)).meta, {text: text}, "meta")
    for text in ("' OR '1'='1", "a", "%%"):
        equal([job.id for job in await h.all(tag=text)], [], f"found by tag {text!r}")
