"""What users entrust to us: readable with the server's secret only."""

import base64
import logging

import pytest

from internal.data.credentials.cipher import SecretCipher

SECRET = b"0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize("text", ["sk-upstream", "", "ä🙂", "x" * 4096])
def test_what_was_encrypted_is_read_again(text: str) -> None:
    stored = SecretCipher(SECRET).encrypt(text)
    assert SecretCipher(SECRET).decrypt(stored) == text
    assert not text or text not in stored
    assert base64.urlsafe_b64encode(text.encode()).decode().rstrip("=") not in stored or not text


def test_the_same_text_never_looks_the_same() -> None:
    cipher = SecretCipher(SECRET)
    assert cipher.encrypt("sk-upstream") != cipher.encrypt("sk-upstream")


def test_another_secret_reads_nothing_and_that_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    stored = SecretCipher(SECRET).encrypt("sk-upstream")
    cipher = SecretCipher(b"f" * 32)
    with caplog.at_level(logging.INFO):
        assert [cipher.decrypt(stored) for _ in range(3)] == [None] * 3
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert stored not in caplog.text
    assert cipher.decrypt(cipher.encrypt("new")) == "new"


@pytest.mark.parametrize("stored", ["", "x", "gAAAAA", "sk-plain", "ä", "\ud800", "\x00", "=" * 999])
def test_what_was_never_encrypted_is_nothing(stored: str) -> None:
    assert SecretCipher(SECRET).decrypt(stored) is None


def test_a_changed_byte_is_noticed() -> None:
    cipher = SecretCipher(SECRET)
    stored = bytearray(base64.urlsafe_b64decode(cipher.encrypt("sk-upstream")))
    for position in range(len(stored)):
        stored[position] ^= 1
        assert cipher.decrypt(base64.urlsafe_b64encode(stored).decode()) is None
        stored[position] ^= 1
