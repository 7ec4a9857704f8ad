"""Who sends a request: a user by a token or key, else a guest by a cookie, else a new guest.

Knows where credentials are carried, not what is in them.
"""

import hmac
import logging
from collections.abc import Sequence
from dataclasses import replace
from http.cookies import Morsel
from typing import Protocol

from aiohttp import web

from internal.biz.errors import Forbidden, Unauthenticated
from internal.biz.guests import GUEST
from internal.biz.ids import new_id
from internal.biz.models import Caller
from internal.server.address import Proxies
from internal.server.origin import is_allowed
from internal.server.upgrade import is_upgrade
from internal.service.api.accounts import guest_ttl_s

log = logging.getLogger(__name__)

GUEST_COOKIE = "sluice_guest"
REALTIME = "realtime"
COMPATIBLE = "/v1/"
"""How paths begin that clients of another server's API ask. These always send a key, if only a dummy."""
_OURS = frozenset({"token_expired", "login_ended", "user_disabled"})
"""What is told of credentials that were good once."""
_KEY_SUBPROTOCOL = "openai-insecure-api-key."
_BETA = "openai-beta.realtime-v1"
_NEW_GUEST: web.RequestKey[tuple[str, Caller]] = web.RequestKey("new_guest")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Credentials(Protocol):
    """The part of the accounts that is needed here."""

    async def identify(self, credential: str, address: str = "") -> Caller:
        """Whose token or key this is. Raises Unauthenticated and Unavailable."""

    def guest(self) -> tuple[str, Caller]:
        """A new guest, and the token that shows who they are. Raises Unauthenticated where there are none."""


class Identity:
    """Implements Authenticator, and RouteGroup: it has a word in every answer. `required`: nobody is served
    who has not logged in."""

    def __init__(
        self,
        accounts: Credentials,
        proxies: Proxies,
        *,
        required: bool,
        allowed_origins: Sequence[str],
        operator_key: str = "",
    ) -> None:
        """Who sends `operator_key` is an operator (empty: nobody is)."""
        self._operator_key = operator_key.encode(errors="surrogateescape")
        self._accounts = accounts
        self._proxies = proxies
        self._allowed_origins = allowed_origins
        self.required = required

    async def identify(self, request: web.Request) -> Caller:
        """The user, else the guest.

        Raises Unauthenticated where users are required, Forbidden for what another site's page lets a
        guest's browser do. Who sends a token means to be somebody, and is told when it is no good; but on
        WebSockets and COMPATIBLE paths one that never was ours makes a guest, and so does any cookie. Who is
        a new guest, `remember` tells them.
        """
        if self.required:
            return await self.identify_user(request)
        if (credential := credential_of(request)) is not None:
            try:
                return await self._accounts.identify(credential, self.address_of(request))
            except Unauthenticated as error:
                if error.code in _OURS or not _takes_any_key(request):
                    raise
        self._refuse_forgery(request)
        if (guest := await self._known(request, _guest_cookie(request))) is not None:
            return guest
        if _only_reads(request):  # there is nothing yet that would be theirs
            return Caller(new_id(GUEST), self.address_of(request))
        token, guest = self._accounts.guest()
        request[_NEW_GUEST] = token, guest
        return replace(guest, address=self.address_of(request))

    async def identify_user(self, request: web.Request) -> Caller:
        """The user. Raises Unauthenticated also for guests."""
        credential = credential_of(request)
        if credential is None:
            raise Unauthenticated("log in, and send the token as Authorization: Bearer TOKEN")
        caller = await self._accounts.identify(credential, self.address_of(request))
        if caller.is_guest:
            raise Unauthenticated("this is for registered users; log in first")
        return caller

    def operator(self, request: web.Request) -> Caller:
        """An operator, who is no user for that. Raises Unauthenticated and Forbidden."""
        if not self._operator_key:
            raise Forbidden(
                "this is for operators, and the server knows none: set auth.operator_key "
                "(SLUICE_AUTH__OPERATOR_KEY)",
                code="no_operator",
            )
        credential = credential_of(request)
        if credential is None:
            raise Unauthenticated("send the operator's key as Authorization: Bearer KEY")
        if not hmac.compare_digest(credential.encode(errors="surrogateescape"), self._operator_key):
            fields = {"address": self.address_of(request), "path": request.path}
            log.warning("an operator's key was refused", extra=fields)
            raise Forbidden("this is for operators, and that is not their key", code="not_operator")
        return Caller("", self.address_of(request))

    async def visitor(self, request: web.Request) -> Caller:
        """The guest that somebody is who is about to log in; else nobody, also with a token that is no good:
        they come for another. Raises Forbidden as `identify`."""
        for token in (credential_of(request), _guest_cookie(request)):
            if (caller := await self._known(request, token)) is not None and caller.is_guest:
                self._refuse_forgery(request)
                return caller
        return Caller("", self.address_of(request))

    async def _known(self, request: web.Request, credential: str | None) -> Caller | None:
        if not credential:
            return None
        try:
            return await self._accounts.identify(credential, self.address_of(request))
        except Unauthenticated:
            return None

    def address_of(self, request: web.Request) -> str:
        return self._proxies.client_of(request)

    def _refuse_forgery(self, request: web.Request) -> None:
        """A browser sends a guest's cookie along with whatever any page lets it send."""
        if not _only_reads(request) and not is_allowed(
            request.headers.get("Origin"), request.host, self._allowed_origins
        ):
            raise Forbidden("pages of this origin may not do this", code="origin_not_allowed")

    def register(self, app: web.Application) -> None:
        app.on_response_prepare.append(self.remember)

    async def remember(self, request: web.Request, response: web.StreamResponse) -> None:
        """Give a new guest their cookie, before the response is sent."""
        if (new := request.get(_NEW_GUEST)) is None:
            return
        token, guest = new
        del request[_NEW_GUEST]  # which lives as long as a WebSocket does
        cookie = Morsel[str]()
        cookie.set(GUEST_COOKIE, token, token)
        cookie.update({"max-age": str(guest_ttl_s(guest)), "path": "/", "samesite": "Lax", "httponly": "yes"})
        cookie["secure"] = "yes" if _is_https(request) else ""
        # By now `response.set_cookie` would be too late.
        response.headers.add("Set-Cookie", cookie.OutputString())


def _guest_cookie(request: web.Request) -> str | None:
    """Looks for cookies only where there are any: what it finds lives as long as the request."""
    return request.cookies.get(GUEST_COOKIE) if "Cookie" in request.headers else None


def credential_of(request: web.Request) -> str | None:
    """The token or key that a request brings; the cookie is none. Where browsers cannot set headers, which
    is for an upgrade, it may be in the subprotocol or the address."""
    scheme, _, token = request.headers.get("Authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    if not is_upgrade(request):
        return None
    for offered in _offered(request):
        if offered.startswith(_KEY_SUBPROTOCOL) and len(offered) > len(_KEY_SUBPROTOCOL):
            return offered.removeprefix(_KEY_SUBPROTOCOL)
    return (request.query.get("token") or None) if request.query_string else None


def chosen_subprotocol(request: web.Request) -> str | None:
    """What to answer to the offered subprotocols: never the one that holds a key."""
    return REALTIME if REALTIME in _offered(request) else None


def is_beta(request: web.Request) -> bool:
    """Whether the client speaks the Realtime API of before its release, in which most events have other
    names: it would wait for those in vain."""
    return "realtime=v1" in request.headers.get("OpenAI-Beta", "") or _BETA in _offered(request)


def _takes_any_key(request: web.Request) -> bool:
    return is_upgrade(request) or request.path.startswith(COMPATIBLE)


def _only_reads(request: web.Request) -> bool:
    return request.method in _READING and not is_upgrade(request)


def _offered(request: web.Request) -> list[str]:
    offers = request.headers.getall("Sec-WebSocket-Protocol", [])
    return [name.strip() for offer in offers for name in offer.split(",")]


def _is_https(request: web.Request) -> bool:
    """A proxy that ends TLS says so. Who lies about it harms their own cookie only."""
    forwarded = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip().lower()
    return request.secure or forwarded == "https"
