"""Text files in front of what was said about them, for engines that read one text."""

import json
import re

from internal.biz.models import Attachment, Message

_FENCES = re.compile("`{3,}")


def text_with_files(message: Message) -> str:
    """What a model reads of a message: each text file in a fence, under its name, then the message.

    A fence is longer than any that the file has, so that a file cannot end itself and pretend to be what was
    said. Images are not in it. A message without text files is its content.
    """
    files = [_framed(file, file.text) for file in message.attachments if file.text is not None]
    return "\n\n".join((*files, message.content)) if files else message.content


def _framed(file: Attachment, text: str) -> str:
    fence = "`" * max((len(found) + 1 for found in _FENCES.findall(text)), default=3)
    end = "" if text.endswith("\n") or not text else "\n"
    name = json.dumps(file.name, ensure_ascii=False)
    return f"File {name}:\n{fence}\n{text}{end}{fence}"
