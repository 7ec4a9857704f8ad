"""The engines. Only those that are configured are imported: they bring whole libraries along."""

import os

from cmd.wire.upstream import upstream_options
from internal.biz.models import Feature
from internal.biz.ports import Generator
from internal.conf import settings as conf
from internal.metrics.instruments import Instruments


def features(model: conf.Model) -> frozenset[Feature]:
    """What the model can do that not all can."""
    match model:
        case conf.EchoModel():
            from internal.generator.echo import EchoGenerator

            return EchoGenerator.FEATURES
        case conf.LlamaCppModel():
            from internal.generator.llamacpp import LlamaCppGenerator

            return LlamaCppGenerator.FEATURES
        case conf.OpenAIModel(options=upstream):
            from internal.generator.openai.engine import OpenAIGenerator

            lacks = {*map(Feature, upstream.lacks), *([] if upstream.images else [Feature.IMAGES])}
            return OpenAIGenerator.FEATURES - lacks


def generator(model: conf.Model, instruments: Instruments) -> Generator:
    match model:
        case conf.EchoModel(options=echo):
            from internal.generator.echo import EchoGenerator

            return EchoGenerator(echo.chunks, echo.interval, echo.slots)
        case conf.LlamaCppModel(options=llama):
            from internal.generator.llamacpp import LlamaCppGenerator, LlamaCppOptions

            return LlamaCppGenerator(LlamaCppOptions(**llama.model_dump(exclude={"idle_unload"})))
        case conf.OpenAIModel(name=name, options=upstream):
            from internal.generator.openai.engine import OpenAIGenerator

            return OpenAIGenerator(name, upstream_options(name, upstream, os.environ), instruments)
