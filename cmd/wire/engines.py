"""The engines. Only those that are configured are imported: they bring whole libraries along."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cmd.wire.upstream import common_options, upstream_options
from internal.biz.models import Feature
from internal.biz.own_upstreams import OwnUpstreams
from internal.biz.ports import Generator
from internal.biz.sampling import RARE_NAMES
from internal.conf import settings as conf
from internal.conf.upstream import RARE_SAMPLING
from internal.metrics.instruments import Instruments

if TYPE_CHECKING:
    from internal.generator.exllamav2.host import Host


def features(model: conf.Model) -> frozenset[Feature]:
    """What the model can do that not all can."""
    match model:
        case conf.EchoModel():
            from internal.generator.echo import EchoGenerator

            return EchoGenerator.FEATURES
        case conf.LlamaCppModel():
            from internal.generator.llamacpp import LlamaCppGenerator

            return LlamaCppGenerator.FEATURES
        case conf.ExLlamaV2Model():
            from internal.generator.exllamav2.engine import ExLlamaV2Generator

            return ExLlamaV2Generator.FEATURES
        case conf.OpenAIModel(options=upstream):
            from internal.generator.openai.engine import OpenAIGenerator

            lacks = {Feature(name) for name in upstream.lacks if name != RARE_SAMPLING}
            if RARE_SAMPLING in upstream.lacks:
                lacks |= set(map(Feature, RARE_NAMES))
            if not upstream.images:
                lacks.add(Feature.IMAGES)
            if Feature.PATTERN not in upstream.rename:
                lacks.add(Feature.PATTERN)
            return OpenAIGenerator.FEATURES - lacks
        case conf.OwnModel():
            from internal.generator.own.engine import OwnGenerator

            return OwnGenerator.FEATURES


def generator(
    model: conf.Model,
    instruments: Instruments,
    hosts: Mapping[Path, "Host"],
    upstreams: OwnUpstreams | None = None,
) -> Generator:
    """`hosts`: those of `exllamav2_hosts`, for all models of the process. `upstreams` are users' own, which
    there are where there is a storage."""
    match model:
        case conf.EchoModel(options=echo):
            from internal.generator.echo import EchoGenerator

            return EchoGenerator(echo.chunks, echo.interval, echo.slots, echo.thinking)
        case conf.LlamaCppModel(options=llama):
            from internal.generator.llamacpp import LlamaCppGenerator, LlamaCppOptions

            return LlamaCppGenerator(LlamaCppOptions(**llama.model_dump(exclude={"idle_unload"})))
        case conf.ExLlamaV2Model(options=exl2):
            from cmd.wire.gpu import exllamav2_options
            from internal.generator.exllamav2.engine import ExLlamaV2Generator

            return ExLlamaV2Generator(exllamav2_options(exl2), hosts[exl2.path])
        case conf.OpenAIModel(name=name, options=upstream):
            from internal.generator.openai.engine import OpenAIGenerator

            return OpenAIGenerator(name, upstream_options(name, upstream, os.environ), instruments)
        case conf.OwnModel(name=name, options=own):
            from internal.generator.own.engine import OwnGenerator

            assert upstreams is not None
            return OwnGenerator(
                name,
                common_options(own),
                upstreams,
                instruments,
                slots=own.slots,
                user_slots=own.user_slots,
                only_public=own.addresses == "public",
            )


def exllamav2_hosts(models: Sequence[conf.Model], instruments: Instruments) -> dict[Path, "Host"]:
    """A host for each model that is loaded, by its path: several of the configuration may share it."""
    on_gpu = [model for model in models if isinstance(model, conf.ExLlamaV2Model)]
    if not on_gpu:
        return {}
    from cmd.wire.gpu import hosts

    return hosts(on_gpu, instruments)
