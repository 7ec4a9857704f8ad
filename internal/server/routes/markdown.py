"""/api/markdown: what was said, as a page shows it."""

from collections.abc import Sequence
from typing import Protocol

from internal.biz.limits import site_of
from internal.server.rest import Access, AnyRoute, Call, Route
from internal.service.api.base import Query
from internal.service.api.markdown import Rendered, Texts


class Renders(Protocol):
    async def render(self, texts: Sequence[str], caller: str) -> Sequence[str]:
        """The HTML of each. Raises Unavailable."""


class MarkdownRoutes:
    def __init__(self, rendering: Renders) -> None:
        self._rendering = rendering

    @property
    def routes(self) -> list[AnyRoute]:
        return [
            Route(
                method="POST",
                path="/api/markdown",
                summary="Markdown as HTML that is safe to show",
                description="A text may end anywhere. What cannot be rendered in time comes as it is, in a "
                "`<pre>`.",
                tag="chat",
                access=Access.ADMITTED,
                body=Texts,
                answer=Rendered,
                handler=self.render,
            )
        ]

    async def render(self, call: Call[Texts, Query]) -> Rendered:
        caller = call.caller.user or site_of(call.caller.address)
        return Rendered(html=list(await self._rendering.render(call.body.texts, caller)))
