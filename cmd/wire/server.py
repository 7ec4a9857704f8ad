"""A server: everything from the sockets to the queue."""

import asyncio
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from cmd.wire import options
from cmd.wire.backend import Backend, Service, backend
from cmd.wire.markdown import rendering
from cmd.wire.storage import Storage
from internal.biz.accounts import Accounts
from internal.biz.attachments import Attachments
from internal.biz.batches import Batches
from internal.biz.chat import Chat
from internal.biz.conversations import Conversations
from internal.biz.dialogue import Dialogue
from internal.biz.errors import EngineLost
from internal.biz.file_keeper import FileKeeper
from internal.biz.files import Files
from internal.biz.flusher import Flusher
from internal.biz.guests import Guests
from internal.biz.heartbeat import Heartbeat
from internal.biz.limits import Limiter
from internal.biz.model_orders import ModelOrders
from internal.biz.ports import Progress
from internal.biz.recovery import Recovery
from internal.biz.responses import Responses
from internal.biz.session import SessionLimits
from internal.biz.session_manager import SessionManager
from internal.biz.titles import Titles
from internal.biz.turns import Turns
from internal.biz.worker import Worker
from internal.conf import settings as conf
from internal.data.credentials.cipher import SecretCipher
from internal.data.credentials.passwords import Argon2Hasher
from internal.data.credentials.secret import signing_secret
from internal.data.credentials.tokens import JwtSigner
from internal.data.sql.accounts import SqlAccounts
from internal.data.sql.conversations import SqlConversations
from internal.data.sql.database import Database
from internal.data.sql.files import SqlFiles
from internal.data.sql.items import SqlItems
from internal.data.sql.retention import Retention
from internal.data.sql.titles import SqlTitles
from internal.data.sql.turns import SqlTurns
from internal.metrics.instruments import Instruments
from internal.metrics.loop_lag import watch_loop_lag
from internal.server.address import Proxies
from internal.server.app import App, AppOptions
from internal.server.docs import Docs
from internal.server.identity import Identity
from internal.server.openapi import OpenApi
from internal.server.page import Page
from internal.server.readiness import Readiness
from internal.server.rest import AnyRoute, Rest, RouteGroup
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

if TYPE_CHECKING:
    from internal.data.redis.link import RedisLink

CUT_SHORT_S = 3.0
"""What engines and storage may take to end what still runs."""


@dataclass(frozen=True, slots=True)
class Sluice:
    """Everything that runs in a server process; `cmd.server` gives it an address and a life."""

    application: web.Application
    sessions: SessionManager
    streams: Streams
    readiness: Readiness
    instruments: Instruments
    link: "RedisLink | None"
    storage: Storage
    services: Sequence[Service]
    workers: Sequence[Worker]

    async def connect(self) -> None:
        """Reach for the storage, and for the queue where it is another process's, once. Raises SluiceError
        when they never will be reached."""
        await self.storage.connect()
        if self.link is not None:
            await self.link.connect()

    async def work(self, progress: Callable[[str, float], None], ready: Callable[[], None]) -> None:
        """Run the workers and the housekeeping until cancelled.

        `progress` is told (model, 0 to 1) by the workers; `ready` is called when there are none to load.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch_loop_lag(self.instruments.loop_lag))
            tasks.create_task(self.storage.run())
            for service in self.services:
                tasks.create_task(service.run())
            for worker in self.workers:
                tasks.create_task(self._run(worker, functools.partial(progress, worker.model)))
            if self.link is not None:
                await self.link.wait_heard()
                ready()

    async def _run(self, worker: Worker, progress: Progress) -> None:
        """Run a worker. When its engine is lost, and the process ends for that, what the others have said is
        stored first."""
        try:
            await worker.run(progress)
        except* EngineLost:
            others = [one for one in self.workers if one is not worker]
            await asyncio.gather(*(other.cut_short(CUT_SHORT_S) for other in others))
            raise

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, let running answers finish, close every session. What then still runs here ends
        where it is."""
        await asyncio.gather(
            self.sessions.drain(timeout_s),
            self.streams.drain(timeout_s),
            *(worker.finish_background(timeout_s) for worker in self.workers),
        )
        await asyncio.gather(*(worker.cut_short(CUT_SHORT_S) for worker in self.workers))


def build_server(settings: conf.Settings) -> Sluice:
    """A server. Must be called on the event loop that will run it. Raises SluiceError."""
    instruments, storage = Instruments(), Storage(settings.storage)
    secret = signing_secret(settings.auth.jwt_secret.get_secret_value(), Path(settings.auth.secret_file))
    signer, cipher = JwtSigner(secret), SecretCipher(secret)
    upstreams = storage.upstreams(cipher)
    back = backend(settings, storage.history, upstreams, instruments)
    services, rules = list[Service](back.services), options.chat_rules(settings)
    accounts = titles = recovery = files = None
    if (database := storage.database) is not None:
        folder, store = options.file_folder(settings), SqlFiles(database)
        files = Files(store, folder, options.file_rules(settings.files))
        accounts = _accounts(settings.auth, SqlAccounts(database, folder), signer, cipher, back)
        how_often = options.recovery(settings.queue)
        recovery = Recovery(storage.history, back.queue, back.settle, instruments, *how_often)
        services += [recovery, Retention(database, options.keeping(settings.storage))]
        services.append(FileKeeper(store, folder, settings.files.keep))
        if rules.titling:
            titles = Titles(SqlTitles(database), back.queue, rules.titling)
            services.append(titles)
    end = recovery.end if recovery is not None else back.settle
    attachments = Attachments(files, settings.files.max_text_chars)
    chat = Chat(
        back.queue, storage.history, back.limiter, end, rules, accounts, titles, attachments, upstreams
    )
    sessions, streams = _sessions(settings.session, chat, instruments)
    readiness = Readiness([worker.model for worker in back.workers])
    identity = Identity(
        accounts or Guests(signer, allowed=not settings.auth.required),
        Proxies(settings.server.trusted_proxies),
        required=settings.auth.required,
        allowed_origins=settings.server.allowed_origins,
        operator_key=settings.auth.operator_key.get_secret_value(),
    )
    orders, renderer = ModelOrders(back.queue), rendering()
    services += [orders, renderer]
    responses = Responses(chat, back.queue, storage.responses)
    batches = Batches(chat, storage.batches)
    routes = [
        *StatusRoutes(chat, readiness).routes,
        *BatchRoutes(batches).routes,
        *BatchFormRoutes(batches, settings.session.max_message_bytes).routes,
        *ModelRoutes(chat, orders, streams).routes,
        *CompletionRoutes(chat, streams).routes,
        *ResponseRoutes(chat, responses, streams).routes,
        *MarkdownRoutes(renderer).routes,
    ]
    if accounts is not None and database is not None:
        dialogue = Dialogue(SqlItems(database), storage.history, attachments)
        routes += _routes_of_storage(chat, accounts, database, dialogue, streams)
    if files is not None:
        routes += FileRoutes(files, streams, settings.session.write_timeout).routes
    application = _application(
        settings, chat, sessions, identity, back.limiter, readiness, instruments, routes
    )
    return Sluice(
        application, sessions, streams, readiness, instruments, back.link, storage, services, back.workers
    )


def _accounts(
    auth: conf.Auth, store: SqlAccounts, signer: JwtSigner, cipher: SecretCipher, back: Backend
) -> Accounts:
    rules = options.account_rules(auth)
    return Accounts(store, Argon2Hasher(), signer, cipher, back.limiter, rules)


def _sessions(session: conf.Session, chat: Chat, instruments: Instruments) -> tuple[SessionManager, Streams]:
    """Those who wait on a socket, and those who wait for the answer to a request."""
    loop = asyncio.get_running_loop()
    sessions = SessionManager(
        chat,
        Flusher(loop),
        Heartbeat(loop, session.ping_interval, session.pong_timeout),
        instruments,
        options.manager_limits(session),
        SessionLimits(session.max_in_flight, session.write_timeout),
    )
    streams = Streams(
        chat,
        sessions.turnstile,
        cancel_on_disconnect=session.on_disconnect == "cancel",
        write_timeout_s=session.write_timeout,
        grace_s=session.grace,
    )
    return sessions, streams


def _routes_of_storage(
    chat: Chat, accounts: Accounts, database: Database, dialogue: Dialogue, streams: Streams
) -> list[AnyRoute]:
    conversations = Conversations(SqlConversations(database))
    return [
        *AccountRoutes(accounts, chat).routes,
        *ConversationRoutes(conversations).routes,
        *V1ConversationRoutes(conversations, dialogue, Turns(SqlTurns(database))).routes,
        *ChatRoutes(chat, accounts, streams).routes,
        *ConfigRoutes(chat, accounts).routes,
    ]


def _application(
    settings: conf.Settings,
    chat: Chat,
    sessions: SessionManager,
    identity: Identity,
    limiter: Limiter,
    readiness: Readiness,
    instruments: Instruments,
    routes: Sequence[AnyRoute],
) -> web.Application:
    max_bytes = settings.session.max_message_bytes
    websockets = WebSocketServer(
        sessions, instruments.traffic, max_bytes, settings.session.write_buffer_bytes
    )
    groups: list[RouteGroup] = [
        Rest(routes, identity, limiter, max_bytes),
        OpenApi([*routes, *BESIDE], auth_required=settings.auth.required),
        Docs(),
        Page(max_bytes),
    ]
    app_options = AppOptions(settings.server.allowed_origins, settings.server.http.timeout)
    return App(chat, websockets, identity, readiness, instruments, app_options, groups).build()
