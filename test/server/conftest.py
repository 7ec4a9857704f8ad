"""An application whose storage, accounts and engine are the test's; queue, chat and HTTP are real."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer

from internal.biz.accounts import AccountRules, ApiKey, Preferences, Tokens, User
from internal.biz.attachments import Attachments
from internal.biz.batches import Batches
from internal.biz.chat import Chat, ChatRules
from internal.biz.conversations import Conversations, Page, first_words
from internal.biz.dialogue import Dialogue, unknown_item
from internal.biz.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    SluiceError,
    Unauthenticated,
    Unavailable,
    conversation_locked,
    not_in_conversation,
    unknown_conversation,
    unknown_file,
)
from internal.biz.events import (
    ReasoningDelta,
    ResponseCompleted,
    ResponseFailed,
    ResponseIncomplete,
    ScoredDelta,
    TextDelta,
)
from internal.biz.files import File, Files, Quota
from internal.biz.generation import Delivery, Finished, FinishReason, Transcript
from internal.biz.items import Item, Place
from internal.biz.limits import Budget
from internal.biz.model_orders import ModelOrders
from internal.biz.models import (
    Caller,
    Condition,
    Conversation,
    Feature,
    Message,
    ModelState,
    Order,
    Request,
    Response,
    Role,
    Status,
    StoredMessage,
    ToolCall,
    Usage,
)
from internal.biz.own_upstreams import OwnUpstreams
from internal.biz.responses import Responses
from internal.biz.scores import TokenScore
from internal.biz.subscription import Subscription
from internal.biz.turns import Turn, TurnPage, Turns
from internal.biz.turnstile import Turnstile
from internal.data.memory_history import MemoryHistory
from internal.data.memory_queue import MemoryQueue, QueueLimits
from internal.metrics.instruments import Instruments
from internal.server.address import Proxies
from internal.server.app import App, AppOptions
from internal.server.docs import Docs
from internal.server.identity import Identity
from internal.server.openapi import OpenApi
from internal.server.readiness import Readiness
from internal.server.rest import Rest
from internal.server.routes.accounts import AccountRoutes
from internal.server.routes.batch_form import BatchFormRoutes
from internal.server.routes.batches import BatchRoutes
from internal.server.routes.chat import ChatRoutes
from internal.server.routes.completions import CompletionRoutes
from internal.server.routes.config import ConfigRoutes
from internal.server.routes.conversations import ConversationRoutes
from internal.server.routes.files import FileRoutes
from internal.server.routes.markdown import MarkdownRoutes
from internal.server.routes.models import ModelRoutes
from internal.server.routes.responses import ResponseRoutes
from internal.server.routes.status import BESIDE, StatusRoutes
from internal.server.routes.v1_conversations import V1ConversationRoutes
from internal.server.streams import Streams
from internal.server.websocket import WebSocketServer

OPERATOR_KEY = "operator-key-of-32-bytes-at-least"
PATIENCE_S = 5.0
MAX_BODY_BYTES = 10_000
GRACE_S = 10.0


class FakeAccounts:
    """Users in a dict. A token says plainly whose it is."""

    rules = AccountRules()

    def __init__(self) -> None:
        self.users: dict[str, tuple[User, str]] = {}
        self.api_keys: dict[str, tuple[str, ApiKey]] = {}
        self.settings: dict[str, Preferences] = {}
        self.refresh_tokens: dict[str, str] = {}
        self.taken_over: list[tuple[str, str]] = []
        self.running: list[str] = []
        self.guests = True
        self.away = False
        self._ids = itertools.count(1)

    async def register(
        self, username: str, email: str, password: str, address: str = "", guest: str | None = None
    ) -> User:
        if len(password) < 8:
            raise InvalidRequest("a password has at least 8 characters", param="password")
        if any(user.username == username for user, _ in self.users.values()):
            raise Conflict("this name is taken", code="name_taken", param="username")
        user = User(f"user_{next(self._ids)}", username, email, time.time())
        self.users[user.id] = user, password
        self._take_over(guest, user.id)
        return user

    def _take_over(self, guest: str | None, user_id: str) -> None:
        if guest is not None:
            self.taken_over.append((guest, user_id))

    async def login(
        self, username: str, password: str, address: str = "", guest: str | None = None
    ) -> Tokens:
        for user, secret in self.users.values():
            if (user.username, secret) == (username, password):
                self._take_over(guest, user.id)
                return self._tokens(user.id)
        raise Unauthenticated("the name or the password is wrong", code="invalid_credentials")

    def _tokens(self, user_id: str) -> Tokens:
        refresh = f"refresh-{next(self._ids)}"
        self.refresh_tokens[refresh] = user_id
        return Tokens(f"access-{user_id}", refresh, 3600)

    async def refresh(self, refresh_token: str) -> Tokens:
        if (user_id := self.refresh_tokens.pop(refresh_token, None)) is None:
            raise Unauthenticated("this login has ended", code="login_ended")
        return self._tokens(user_id)

    async def logout(self, refresh_token: str) -> None:
        if self.refresh_tokens.pop(refresh_token, None) is None:
            raise Unauthenticated("this login has ended", code="login_ended")

    async def change_password(
        self, user_id: str, current: str, new: str, *, revoke_keys: bool = False
    ) -> Tokens:
        user = self._proven(user_id, current)
        if revoke_keys:
            self.api_keys = {key: one for key, one in self.api_keys.items() if one[0] != user_id}
        self.users[user_id] = user, new
        return self._tokens(user_id)

    def _proven(self, user_id: str, password: str) -> User:
        user, secret = self.users[user_id]
        if secret != password:
            raise Unauthenticated("the password is wrong", code="invalid_credentials")
        return user

    async def delete(self, user_id: str, password: str) -> Sequence[str]:
        self._proven(user_id, password)
        del self.users[user_id]
        return self.running

    async def get(self, user_id: str) -> User:
        return self.users[user_id][0]

    async def create_key(self, user_id: str, name: str) -> tuple[ApiKey, str]:
        number = next(self._ids)
        key = ApiKey(f"key_{number}", name, f"sk-…{number}", time.time())
        self.api_keys[f"sk-{number}"] = user_id, key
        return key, f"sk-{number}"

    async def keys(self, user_id: str) -> Sequence[ApiKey]:
        return [key for owner, key in self.api_keys.values() if owner == user_id]

    async def revoke_key(self, user_id: str, key_id: str) -> None:
        for secret, (owner, key) in self.api_keys.items():
            if (owner, key.id) == (user_id, key_id):
                del self.api_keys[secret]
                return
        raise NotFound("there is no such API key")

    async def preferences(self, user_id: str) -> Preferences:
        return self.settings.get(user_id, Preferences())

    async def set_preferences(self, user_id: str, preferences: Preferences) -> None:
        if preferences.upstream_url and not preferences.upstream_url.startswith("https://"):
            raise InvalidRequest("upstream_url looks like https://host/v1", param="upstream_url")
        self.settings[user_id] = preferences

    def guest(self) -> tuple[str, Caller]:
        if not self.guests:
            raise Unauthenticated("this server is for its users; log in")
        name = f"guest_{next(self._ids)}"
        return f"token-{name}", Caller(name, until=time.time() + 1000)

    async def identify(self, credential: str, address: str = "") -> Caller:
        if self.away:
            raise Unavailable("the storage cannot be reached")
        kind, _, name = credential.partition("-")
        if kind == "past":
            raise Unauthenticated("this was somebody's once", code=name)
        if kind == "access" and name in self.users:
            return Caller(name, address, is_guest=False, until=time.time() + 1000)
        if kind == "token" and self.guests:
            return Caller(name, address, until=time.time() + 1000)
        if credential in self.api_keys:
            owner, key = self.api_keys[credential]
            return Caller(owner, address, is_guest=False, key_id=key.id)
        raise Unauthenticated("nobody that is known here says this")


class PlainText:
    """Implements Decrypts, for keys that FakeAccounts has not encrypted."""

    def decrypt(self, text: str) -> str | None:
        return text


class FakeStorage:
    """Conversations, and what was said. Implements ConversationStore, and of History what Chat needs.
    `turns` has all of them one by one."""

    def __init__(self) -> None:
        self.turns = MemoryHistory()
        self.conversations: dict[str, Conversation] = {}
        self.said: dict[str, list[StoredMessage]] = {}
        self.heads: dict[str, str] = {}
        self.running: dict[str, str] = {}
        self.requests: list[Request] = []
        self.batches = MemoryHistory()

    async def create(self, conversation: Conversation) -> None:
        self.conversations[conversation.id] = conversation
        self.said[conversation.id] = []

    async def get(self, conversation_id: str, user: str) -> Conversation:
        found = self.conversations.get(conversation_id)
        if found is None or found.user != user:
            raise unknown_conversation(conversation_id, param=None)
        return replace(found, message_count=len(self.said[conversation_id]))

    async def page(self, user: str, limit: int, cursor: str | None, search: str | None) -> Page:
        if cursor is not None and cursor not in self.conversations:
            raise InvalidRequest("this cursor is not one of ours", param="cursor")
        mine = sorted((one for one in self.conversations.values() if one.user == user), key=lambda it: it.id)
        found = [
            await self.get(one.id, user)
            for one in reversed(mine)
            if (cursor is None or one.id < cursor) and (search is None or search in one.title)
        ]
        return Page(found[:limit], found[limit - 1].id if len(found) > limit else None)

    async def messages(self, conversation_id: str, user: str) -> Sequence[StoredMessage]:
        await self.get(conversation_id, user)
        return self.said[conversation_id]

    async def rename(self, conversation_id: str, user: str, title: str) -> None:
        found = await self.get(conversation_id, user)
        self.conversations[conversation_id] = replace(found, title=title, has_title=True)

    async def go_on_from(
        self, conversation_id: str, user: str, response_id: str, title: str | None = None
    ) -> None:
        await self.get(conversation_id, user)
        if conversation_id in self.running.values():
            raise conversation_locked()
        if response_id not in {message.response_id for message in self.said[conversation_id]}:
            raise not_in_conversation(response_id, "head")
        self.heads[conversation_id] = response_id
        if title is not None:
            await self.rename(conversation_id, user, title)

    async def label(self, conversation_id: str, user: str, metadata: Mapping[str, str]) -> None:
        found = await self.get(conversation_id, user)
        self.conversations[conversation_id] = replace(found, metadata=metadata)

    async def delete(self, conversation_id: str, user: str) -> None:
        await self.get(conversation_id, user)
        del self.conversations[conversation_id]

    async def check(self, request: Request, owner: str | None) -> None:
        if request.settings.conversation_id is None:
            return await self.turns.check(request, owner)
        conversation_id = request.settings.conversation_id or ""
        await self.get(conversation_id, request.user)
        if conversation_id in self.running.values():
            raise conversation_locked()
        replaced, said = request.settings.replaces, self.said[conversation_id]
        if replaced is not None and replaced not in {message.response_id for message in said}:
            raise not_in_conversation(replaced, "replaces")

    async def begin(self, request: Request, owner: str | None, *, begins: bool, wants_title: bool) -> None:
        if not begins:
            await self.check(request, owner)
        alone = replace(request, settings=replace(request.settings, conversation_id=None))
        await self.turns.begin(alone, owner, begins=False, wants_title=False)
        if request.settings.conversation_id is None:
            self.requests.append(request)
            return
        conversation_id = request.settings.conversation_id
        if begins:
            title = first_words(request.messages[0].content)
            now = request.created_at
            await self.create(Conversation(conversation_id, request.user, title, False, now, now, 0))
        self.requests.append(request)
        self.running[request.response_id] = conversation_id
        self._say(request, request.messages[0].role, request.messages[0].content)

    async def begin_batch(
        self, requests: Sequence[Request], owner: str | None, *, begins: bool, wants_title: bool
    ) -> None:
        await self.begin(requests[0], owner, begins=begins, wants_title=wants_title)
        await self.batches.begin_batch(requests, owner, begins=True, wants_title=wants_title)

    async def finish(self, responses: Sequence[Response]) -> None:
        await self.batches.finish(responses)
        for response in responses:
            if self.running.pop(response.id, None) is not None and response.answer is not None:
                self._say(response, Role.ASSISTANT, response.text)
        await self.turns.finish(responses)

    def _say(self, by: Request | Response, role: Role, text: str) -> None:
        said = self.said[by.settings.conversation_id or ""]
        response_id = by.response_id if isinstance(by, Request) else by.id
        message_id = f"msg_{len(said)}"
        said.append(
            StoredMessage(message_id, response_id, role, text, by.created_at, by.model, Status.COMPLETED)
        )

    async def before(self, requests: Sequence[Request], max_chars: int) -> Sequence[tuple[Message, ...]]:
        raise NotImplementedError

    async def unfinished(self, before: float, after_id: str, limit: int) -> Sequence[Response]:
        raise NotImplementedError


class FakeFiles:
    """Implements FileStore."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}

    async def add(self, file: File, quota: Quota) -> None:
        self.files[file.id] = file

    async def usage(self, user: str) -> tuple[int, int]:
        sizes = [file.size_bytes for file in self.files.values() if file.user == user]
        return len(sizes), sum(sizes)

    async def get(self, file_id: str, user: str) -> File:
        found = self.files.get(file_id)
        if found is None or found.user != user:
            raise unknown_file(file_id)
        return found

    async def page(
        self, user: str, limit: int, after: str | None, purpose: str | None, *, oldest_first: bool
    ) -> Sequence[File]:
        mine = sorted((it for it in self.files.values() if it.user == user), key=lambda it: it.id)
        return mine[:limit]

    async def delete(self, file_id: str, user: str) -> None:
        await self.get(file_id, user)
        del self.files[file_id]

    async def forget(self, before: float, limit: int) -> Sequence[str]:
        raise NotImplementedError

    async def known(self, ids: Collection[str]) -> Collection[str]:
        raise NotImplementedError


class FakeItems:
    """What was said in a FakeStorage, as items. Implements ItemStore."""

    def __init__(self, storage: FakeStorage) -> None:
        self._storage = storage

    async def _items(self, conversation_id: str, user: str) -> list[tuple[Item, StoredMessage]]:
        return [
            (Item(Place(one.response_id, number), Message(one.role, one.content)), one)
            for number, one in enumerate(await self._storage.messages(conversation_id, user))
        ]

    async def page(
        self, conversation_id: str, user: str, after: Place | None, limit: int, *, newest_first: bool
    ) -> Sequence[Item]:
        items = [item for item, _ in await self._items(conversation_id, user)]
        if newest_first:
            items.reverse()
        behind = [it for it in items if after is None or (it.place < after) == newest_first]
        return [it for it in behind if it.place != after][:limit]

    async def get(self, conversation_id: str, user: str, place: Place) -> Item:
        for item, _ in await self._items(conversation_id, user):
            if item.place == place:
                return item
        raise unknown_item()

    async def delete(self, conversation_id: str, user: str, place: Place) -> None:
        await self.get(conversation_id, user, place)
        for item, message in await self._items(conversation_id, user):
            if item.place == place:
                self._storage.said[conversation_id].remove(message)


class FakeTurns:
    """Who said what in a FakeStorage, as turns that follow nothing. Implements TurnStore."""

    def __init__(self, storage: FakeStorage) -> None:
        self._storage = storage

    async def page(
        self, conversation_id: str, user: str, after: str | None, limit: int, *, newest_first: bool
    ) -> TurnPage:
        said = await self._storage.messages(conversation_id, user)
        ids = sorted({message.response_id for message in said}, reverse=newest_first)
        behind = [one for one in ids if after is None or (one != after and (one < after) == newest_first)]
        turns = [await self._turn(one, said) for one in behind[:limit]]
        return TurnPage(turns, self._storage.heads.get(conversation_id), len(behind) > limit)

    async def _turn(self, response_id: str, said: Sequence[StoredMessage]) -> Turn:
        response = await self._storage.turns.get(response_id, None)
        asked = [
            Item(Place(response_id, number), Message(message.role, message.content))
            for number, message in enumerate(said)
            if message.response_id == response_id and message.role is not Role.ASSISTANT
        ]
        return Turn(response_id, None, False, asked, response, response.created_at)


class NoLimits:
    """A limiter that admits everything, or nothing."""

    def __init__(self) -> None:
        self.refusal: SluiceError | None = None
        self.budget: Budget | None = None
        self.spent: list[Caller] = []

    async def admit(self, caller: Caller, *response_ids: str) -> Budget | None:
        if self.refusal is not None:
            raise self.refusal
        return self.budget

    async def spend(self, caller: Caller) -> Budget | None:
        self.spent.append(caller)
        return await self.admit(caller)

    async def settle(self, responses: Sequence[Response]) -> None:
        return

    async def attempt_login(self, username: str, address: str) -> None:
        return

    async def attempt_password(self, user_id: str) -> None:
        return


class Run:
    """A response on the engine that is the test."""

    def __init__(self, queue: MemoryQueue, storage: FakeStorage, delivery: Delivery) -> None:
        self._queue = queue
        self._storage = storage
        self.request = delivery.request
        self._transcript = Transcript(delivery)

    async def say(self, *words: str, kind: type[TextDelta] | type[ReasoningDelta] = TextDelta) -> None:
        self._transcript.start()
        for word in words:
            self._transcript.add(kind(word))
        await self._append()

    async def say_scored(self, *words: str) -> None:
        """Each as a token that is as likely as another one."""
        self._transcript.start()
        for word in words:
            self._transcript.add(ScoredDelta(word, (TokenScore(word, -0.5, (("or", -0.5),)),)))
        await self._append()

    async def call(self, *calls: ToolCall) -> None:
        self._transcript.start()
        for call in calls:
            self._transcript.add(call)
        await self._append()

    async def finish(
        self,
        reason: FinishReason = FinishReason.STOP,
        error: SluiceError | None = None,
        usage: Usage | None = None,
    ) -> None:
        response = self._transcript.finish(Finished(reason, usage or Usage(), error))
        await self._storage.finish([response])
        await self._append()

    async def _append(self) -> None:
        assert not await self._queue.append([self._transcript])
        self._transcript.appended()


class Engine:
    """Implements Consumer. Answers by itself (`answering`), or the test claims what it was asked."""

    slots = room = 100

    def __init__(self, queue: MemoryQueue, storage: FakeStorage) -> None:
        self._queue = queue
        self._storage = storage
        self.revoked: asyncio.Queue[str] = asyncio.Queue()

    async def claim(self, model: str = "m") -> Run:
        async with asyncio.timeout(PATIENCE_S):
            (delivery,) = await self._queue.claim(model, self)
        return Run(self._queue, self._storage, delivery)

    @contextlib.asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """Echo every message, until it is left."""
        task = asyncio.create_task(self._answer())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _answer(self) -> None:
        while True:
            for delivery in await self._queue.claim("m", self):
                run = Run(self._queue, self._storage, delivery)
                await run.say("echo:", " ", run.request.messages[-1].content)
                await run.finish()

    def revoke(self, delivery: Delivery) -> None:
        self.revoked.put_nowait(delivery.request.response_id)

    def lose(self, delivery: Delivery) -> None:
        raise AssertionError("nothing is lost in memory")


class Resident:
    """Implements the port of this name. Does at once what it is told, or when the test says so."""

    def __init__(self) -> None:
        self.condition = Condition()
        self.told: list[str] = []
        """The orders, each once."""
        self.is_slow = False
        self.failure = ""
        self._heard: set[str] = set()

    def order(self, order_id: str, order: Order) -> None:
        if order_id in self._heard:
            return
        self._heard.add(order_id)
        self.told.append(order)
        if self.is_slow:
            state = ModelState.LOADING if order is Order.LOAD else ModelState.UNLOADING
            self.condition = Condition(state, 0.25, self.condition.orders)
        else:
            self.carry_out(order_id, order)

    def carry_out(self, order_id: str, order: Order) -> None:
        state = ModelState.UNLOADED if self.failure else order.goal
        progress = 1.0 if state is ModelState.LOADED else 0.0
        self.condition = Condition(state, progress, (*self.condition.orders, order_id), self.failure)

    def finish(self) -> None:
        """Do what it was told last."""
        (order_id,) = self._heard.difference(self.condition.orders)
        self.is_slow = False
        self.carry_out(order_id, Order(self.told[-1]))


class Renderer:
    """Renders by putting brackets around it, and notes for whom."""

    def __init__(self) -> None:
        self.callers: list[str] = []
        self.refusal: SluiceError | None = None

    async def render(self, texts: Sequence[str], caller: str) -> Sequence[str]:
        self.callers.append(caller)
        if self.refusal is not None:
            raise self.refusal
        return [f"[{text}]" for text in texts]


class Api:
    """The application, and everything that stands behind it."""

    def __init__(
        self,
        *,
        required: bool = False,
        timeout_s: float = PATIENCE_S,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_per_site: int = 0,
        models: tuple[str, ...] = ("m", "other"),
        files: Files | None = None,
        silence_s: float = PATIENCE_S,
        operator_key: str = OPERATOR_KEY,
        own: str | None = None,
    ) -> None:
        """The first of `models` is the engine's, and can do everything; `own` asks users' upstreams."""
        self.accounts = FakeAccounts()
        self.accounts.guests = not required
        self.storage = FakeStorage()
        self.limiter = NoLimits()
        self.queue = MemoryQueue(QueueLimits(), self.storage.finish)
        self.engine = Engine(self.queue, self.storage)
        features = {models[0]: frozenset(Feature)}
        rules = ChatRules(models, features=features, owners_only=required, own=own)
        attachments, upstreams = Attachments(files), OwnUpstreams(self.accounts, PlainText())
        self.chat = Chat(
            self.queue,
            self.storage,
            self.limiter,
            self.storage.finish,
            rules,
            attachments=attachments,
            upstreams=upstreams,
        )
        self.readiness = Readiness([])
        turnstile = Turnstile(max_per_site=max_per_site)
        self.streams = Streams(
            self.chat, turnstile, cancel_on_disconnect=True, write_timeout_s=1.0, grace_s=GRACE_S
        )
        self.orders = ModelOrders(self.queue)
        self.resident = Resident()
        self.queue.attend(models[0], self.resident)
        self.renderer = Renderer()
        self.operator_key = operator_key
        self.identity = Identity(
            self.accounts, Proxies([]), required=required, allowed_origins=[], operator_key=operator_key
        )
        conversations = Conversations(self.storage)
        dialogue = Dialogue(FakeItems(self.storage), self.storage, attachments)
        responses = Responses(self.chat, self.queue, self.storage.turns)
        batches = Batches(self.chat, self.storage.batches)
        groups = (
            BatchRoutes(batches),
            BatchFormRoutes(batches, max_body_bytes),
            AccountRoutes(self.accounts, self.chat),
            ConversationRoutes(conversations),
            V1ConversationRoutes(conversations, dialogue, Turns(FakeTurns(self.storage))),
            ResponseRoutes(self.chat, responses, self.streams),
            ChatRoutes(self.chat, self.accounts, self.streams),
            ConfigRoutes(self.chat, self.accounts),
            StatusRoutes(self.chat, self.readiness),
            ModelRoutes(self.chat, self.orders, self.streams),
            CompletionRoutes(self.chat, self.streams),
            MarkdownRoutes(self.renderer),
        )
        routes = [route for group in groups for route in group.routes]
        if files is not None:
            routes += FileRoutes(files, self.streams, silence_s).routes
        self.rest = Rest(routes, self.identity, self.limiter, max_body_bytes)
        self.openapi = OpenApi([*routes, *BESIDE], auth_required=required)
        app = App(
            self.chat,
            cast(WebSocketServer, None),
            self.identity,
            self.readiness,
            Instruments(),
            AppOptions([], timeout_s),
            [self.rest, self.openapi, Docs()],
        )
        self.application = app.build()
        self._client: TestClient[web.Request, web.Application] | None = None

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["Api"]:
        server = TestServer(self.application)
        # What passes these, aiohttp refuses by itself, and in words of its own.
        await server.start_server(max_line_size=1 << 20, max_field_size=1 << 20)
        async with TestClient(server) as self._client:
            yield self
        await self.streams.close()

    @property
    def client(self) -> TestClient[web.Request, web.Application]:
        assert self._client is not None
        return self._client

    async def call(
        self, method: str, path: str, body: object = None, token: str | None = None, **more: Any
    ) -> ClientResponse:
        """A request, with a JSON body unless it is None, of whom the token is."""
        headers = {**more.pop("headers", {}), **({"Authorization": f"Bearer {token}"} if token else {})}
        if body is not None:
            more["json"] = body
        response = await self.client.request(method, path, headers=headers, **more)
        await response.read()
        return response

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """For what no client library does."""
        server = self.client.server
        reader, writer = await asyncio.open_connection(server.host, server.port)
        try:
            async with asyncio.timeout(PATIENCE_S):
                yield reader, writer
        finally:
            writer.close()

    async def raw(self, data: bytes) -> bytes:
        """What is answered to these bytes, up to the end of the connection."""
        async with self.connection() as (reader, writer):
            writer.write(data)
            return await reader.read()

    async def user(self, name: str = "ada") -> str:
        """The token of a new user."""
        user = await self.accounts.register(name, f"{name}@example.org", "password-1")
        return f"access-{user.id}"

    async def ended(self, response_id: str) -> Response:
        """How a response ended, once it has."""
        subscription = Subscription()
        cursor = await self.queue.follow(response_id, -1, subscription)
        async with contextlib.aclosing(subscription.read(cursor)) as reading, asyncio.timeout(PATIENCE_S):
            events = [event async for some in reading for event in some]
        end = events[-1]
        assert isinstance(end, ResponseCompleted | ResponseIncomplete | ResponseFailed)
        return end.response

    async def begin(self, token: str, title: str | None = None) -> str:
        """A conversation of theirs."""
        reply = await self.call("POST", "/conversations", {"title": title}, token)
        return cast(str, (await reply.json())["session_id"])


@pytest.fixture(scope="session")
def file_store() -> FakeFiles:
    return FakeFiles()


@pytest.fixture(scope="session")
def api_type() -> type[Api]:
    return Api


@pytest.fixture
async def api(watched_loop: None) -> AsyncIterator[Api]:
    async with Api().serving() as api:
        yield api


@pytest.fixture
async def own_api(watched_loop: None) -> AsyncIterator[Api]:
    """Of a server whose model `other` asks the upstreams of its users."""
    async with Api(own="other").serving() as api:
        yield api


@pytest.fixture
async def closed_api(watched_loop: None) -> AsyncIterator[Api]:
    """Of a server that is for its users only."""
    async with Api(required=True).serving() as api:
        yield api
