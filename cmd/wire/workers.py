"""The workers of a process."""

from collections.abc import Sequence

from cmd.wire import engines, options
from cmd.wire.settling import Settle
from internal.biz.own_upstreams import OwnUpstreams
from internal.biz.ports import History, WorkQueue
from internal.biz.worker import Worker
from internal.conf import settings as conf
from internal.metrics.instruments import Instruments


def workers(
    models: Sequence[conf.Model],
    settings: conf.Settings,
    queue: WorkQueue,
    history: History,
    settle: Settle,
    instruments: Instruments,
    upstreams: OwnUpstreams | None,
) -> list[Worker]:
    """One for each of the models."""
    hosts = engines.exllamav2_hosts(models, instruments)
    return [
        Worker(
            model.name,
            engines.generator(model, instruments, hosts, upstreams),
            queue,
            history,
            settle,
            instruments,
            options.images(model, settings),
            idle_unload_s=model.idle_unload_s,
            unload_timeout_s=settings.shutdown.timeout,
        )
        for model in models
    ]
