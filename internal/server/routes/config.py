"""/api/config: what a user has set for all that they ask."""

from typing import Protocol

from internal.biz.accounts import Preferences
from internal.biz.chat import Chat
from internal.server.rest import Access, AnyRoute, Call, Route, login_required
from internal.service.api.base import Body, Query
from internal.service.api.config import Config, ConfigChange


class KeepsPreferences(Protocol):
    async def preferences(self, user_id: str) -> Preferences: ...

    async def set_preferences(self, user_id: str, preferences: Preferences) -> None: ...


class ConfigRoutes:
    def __init__(self, chat: Chat, accounts: KeepsPreferences) -> None:
        self._chat = chat
        self._accounts = accounts

    @property
    def routes(self) -> list[AnyRoute]:
        return [
            Route(
                method="GET",
                path="/api/config",
                summary="Your settings, and what there is to choose from",
                tag="settings",
                access=Access.CALLER,
                answer=Config,
                handler=self.show,
            ),
            Route(
                method="POST",
                path="/api/config",
                summary="Change your settings",
                description="An API key may not change the upstream.",
                tag="settings",
                access=Access.CALLER,
                body=ConfigChange,
                answer=Config,
                errors=(404,),
                spends=True,
                handler=self.change,
            ),
        ]

    async def show(self, call: Call[Body, Query]) -> Config:
        mine = await self._accounts.preferences(call.caller.user)
        return Config.of(mine, self._chat.models, self._chat.own_model)

    async def change(self, call: Call[ConfigChange, Query]) -> Config:
        before = await self._accounts.preferences(call.caller.user)
        after = call.body.applied_to(before)
        if call.caller.key_id is not None and _upstream(after) != _upstream(before):
            # Else who finds a key could have all that its owner says sent to a server of their own.
            raise login_required()
        if after.upstream_url is None:  # an upstream has models of its own
            self._chat.require_model(after.model)
        await self._accounts.set_preferences(call.caller.user, after)
        return Config.of(after, self._chat.models, self._chat.own_model)


def _upstream(preferences: Preferences) -> tuple[str | None, str | None]:
    return preferences.upstream_url, preferences.upstream_key
