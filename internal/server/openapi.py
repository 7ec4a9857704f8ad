"""/openapi.json: the declared operations, described by the models that validate them."""

import asyncio
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson
from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from internal.biz.version import VERSION
from internal.server.identity import GUEST_COOKIE
from internal.server.rest import FORM, PATH_PATTERNS, Access, Operation
from internal.service.api.status import Error

_REF = "#/components/schemas/{model}"
_ABOUT = """\
Chat with the models of this server. A client of the OpenAI API finds it under `/v1`.

Who sends no token is a guest, where the server allows guests, and gets a cookie to be known by. Times are
RFC 3339 in UTC. Errors are `{"error": {"message", "type", "param", "code"}}`. Where requests or tokens are
limited, `X-RateLimit-Limit`, `-Remaining` and `-Reset` (in seconds) tell of the budget nearest to its end.

WebSockets are not described here: `GET /ws` is bare text, a message in and its answer out,
`GET /v1/responses` is the WebSocket mode of the OpenAI Responses API, and `GET /v1/realtime` is the OpenAI
Realtime API, of which it speaks text. Where a header cannot be sent, as in
browsers, the token goes into the address (`?token=…`) or the subprotocol (`openai-insecure-api-key.…`).
"""
_ERRORS = {
    400: "The request is not understood; `param` names the field.",
    401: "Nobody that is known here says this.",
    403: "That is not allowed.",
    404: "There is no such thing, or it is not yours.",
    409: "Not now, or not any more: it exists already, or an answer is still running.",
    413: "The body is too large.",
    415: "The body is not of the type that is asked for.",
    416: "There is no such range.",
    429: "Too many requests; `Retry-After` says when to come back.",
    500: "The server or the model failed.",
    503: "Not at the moment; try again later.",
}
_TAGS = {
    "openai": "For clients of the OpenAI API.",
    "chat": "Say something.",
    "conversations": "What was said.",
    "files": "What is attached to messages. Text goes into the prompt, images to models that take them.",
    "batches": "Ask several models at once.",
    "users": "Accounts and tokens.",
    "keys": "API keys, for programs.",
    "settings": "What a user has set for all that they ask.",
    "server": "How the server is.",
}


class OpenApi:
    """The description, made when somebody first asks for it. Implements RouteGroup."""

    def __init__(self, operations: Sequence[Operation], *, auth_required: bool) -> None:
        self._operations = operations
        self._auth_required = auth_required

    @functools.cached_property
    def document(self) -> dict[str, Any]:
        return describe(self._operations, auth_required=self._auth_required)

    @functools.cached_property
    def _body(self) -> bytes:
        return orjson.dumps(self.document)

    def register(self, app: web.Application) -> None:
        app.router.add_get("/openapi.json", self.show)

    async def show(self, request: web.Request) -> web.Response:
        headers = {"Cache-Control": "no-cache"}
        body = await asyncio.to_thread(lambda: self._body)
        return web.Response(body=body, content_type="application/json", headers=headers)


def describe(operations: Sequence[Operation], *, auth_required: bool) -> dict[str, Any]:
    """An OpenAPI 3.1 document. Source: https://spec.openapis.org/oas/v3.1.0"""
    refs, schemas = _schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        described = _operation(operation, refs, auth_required=auth_required)
        methods, method = paths.setdefault(operation.path, {}), operation.method.lower()
        methods[method] = _merged(methods[method], described) if method in methods else described
    error = {"application/json": {"schema": refs[Error, "serialization"]}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sluice",
            "version": VERSION,
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {
                str(status): {"description": text, "content": error} for status, text in _ERRORS.items()
            },
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The access token of a login, or an API key.",
                },
                "operator": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The operator's key (`auth.operator_key`).",
                },
                "guest": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": GUEST_COOKIE,
                    "description": "A guest's token.",
                },
            },
        },
    }


_Key = tuple[type[BaseModel], JsonSchemaMode]


def _schemas(operations: Iterable[Operation]) -> tuple[Mapping[_Key, Any], dict[str, Any]]:
    """Where each model is described, and the descriptions."""
    keys: dict[_Key, None] = {(Error, "serialization"): None}
    for operation in operations:
        for model in (operation.answer, operation.unready):
            if model is not None:
                keys[model, "serialization"] = None
        for sent in (operation.body, operation.form):
            if sent is not None:
                keys[sent, "validation"] = None
    refs, definitions = models_json_schema([*keys], ref_template=_REF)
    return {(model, mode): refs[model, mode] for model, mode in keys}, definitions["$defs"]


def _operation(operation: Operation, refs: Mapping[_Key, Any], *, auth_required: bool) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": _name(operation),
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": [*_path_parameters(operation), *_query_parameters(operation)],
        "responses": _answers(operation, refs),
        "security": _security(operation.access, auth_required=auth_required),
    }
    if operation.description:
        described["description"] = operation.description
    if operation.body is not None:
        described["requestBody"] = {
            "required": any(field.is_required() for field in operation.body.model_fields.values()),
            "content": {"application/json": {"schema": refs[operation.body, "validation"]}},
        }
    if operation.form is not None:
        schema = {"schema": refs[operation.form, "validation"]}
        described["requestBody"] = {"required": True, "content": {FORM: schema}}
    return described


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two operations in one place: one takes a form, one does not."""
    content = {**one["requestBody"]["content"], **other["requestBody"]["content"]}
    return {
        **one,
        "description": " ".join(it["description"] for it in (one, other) if "description" in it),
        "requestBody": {**one["requestBody"], "content": content},
        "responses": {**other["responses"], **one["responses"]},
    }


def _name(operation: Operation) -> str:
    words = re.findall(r"[a-z0-9]+", operation.path)
    return "_".join([operation.method.lower(), *words])


def _path_parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", operation.path):
        schema = {"type": "string", "pattern": f"^{PATH_PATTERNS[name]}$"}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    if operation.query is None:
        return
    schema = operation.query.model_json_schema(mode="validation")
    for name, field in schema["properties"].items():
        parameter = {"name": name, "in": "query", "required": name in schema.get("required", ())}
        if "description" in field:
            parameter["description"] = field["description"]
        yield {**parameter, "schema": _without_null(field)}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A query cannot say null: it leaves out."""
    kept = {key: value for key, value in schema.items() if key not in ("anyOf", "title", "description")}
    if kept.get("default", "") is None:
        del kept["default"]
    for branch in schema.get("anyOf", ()):
        if branch != {"type": "null"}:
            kept |= branch
    return kept


def _answers(operation: Operation, refs: Mapping[_Key, Any]) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    content: dict[str, Any] = {}
    if operation.answer is not None:
        content["application/json"] = {"schema": refs[operation.answer, "serialization"]}
    for media_type in operation.also:
        # Of a stream a schema would be understood as that of each event, or of the whole.
        is_stream = media_type == "text/event-stream"
        content[media_type] = {} if is_stream else {"schema": {"type": "string"}}
    if content:
        text = " ".join(["Done.", *operation.also.values()])
        answers[str(operation.status)] = {"description": text, "content": content}
    else:
        answers["204"] = {"description": "Done."}
    for status in _statuses(operation):
        answers[str(status)] = {"$ref": f"#/components/responses/{status}"}
    if operation.unready is not None:
        schema = refs[operation.unready, "serialization"]
        unready = {"description": "Not ready.", "content": {"application/json": {"schema": schema}}}
        answers["503"] = unready
    return answers


def _statuses(operation: Operation) -> list[int]:
    """The errors that the operation may end with."""
    found = {429, 500, 503, *operation.errors}
    if operation.query is not None:
        found.add(400)
    if operation.body is not None or operation.form is not None:
        found |= {400, 413, 415}
    if operation.access is Access.VISITOR:
        found.add(403)
    elif operation.access is not Access.ANYONE:
        found |= {401, 403}
    if "{" in operation.path:
        found.add(404)
    return sorted(found)


def _security(access: Access, *, auth_required: bool) -> list[dict[str, list[str]]]:
    if access in (Access.ANYONE, Access.VISITOR):
        return []
    if access is Access.ADMITTED and not auth_required:
        return []
    if access is Access.CALLER and not auth_required:
        return [{"bearer": []}, {"guest": []}, {}]
    if access is Access.OPERATOR:
        return [{"operator": []}]
    return [{"bearer": []}]
