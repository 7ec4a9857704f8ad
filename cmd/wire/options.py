"""The settings, in the words of those that they are for."""

import time
from pathlib import Path

from sqlalchemy import make_url

from cmd.wire.engines import features
from internal.biz.accounts import AccountRules
from internal.biz.chat import ChatRules
from internal.biz.files import FileRules, Quota
from internal.biz.images import Images
from internal.biz.limits import Limits
from internal.biz.models import Feature
from internal.biz.session_manager import ManagerLimits
from internal.conf import settings as conf
from internal.data.file_folder import FileFolder
from internal.data.memory_queue import QueueLimits
from internal.data.sql.retention import Keeping

RECOVERY_INTERVAL_S = 10.0
RECOVERY_PATIENCE_S = 5.0
"""Where the queue is in the server: what it does not know was another process's."""


def chat_rules(settings: conf.Settings) -> ChatRules:
    names = tuple(model.name for model in settings.models)
    can = {model.name: features(model) for model in settings.models}
    own = next((model.name for model in settings.models if isinstance(model, conf.OwnModel)), None)
    return ChatRules(names, _titling(settings), can, owners_only=settings.auth.required, own=own)


def _titling(settings: conf.Settings) -> tuple[str, ...]:
    """The models that can find a title: an echo has no words of its own, and a user's upstream costs them
    money."""
    if not settings.storage.titles or not settings.storage.url.get_secret_value():
        return ()
    cannot = (conf.EchoModel, conf.OwnModel)
    return tuple(model.name for model in settings.models if not isinstance(model, cannot))


def account_rules(auth: conf.Auth) -> AccountRules:
    return AccountRules(auth.registration, not auth.required, auth.access_ttl, auth.refresh_ttl)


def recovery(queue: conf.Queue) -> tuple[float, float, float]:
    """How often to look for lost responses, how old they must be, and when the queue was made that knows the
    others."""
    if queue.driver == "redis":
        return queue.lease, 2 * queue.lease, 0.0
    return RECOVERY_INTERVAL_S, RECOVERY_PATIENCE_S, time.time()


def keeping(storage: conf.Storage) -> Keeping:
    return Keeping(storage.keep_conversations, storage.keep_responses, storage.keep_guests)


def file_rules(files: conf.Files) -> FileRules:
    quota = Quota(files.max_per_user, files.max_bytes_per_user)
    return FileRules(files.max_bytes, quota, tuple(files.types), files.keep)


def file_folder(settings: conf.Settings) -> FileFolder:
    files, url = settings.files, make_url(settings.storage.url.get_secret_value() or "memory://")
    # Not who connects, and with which password: only what is there.
    database = str(Path(url.database or "").absolute()) if url.host is None else url.database
    storage = f"{url.get_backend_name()} {url.host} {url.port} {database}"
    return FileFolder(Path(files.folder), files.min_free_bytes, storage)


def images(model: conf.Model, settings: conf.Settings) -> Images | None:
    """For a model whose engine looks at them."""
    return Images(file_folder(settings)) if Feature.IMAGES in features(model) else None


def limits(limits: conf.Limits) -> Limits:
    return Limits(
        limits.user.requests,
        limits.user.tokens,
        limits.user.in_flight,
        limits.address.requests,
        limits.address.tokens,
        limits.login_attempts,
    )


def queue_limits(queue: conf.Queue) -> QueueLimits:
    return QueueLimits(
        retain_s=queue.retain,
        max_pending=queue.max_pending,
        max_age_s=queue.max_age,
        max_attempts=queue.max_attempts,
    )


def manager_limits(session: conf.Session) -> ManagerLimits:
    return ManagerLimits(
        session.max_connections,
        session.max_connections_per_ip,
        cancel_on_disconnect=session.on_disconnect == "cancel",
        grace_s=session.grace,
    )
