"""The settings of a model elsewhere, and its keys, in the words of its engine."""

from collections.abc import Mapping
from dataclasses import replace

from internal.biz.errors import InvalidRequest
from internal.conf import upstream as conf
from internal.generator.openai.options import NodeOptions, OpenAIOptions


def upstream_options(name: str, options: conf.OpenAIOptions, environ: Mapping[str, str]) -> OpenAIOptions:
    """What the settings of the model `name` say. Raises InvalidRequest when a key is not in `environ`."""
    try:
        nodes = [_node(node, options, environ) for node in options.nodes or [_only_node(options)]]
        headers = {header: value.resolve(environ) for header, value in options.headers.items()}
    except ValueError as error:
        raise InvalidRequest(f"the model {name}: {error}", param="models") from None
    return replace(
        common_options(options),
        model=options.model or name,
        nodes=tuple(nodes),
        context=options.context,
        images=options.images,
        tools="tools" not in options.lacks,
        check_interval_s=options.health_check.interval,
        check_path=options.health_check.path,
        headers=headers,
        extra_body=options.extra_body,
        rename=options.rename,
        continuation=options.continuation,
        refusals=tuple(phrase.replace("’", "'").casefold() for phrase in options.refusals),
    )


def common_options(options: conf.OpenAIOptions | conf.OwnOptions) -> OpenAIOptions:
    """How long an upstream may take, and how often it may fail; nothing of which one it is."""
    return OpenAIOptions(
        model="",
        nodes=(),
        connect_timeout_s=options.connect_timeout,
        first_token_timeout_s=options.first_token_timeout,
        token_timeout_s=options.token_timeout,
        timeout_s=options.timeout,
        retries=options.retries,
        breaker_failures=options.breaker.failures,
        breaker_reset_s=options.breaker.reset,
    )


def _only_node(options: conf.OpenAIOptions) -> conf.UpstreamNode:
    assert options.base_url is not None
    return conf.UpstreamNode(base_url=options.base_url)


def _node(node: conf.UpstreamNode, options: conf.OpenAIOptions, environ: Mapping[str, str]) -> NodeOptions:
    key = options.api_key if node.api_key is None else node.api_key
    return NodeOptions(node.base_url, key.resolve(environ), node.slots or options.slots)
