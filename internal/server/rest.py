"""The REST API's declarations, and what binds them to HTTP.

A Route says what a request is made of, who may send it, and what comes back. From that the request is
checked before its handler runs, and /openapi.json is written.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from aiohttp import web
from pydantic import ValidationError

from internal.biz.errors import Forbidden, InvalidRequest
from internal.biz.ids import ID_PATTERN
from internal.biz.limits import Budget
from internal.biz.models import Caller
from internal.server.answers import NOT_STORED
from internal.service.api.base import Answer, Body, Query
from internal.service.errors import TooLarge, UnsupportedMediaType
from internal.service.rate_limit import budget_headers
from internal.service.validation import complaint, load_object, require_no_nul

FORM = "multipart/form-data"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
B = TypeVar("B", bound=Body)
Q = TypeVar("Q", bound=Query)

PATH_PATTERNS: Mapping[str, str] = {"id": ID_PATTERN, "item_id": ID_PATTERN, "model": ".+"}
"""What may stand in a path in the place of each name. A model's may hold slashes and colons."""


class Access(Enum):
    """Who may call: anybody; anybody, but it matters which guest they were; whoever may be a caller, and
    becomes no guest by it; a user or guest; a user; a user with the token of a login, not with a key that
    may have leaked; an operator of the server."""

    ANYONE = "anyone"
    VISITOR = "visitor"
    ADMITTED = "admitted"
    CALLER = "caller"
    USER = "user"
    LOGIN = "login"
    OPERATOR = "operator"


class Spender(Protocol):
    """Keeps the budgets of callers; the limiter does."""

    async def spend(self, caller: Caller) -> Budget | None:
        """Take one request from them. Raises RateLimited."""


class Authenticator(Protocol):
    """Tells who sends a request."""

    @property
    def required(self) -> bool:
        """Whether guests are refused."""

    async def identify(self, request: web.Request) -> Caller:
        """A user, or a guest. Raises Unauthenticated, Forbidden, RateLimited, Unavailable."""

    async def identify_user(self, request: web.Request) -> Caller:
        """A user. Raises the same."""

    def operator(self, request: web.Request) -> Caller:
        """An operator, who has no name. Raises Unauthenticated and Forbidden."""

    async def visitor(self, request: web.Request) -> Caller:
        """A guest, or nobody: a caller without a name. Raises Forbidden and Unavailable."""

    def address_of(self, request: web.Request) -> str:
        """Where the request comes from."""


@dataclass(frozen=True, slots=True)
class Call(Generic[B, Q]):
    """One request, checked. The `caller` of a route for anyone has an address and no name, and so has
    one who was only admitted, where guests are."""

    request: web.Request
    caller: Caller
    body: B
    query: Q

    @property
    def id(self) -> str:
        """The `{id}` of the path."""
        return self.request.match_info["id"]


@dataclass(frozen=True, slots=True)
class WithHeaders:
    """An answer that says something in its headers, too."""

    answer: Answer
    headers: Mapping[str, str]


Answered = Answer | WithHeaders | web.StreamResponse | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What the API can do. `path` may hold names of PATH_PATTERNS, in braces. A `form` comes as
    multipart/form-data, and is read by its handler. One operation with a form and one without may share a
    method and path.

    Without an `answer` there is none (204). `also`: further media types of the answer, described. `unready`:
    what comes with a 503 in the place of an error. `errors`: statuses that this operation has beside those
    that follow from the rest. `spends`: it takes one request from the caller's budgets, since it stores
    something; what asks a model does so anyway.
    """

    method: str
    path: str
    summary: str
    tag: str
    access: Access = Access.ANYONE
    body: type[Body] | None = None
    form: type[Body] | None = None
    query: type[Query] | None = None
    answer: type[Answer] | None = None
    status: int = 200
    description: str = ""
    also: Mapping[str, str] = field(default_factory=dict)
    unready: type[Answer] | None = None
    errors: Sequence[int] = ()
    spends: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Route(Operation, Generic[B, Q]):
    """An operation, and who carries it out: what the handler returns is sent as JSON, unless it is a
    response already."""

    handler: Callable[[Call[B, Q]], Awaitable[Answered]]
    body: type[B] | None = None
    query: type[Q] | None = None


AnyRoute = Route[Any, Any]


class RouteGroup(Protocol):
    """Something that answers under some paths."""

    def register(self, app: web.Application) -> None: ...


class Rest:
    """Answers under the declared routes. Implements RouteGroup."""

    def __init__(
        self,
        routes: Sequence[AnyRoute],
        authenticator: Authenticator,
        limiter: Spender,
        max_body_bytes: int,
    ) -> None:
        self.routes = tuple(routes)
        self._authenticator = authenticator
        self._limiter = limiter
        self._max_body_bytes = max_body_bytes

    def register(self, app: web.Application) -> None:
        places: dict[tuple[str, str], list[AnyRoute]] = {}
        for route in self.routes:
            places.setdefault((route.method, route.path), []).append(route)
        for (method, declared), routes in places.items():
            path = re.sub(r"{(\w+)}", lambda name: f"{{{name[1]}:{PATH_PATTERNS[name[1]]}}}", declared)
            if method == "GET":
                app.router.add_get(path, self._bound(routes))
            else:
                app.router.add_route(method, path, self._bound(routes))

    def _bound(self, routes: Sequence[AnyRoute]) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            route = _meant(request, routes)
            caller = await self._caller(request, route.access)
            query = _query(request, route.query)
            body = await self._body(request, route.body) if route.body else None
            headers = budget_headers(await self._spend(caller)) if route.spends else {}
            return _answer(await route.handler(Call(request, caller, body, query)), route.status, headers)

        return handle

    async def _spend(self, caller: Caller) -> Budget | None:
        """Nothing for nobody from nowhere, as all are who come through a Unix socket: they would be one."""
        return await self._limiter.spend(caller) if caller.user or caller.address else None

    async def _caller(self, request: web.Request, access: Access) -> Caller:
        match access:
            case Access.ANYONE:
                return Caller("", self._authenticator.address_of(request))
            case Access.VISITOR:
                return await self._authenticator.visitor(request)
            case Access.ADMITTED if not self._authenticator.required:
                return Caller("", self._authenticator.address_of(request))
            case Access.CALLER:
                return await self._authenticator.identify(request)
            case Access.OPERATOR:
                return self._authenticator.operator(request)
        caller = await self._authenticator.identify_user(request)
        if access is Access.LOGIN and caller.key_id is not None:
            raise login_required()
        return caller

    async def _body(self, request: web.Request, model: type[B]) -> B:
        data = await _read(request, self._max_body_bytes)
        if data:
            _require_json(request)
            fields = load_object(data, model.max_values)
        elif any(field.is_required() for field in model.model_fields.values()):
            raise InvalidRequest("this needs a body, a JSON object", code="invalid_json")
        else:
            fields = {}
        return checked(model, fields)


def checked(model: type[B], fields: Mapping[str, object]) -> B:
    """Raises InvalidRequest."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise model.refusal(error) from error


def _meant(request: web.Request, routes: Sequence[AnyRoute]) -> AnyRoute:
    """Of those that share a path: the one whose kind of body was sent."""
    is_form = request.content_type == FORM
    return next((route for route in routes if (route.form is not None) == is_form), routes[0])


def login_required() -> Forbidden:
    return Forbidden("an API key may not do this; log in with the password", code="login_required")


async def _read(request: web.Request, max_bytes: int) -> bytes:
    """The body. Never holds much more than `max_bytes`. Raises TooLarge."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("a compressed body is not understood here; send it as it is")
    parts: list[bytes] = []
    left = max_bytes - (request.content_length or 0)
    try:
        while left >= 0 and (part := await request.content.readany()):
            parts.append(part)
            left = max_bytes - sum(map(len, parts))
    except (web.RequestPayloadError, ConnectionError) as error:
        raise InvalidRequest("the body ended before it was complete", code="incomplete_body") from error
    if left < 0:
        raise TooLarge(f"a body has at most {max_bytes} bytes")
    return b"".join(parts)


def _require_json(request: web.Request) -> None:
    charset = request.charset or "utf-8"
    if request.content_type != "application/json" or charset.lower() not in ("utf-8", "utf8"):
        raise UnsupportedMediaType("send the body as Content-Type: application/json, in UTF-8")


def _query(request: web.Request, model: type[Q] | None) -> Q | None:
    if model is None:
        return None
    fields: dict[str, object] = {}
    for name, value in request.query.items():
        if name in fields:
            raise InvalidRequest(f"{name[:100]} is given twice", code="invalid_value", param=name[:100])
        fields[name] = value
    require_no_nul(fields)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise complaint(error) from error


def _answer(answer: Answered, status: int, headers: Mapping[str, str]) -> web.StreamResponse:
    if isinstance(answer, web.StreamResponse):
        answer.headers.update(headers)
        return answer
    # What is answered may be a token, and is of one caller at most.
    headers = {**NOT_STORED, **headers}
    if isinstance(answer, WithHeaders):
        headers |= answer.headers
        answer = answer.answer
    if answer is None:
        return web.Response(status=204, headers=headers)
    body = answer.model_dump_json().encode()
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)
