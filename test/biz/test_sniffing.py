"""What a file is, by its bytes."""

import pytest

from internal.biz.sniffing import IMAGES, PDF, TEXT, UNKNOWN, Sniffer, sniff, text_of

SAMPLES = [
    (b"\x89PNG\r\n\x1a\n" + bytes(20), "image/png"),
    (b"\xff\xd8\xff\xe0" + bytes(20), "image/jpeg"),
    (b"GIF87a" + bytes(20), "image/gif"),
    (b"GIF89a" + bytes(20), "image/gif"),
    (b"RIFF\n\0\0\0WEBPVP8 " + bytes(20), "image/webp"),
    (b"%PDF-1.7\n" + bytes(20), PDF),
    (b"", TEXT),
    (b"a", TEXT),
    ("grüße, 世界 🙂\r\n\tand so on".encode(), TEXT),
    ("\ufeffmarked".encode(), TEXT),
    ("\ufeffUTF-16, 世界 🙂".encode("utf-16-le"), TEXT),
    ("\ufeffUTF-16, 世界 🙂".encode("utf-16-be"), TEXT),
    (b"\x1b[31mred\x1b[0m\n", TEXT),
    (b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", TEXT),
    (b"<!doctype html><script>alert(1)</script>", TEXT),
    (b"RIFF\n\0\0\0WAVEfmt ", UNKNOWN),
    (b"GIF88a" + bytes(20), UNKNOWN),
    (b"\x7fELF\x02\x01\x01" + bytes(20), UNKNOWN),
    (b"PK\x03\x04" + bytes(20), UNKNOWN),
    (b"caf\xe9 in Latin-1, which is not told apart from the others", UNKNOWN),
    (b"text with a NUL \0 in it", UNKNOWN),
    (b"cut within a character \xe4\xb8", UNKNOWN),
    (b"overlong \xc0\xaf, surrogate \xed\xa0\x80", UNKNOWN),
    ("no mark".encode("utf-16-le"), UNKNOWN),
    (b"\xff\xfeodd", UNKNOWN),
    (b"\x8b\x1f late" * 10, UNKNOWN),
]


@pytest.mark.parametrize(("data", "media_type"), SAMPLES)
@pytest.mark.parametrize("step", [1, 5, 1000])
def test_what_it_is_does_not_depend_on_how_it_comes(data: bytes, media_type: str, step: int) -> None:
    sniffer = Sniffer()
    for start in range(0, len(data), step):
        sniffer.feed(data[start : start + step])
    assert sniffer.media_type() == media_type


def test_the_end_counts_as_much_as_the_beginning() -> None:
    assert sniff(b"text " * 100_000 + b"\0") == UNKNOWN
    assert sniff(b"text " * 100_000) == TEXT


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_without_its_mark(encoding: str) -> None:
    assert text_of("grüße 🙂\r\n".encode(encoding)) == "grüße 🙂\r\n"


def test_every_image_has_a_signature() -> None:
    assert {media_type for _, media_type in SAMPLES} >= set(IMAGES)
