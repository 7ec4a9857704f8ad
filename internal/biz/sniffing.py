"""What a file is, by its bytes. Whatever a client says of it may be wrong, or a lie."""

import codecs
import re

TEXT = "text/plain"
PDF = "application/pdf"
IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
UNKNOWN = "application/octet-stream"

_SIGNATURES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"%PDF-"), PDF),
)
"""Source: https://mimesniff.spec.whatwg.org/"""
_HEAD_BYTES = 12
"""Of the longest signature."""
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
"""What stands in no text: of the C0 controls all but white space, and the escape that colours a log."""


class Sniffer:
    """Is fed all bytes of a file, in order. Text is UTF-8, or UTF-16 that begins with its mark, without
    control characters; whether it is HTML, JSON or a program makes no difference here."""

    __slots__ = ("_decoder", "_head", "_media_type")

    def __init__(self) -> None:
        self._head: bytes | None = b""
        self._media_type = TEXT
        self._decoder: codecs.IncrementalDecoder | None = None

    def feed(self, data: bytes) -> None:
        """Takes time in proportion to `data`: not for an event loop, where that is much."""
        if self._head is not None:
            self._head += data
            if len(self._head) < _HEAD_BYTES:
                return
            data = self._begin()
        self._read(data)

    def media_type(self) -> str:
        """Of the file, which is complete."""
        self._read(self._begin() if self._head is not None else b"", final=True)
        return self._media_type

    def _begin(self) -> bytes:
        head, self._head = self._head or b"", None
        self._media_type = next((it for pattern, it in _SIGNATURES if pattern.match(head)), TEXT)
        self._decoder = codecs.getincrementaldecoder(_encoding(head))()
        return head

    def _read(self, data: bytes, *, final: bool = False) -> None:
        if self._media_type is not TEXT or self._decoder is None:
            return
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError:
            self._media_type = UNKNOWN
        else:
            if _CONTROLS.search(text):
                self._media_type = UNKNOWN


def sniff(data: bytes) -> str:
    """The media type of a whole file."""
    sniffer = Sniffer()
    sniffer.feed(data)
    return sniffer.media_type()


def text_of(data: bytes) -> str:
    """What a file of the type TEXT says."""
    return data.decode(_encoding(data))


def _encoding(head: bytes) -> str:
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
