"""`/openapi.json`: valid, complete, and good enough for a generator of clients and the clients it makes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from packhorse import Packhorse
from packhorse.errors import InvalidPayload
from packhorse.server import openapi
from packhorse.server.access import Permission
from packhorse.server.app import operations
from packhorse.server.openapi import make_document
from packhorse.server.operation import Operation, Routes
from packhorse.server.payloads import payload_schema

from .api import Api, asking, on_stores
from .real import TOKEN, served
from .tasks import make_app

SCHEMAS = "#/components/schemas/"


def _document() -> dict[str, Any]:
    return make_document(operations(), make_app("memory://").tasks)


def _described(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): described
        for path, methods in document["paths"].items()
        for method, described in methods.items()
    }


def _validator(document: dict[str, Any], schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**schema, "components": document["components"]})


def test_the_document_is_valid_openapi_3_1() -> None:
    for app in (make_app("memory://"), Packhorse("memory://", tokens_file="/nowhere/tokens.json")):
        document = json.loads(msgspec.json.encode(make_document(operations(), app.tasks)))
        assert document["openapi"].startswith("3.1.")
        OpenAPIV31SpecValidator(document).validate()


def test_every_operation_for_others_is_in_the_document() -> None:
    described = _described(_document())
    table = {(operation.method, operation.path): operation for operation in operations() if operation.raw_body is None}
    assert described.keys() == table.keys()
    names = [one["operationId"] for one in described.values()]
    assert len(set(names)) == len(names)
    for place, one in described.items():
        operation = table[place]
        assert one["summary"]
        assert {"401", "403", "500", "503"} <= one["responses"].keys(), place
        assert (one.get("security") == []) == (operation.may is None), place
        assert all(f"{{{part['name']}}}" in place[1] for part in one.get("parameters", ()) if part["in"] == "path")
        if operation.polled:
            assert "304" in one["responses"]


def test_two_operations_of_one_name_are_found_before_a_client_is_made() -> None:
    routes = Routes("twice")

    async def same() -> None:
        """Do it."""

    for path in ("/a", "/b"):
        routes.get(path, may=Permission.LOOK)(same)
    with pytest.raises(ValueError, match="same"):
        make_document(routes.operations, {})


def test_nothing_in_the_document_leads_nowhere() -> None:
    document = _document()
    text = json.dumps(document)
    for part in text.split('"$ref": "')[1:]:
        reference = part.partition('"')[0]
        _, _, kind, name = reference.split("/")
        assert name in document["components"][kind], reference


def _examples() -> list[tuple[Operation, Any]]:
    return [(operation, operation.example) for operation in operations() if operation.example is not None]


@pytest.mark.parametrize(("operation", "example"), _examples(), ids=lambda value: getattr(value, "name", ""))
def test_every_example_fits_its_schema(operation: Operation, example: Any) -> None:
    document = _document()
    body = document["paths"][operation.path][operation.method.lower()]["requestBody"]["content"]["application/json"]
    assert body["example"] == example
    _validator(document, body["schema"]).validate(example)


@on_stores
def test_every_example_is_taken(store: str, tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        api.app.tasks.clear()  # examples are of types that nobody registered
        job_id = await api.enqueue(queue="of-the-example")
        await api.done("POST", f"/api/v1/jobs/{job_id}/cancel")
        workflow = (await api.done("POST", "/api/v1/workflows", {"nodes": [{"name": "a", "job": {"type": "w"}}]}))["id"]
        for operation, example in _examples():
            if operation.tag == "work":
                continue  # tokens of jobs cannot be made up; test_work.py has them
            path = operation.path.replace("{queue}", "mail").replace("{type}", "email").replace("{name}", "report")
            path = path.replace("{id}", workflow if "workflows" in path else job_id)
            await api.done(operation.method, path, example)

    asking(store, tmp_path, scenario)


# ---- payloads --------------------------------------------------------------------------------------------

#: Payloads by type, and whether the task takes them.
PAYLOADS: list[tuple[str, Any, bool]] = [
    ("email", {"to": "a"}, True),
    ("email", {"to": "a", "retries": None}, True),
    ("email", {"to": 7}, False),
    ("email", {}, False),
    ("email", {"to": "a", "cc": "b"}, False),
    ("image_resize", {"source": "s", "width": 1, "height": 1, "to": "png"}, True),
    ("image_resize", {"source": "s", "width": 1, "height": 1, "to": "gif"}, False),
    ("letter", {"address": {"street": "s"}, "copies": [{"street": "t", "lines": ["u"]}]}, True),
    ("letter", {"address": {"street": "s", "lines": [7]}}, False),
    ("tree", {"name": "a", "children": [{"name": "b"}]}, True),
    ("tree", {"name": "a", "children": [{"name": 7}]}, False),
    ("note", {"text": "a"}, True),
    ("note", {"text": 7}, False),
    ("note", "a", True),  # the one parameter by itself
    ("note", 7, False),
    ("note", {}, False),
    ("email", "a", False),
    ("anything", {"a": [1]}, True),
    ("report", {}, True),
    ("report", {"a": 1}, False),
]


@pytest.mark.parametrize(("job_type", "payload", "taken"), PAYLOADS)
def test_the_schema_of_a_payload_says_what_the_task_says(job_type: str, payload: Any, taken: bool) -> None:
    document = _document()
    app = make_app("memory://")
    job = {"type": job_type, "payload": payload}
    assert _validator(document, {"$ref": f"{SCHEMAS}NewJob"}).is_valid(job) is taken
    assert _validator(document, {"$ref": f"{SCHEMAS}payload.{job_type}"}).is_valid(payload) is taken
    assert jsonschema.Draft202012Validator(payload_schema(app.tasks[job_type])).is_valid(payload) is taken
    if taken:
        app.spec(job_type, payload)
    else:
        with pytest.raises(InvalidPayload):
            app.spec(job_type, payload)


def test_a_job_of_a_type_that_nobody_registered_fits() -> None:
    document = _document()
    validator = _validator(document, {"$ref": f"{SCHEMAS}NewJob"})
    assert validator.is_valid({"type": "other", "payload": [1, 2]})
    assert not validator.is_valid({"type": "other", "pay": 1})


def test_a_model_that_cannot_describe_itself_stands_for_anything() -> None:
    app = Packhorse("memory://", tokens_file="/nowhere/tokens.json")

    class Odd:
        @classmethod
        def model_validate(cls, value: Any) -> Odd:
            return cls()

        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            raise RuntimeError("no schema today")

    class Nested:
        @classmethod
        def model_validate(cls, value: Any) -> Nested:
            return cls()

        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            return {
                "$defs": {"Inner[int]": {"type": "integer"}},
                "properties": {"inner": {"$ref": "#/$defs/Inner[int]"}, "lost": {"$ref": "#/$defs/Lost"}},
            }

    def odd(what): ...

    def nested(what): ...

    odd.__annotations__["what"] = Odd
    nested.__annotations__["what"] = Nested
    app.task("odd")(odd)
    app.task("nested")(nested)
    assert payload_schema(app.tasks["odd"]) == {}
    document = make_document(operations(), app.tasks)
    OpenAPIV31SpecValidator(document).validate()
    assert document["components"]["schemas"]["payload.nested.Inner_int_"] == {"type": "integer"}
    validator = _validator(document, {"$ref": f"{SCHEMAS}payload.nested"})
    assert validator.is_valid({"what": {"inner": 7, "lost": object}})
    assert not validator.is_valid({"what": {"inner": "seven"}})


# ---- over the wire ---------------------------------------------------------------------------------------


def test_the_document_is_made_once_and_known_by_its_tag(tmp_path: Path, monkeypatch) -> None:
    made: list[int] = []
    make = openapi.make_document
    monkeypatch.setattr("packhorse.server.routes.document.make_document", lambda *given: made.append(1) or make(*given))

    async def scenario(api: Api) -> None:
        first = await api.get("/openapi.json")
        assert first.json()["info"]["title"] == "packhorse"
        assert (await api.get("/openapi.json")).content == first.content
        same = await api.get("/openapi.json", headers={"If-None-Match": first.headers["etag"]})
        assert same.status_code == 304
        assert len(made) == 1

    asking("memory", tmp_path, scenario)


def test_a_client_made_by_a_generator_enqueues_lists_and_shows(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "openapi.json"
    path.write_bytes(msgspec.json.encode(_document()))
    (tmp_path / "config.yaml").write_text("post_hooks: []\nproject_name_override: made\n")
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "openapi-python-client"),
            *("generate", "--path", str(path), "--output-path", str(tmp_path / "made"), "--meta", "none"),
            *("--config", str(tmp_path / "config.yaml"), "--fail-on-warning"),
        ],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.syspath_prepend(str(tmp_path))
    made = importlib.import_module("made")
    models = importlib.import_module("made.models")
    calls = {
        name: importlib.import_module(f"made.api.jobs.{name}")
        for name in ("create_job", "list_jobs", "show_job", "cancel_job")
    }
    with (
        served(make_app(f"sqlite:///{tmp_path}/jobs.db", tmp_path)) as url,
        made.AuthenticatedClient(base_url=url, token=TOKEN) as client,
    ):
        new = models.NewJob(type_="email", payload={"to": "a@example.com"}, priority="high", tags=["vip"])
        stored = calls["create_job"].sync(client=client, body=new)
        assert stored.created is True
        listed = calls["list_jobs"].sync(client=client, tag="vip", limit=10)
        assert [job.id for job in listed.items] == [stored.id]
        shown = calls["show_job"].sync(stored.id, client=client)
        assert shown.payload == {"to": "a@example.com"}
        assert (shown.state, shown.queue, shown.created_at.utcoffset().total_seconds()) == ("pending", "mail", 0)
        assert calls["cancel_job"].sync(stored.id, client=client).answer == "done"
        wrong = calls["create_job"].sync(client=client, body=models.NewJob(type_="email", payload={"to": 7}))
        assert wrong.errors[0].pointer == "/payload/to"
    for name in [name for name in sys.modules if name.partition(".")[0] == "made"]:
        del sys.modules[name]
