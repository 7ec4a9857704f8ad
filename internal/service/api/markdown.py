"""Bodies of what is to be shown."""

from typing import Annotated

from pydantic import Field

from internal.service.api.base import Answer, Body

MAX_TEXTS = 64


class Texts(Body):
    texts: Annotated[
        list[str], Field(min_length=1, max_length=MAX_TEXTS, examples=[["Some *words*", "`code`"]])
    ]


class Rendered(Answer):
    html: Annotated[list[str], Field(description="One for each text, in their order.")]
