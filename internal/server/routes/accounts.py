"""/api/v1: registering, tokens, keys, and the account itself."""

import contextlib
from collections.abc import Sequence
from typing import Protocol

from internal.biz.accounts import AccountRules, ApiKey, Preferences, Tokens, User
from internal.biz.errors import SluiceError
from internal.biz.models import Caller
from internal.server.rest import Access, AnyRoute, Call, Route
from internal.service.api.accounts import (
    AccountDeletion,
    CreatedKey,
    GuestToken,
    Key,
    Keys,
    Login,
    Me,
    NewKey,
    PasswordChange,
    RefreshToken,
    Registered,
    Registration,
    SignIn,
    TokenPair,
)
from internal.service.api.base import Body, Query


class Accounts(Protocol):
    """The use cases of users. All raise Unavailable while the storage cannot be reached."""

    @property
    def rules(self) -> AccountRules: ...

    async def register(
        self, username: str, email: str, password: str, address: str = "", guest: str | None = None
    ) -> User:
        """A new user, who gets what `guest` owns. Raises Forbidden, InvalidRequest, RateLimited, and Conflict
        when the name is taken."""

    async def login(
        self, username: str, password: str, address: str = "", guest: str | None = None
    ) -> Tokens:
        """The user gets what `guest` owns. Raises Unauthenticated and RateLimited."""

    async def refresh(self, refresh_token: str) -> Tokens:
        """New tokens for a refresh token, which is worth nothing then. Raises Unauthenticated."""

    async def logout(self, refresh_token: str) -> None:
        """End the login that the token is of. Raises Unauthenticated."""

    async def change_password(
        self, user_id: str, current: str, new: str, *, revoke_keys: bool = False
    ) -> Tokens:
        """End all logins and begin one, and revoke all API keys if told to. Raises InvalidRequest,
        RateLimited and Unauthenticated."""

    async def delete(self, user_id: str, password: str) -> Sequence[str]:
        """Delete the user with all that is theirs. Returns the ids of responses that have not ended. Raises
        RateLimited and Unauthenticated."""

    async def get(self, user_id: str) -> User:
        """Raises NotFound."""

    async def create_key(self, user_id: str, name: str) -> tuple[ApiKey, str]:
        """A key, and its secret. Raises InvalidRequest and Conflict."""

    async def keys(self, user_id: str) -> Sequence[ApiKey]: ...

    async def revoke_key(self, user_id: str, key_id: str) -> None:
        """Raises NotFound."""

    async def preferences(self, user_id: str) -> Preferences: ...

    async def set_preferences(self, user_id: str, preferences: Preferences) -> None:
        """Raises InvalidRequest."""

    def guest(self) -> tuple[str, Caller]:
        """A new guest, and the token that shows who they are. Raises Unauthenticated where there are none."""

    async def identify(self, credential: str, address: str = "") -> Caller:
        """Whose token or key this is. Raises Unauthenticated."""


class Stopping(Protocol):
    """Stops responses; Chat does."""

    async def cancel(self, caller: Caller, response_id: str) -> None:
        """Raises NotFound and Unavailable."""


class AccountRoutes:
    def __init__(self, accounts: Accounts, chat: Stopping) -> None:
        self._accounts = accounts
        self._chat = chat

    @property
    def routes(self) -> list[AnyRoute]:
        return [*self._tokens(), *self._account(), *self._keys()]

    def _tokens(self) -> list[AnyRoute]:
        return [
            Route(
                method="GET",
                path="/api/v1/auth",
                summary="Who may come in",
                tag="users",
                answer=SignIn,
                handler=self.sign_in,
            ),
            Route(
                method="POST",
                path="/api/v1/auth/register",
                summary="Register a user",
                description="What was said as a guest, known by the cookie or token, is theirs from now on.",
                tag="users",
                access=Access.VISITOR,
                body=Registration,
                answer=Registered,
                status=201,
                errors=(409,),
                handler=self.register,
            ),
            Route(
                method="POST",
                path="/api/v1/auth/login",
                summary="Get tokens for a name and a password",
                description="What was said as a guest, known by the cookie or token, is theirs from now on.",
                tag="users",
                access=Access.VISITOR,
                body=Login,
                answer=TokenPair,
                errors=(401,),
                handler=self.login,
            ),
            Route(
                method="POST",
                path="/api/v1/auth/refresh",
                summary="Get new tokens",
                description="A refresh token is good for one refresh.",
                tag="users",
                body=RefreshToken,
                answer=TokenPair,
                errors=(401,),
                handler=self.refresh,
            ),
            Route(
                method="POST",
                path="/api/v1/auth/logout",
                summary="End a login: the tokens that belong to it are worthless",
                tag="users",
                body=RefreshToken,
                errors=(401,),
                handler=self.logout,
            ),
            Route(
                method="POST",
                path="/api/v1/auth/guest",
                summary="Get a guest's token",
                description="What a guest has said is found again with this token only.",
                tag="users",
                answer=GuestToken,
                errors=(401,),
                spends=True,
                handler=self.guest,
            ),
        ]

    def _account(self) -> list[AnyRoute]:
        return [
            Route(
                method="POST",
                path="/api/v1/auth/password",
                summary="Change the password",
                description="Ends all logins; these tokens are of a new one. API keys stay, unless "
                "`revoke_keys` is true.",
                tag="users",
                access=Access.LOGIN,
                body=PasswordChange,
                answer=TokenPair,
                handler=self.change_password,
            ),
            Route(
                method="GET",
                path="/api/v1/me",
                summary="Who you are",
                tag="users",
                access=Access.USER,
                answer=Me,
                handler=self.me,
            ),
            Route(
                method="DELETE",
                path="/api/v1/me",
                summary="Delete the account and all its data",
                tag="users",
                access=Access.LOGIN,
                body=AccountDeletion,
                handler=self.leave,
            ),
        ]

    def _keys(self) -> list[AnyRoute]:
        return [
            Route(
                method="GET",
                path="/api/v1/keys",
                summary="Your API keys",
                tag="keys",
                access=Access.USER,
                answer=Keys,
                handler=self.keys,
            ),
            Route(
                method="POST",
                path="/api/v1/keys",
                summary="Make an API key",
                description="Its secret is in this answer, and never shown again.",
                tag="keys",
                access=Access.LOGIN,
                body=NewKey,
                answer=CreatedKey,
                status=201,
                errors=(409,),
                spends=True,
                handler=self.create_key,
            ),
            Route(
                method="DELETE",
                path="/api/v1/keys/{id}",
                summary="Revoke an API key",
                tag="keys",
                access=Access.LOGIN,
                handler=self.revoke_key,
            ),
        ]

    async def sign_in(self, call: Call[Body, Query]) -> SignIn:
        rules = self._accounts.rules
        return SignIn(guests=rules.guests, registration=rules.registration)

    async def register(self, call: Call[Registration, Query]) -> Registered:
        body, visitor = call.body, call.caller
        password = body.password.get_secret_value()
        user = await self._accounts.register(
            body.username, body.email, password, visitor.address, visitor.user or None
        )
        return Registered(id=user.id, username=user.username)

    async def login(self, call: Call[Login, Query]) -> TokenPair:
        visitor, password = call.caller, call.body.password.get_secret_value()
        tokens = await self._accounts.login(
            call.body.username, password, visitor.address, visitor.user or None
        )
        return TokenPair.of(tokens)

    async def refresh(self, call: Call[RefreshToken, Query]) -> TokenPair:
        return TokenPair.of(await self._accounts.refresh(call.body.refresh_token))

    async def logout(self, call: Call[RefreshToken, Query]) -> None:
        await self._accounts.logout(call.body.refresh_token)

    async def guest(self, call: Call[Body, Query]) -> GuestToken:
        return GuestToken.of(*self._accounts.guest())

    async def change_password(self, call: Call[PasswordChange, Query]) -> TokenPair:
        current, new = call.body.current_password, call.body.new_password
        tokens = await self._accounts.change_password(
            call.caller.user,
            current.get_secret_value(),
            new.get_secret_value(),
            revoke_keys=call.body.revoke_keys,
        )
        return TokenPair.of(tokens)

    async def me(self, call: Call[Body, Query]) -> Me:
        return Me.of(await self._accounts.get(call.caller.user))

    async def leave(self, call: Call[AccountDeletion, Query]) -> None:
        running = await self._accounts.delete(call.caller.user, call.body.password.get_secret_value())
        for response_id in running:
            # What cannot be stopped finds nothing to be stored in.
            with contextlib.suppress(SluiceError):
                await self._chat.cancel(call.caller, response_id)

    async def keys(self, call: Call[Body, Query]) -> Keys:
        return Keys(keys=[Key.of(key) for key in await self._accounts.keys(call.caller.user)])

    async def create_key(self, call: Call[NewKey, Query]) -> CreatedKey:
        return CreatedKey.with_secret(*await self._accounts.create_key(call.caller.user, call.body.name))

    async def revoke_key(self, call: Call[Body, Query]) -> None:
        await self._accounts.revoke_key(call.caller.user, call.id)
