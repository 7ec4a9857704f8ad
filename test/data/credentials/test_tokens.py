"""Tokens: what we signed is read, whatever else comes is refused."""

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from internal.biz.errors import Unauthenticated
from internal.biz.tokens import Claims, TokenType
from internal.data.credentials.tokens import CLOCK_SKEW_S, JwtSigner

SECRET = b"0123456789abcdef0123456789abcdef"
NOW = 1_700_000_000.123456
CLAIMS = Claims(TokenType.ACCESS, "at_1", "user_1", NOW, NOW + 3600, "login_1")
PAYLOAD: dict[str, Any] = {
    "iss": "sluice",
    "aud": "sluice",
    "typ": "access",
    "sub": "user_1",
    "jti": "at_1",
    "iat": NOW,
    "exp": int(NOW + 3600),
    "sid": "login_1",
}
WRONG: dict[str, list[Any]] = {
    "iss": ["Sluice", "https://evil.example", ""],
    "aud": ["other", "", ["other"]],
    "typ": ["ACCESS", "", "JWT", ["access"], True],
    "sub": [1, ["user_1"], {"a": 1}],
    "jti": [1, ["at_1"]],
    "exp": [0, -1, int(NOW), "soon", [], float("nan")],
    "iat": [NOW + 3600, 1e300, "soon", [], float("nan"), float("inf")],
}
ALL = tuple(TokenType)


def signer(now: float = NOW, secret: bytes = SECRET) -> JwtSigner:
    return JwtSigner(secret, clock=lambda: now)


def refused(token: str, *types: TokenType, now: float = NOW) -> Unauthenticated:
    with pytest.raises(Unauthenticated) as error:
        signer(now).read(token, *(types or ALL))
    return error.value


def encoded(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(payload: dict[str, Any], key: Any = SECRET, algorithm: str = "HS256", **headers: Any) -> str:
    return jwt.encode(payload, key, algorithm, headers)


def changed(**changes: Any) -> dict[str, Any]:
    """None takes a claim away."""
    return {key: value for key, value in {**PAYLOAD, **changes}.items() if value is not None}


@pytest.mark.parametrize("kind", list(TokenType))
def test_what_was_signed_is_read(kind: TokenType) -> None:
    login_id = "" if kind is TokenType.GUEST else "login_1"
    claims = Claims(kind, "at_1", "user_1", NOW, NOW + 3600, login_id)
    token = signer().sign(claims)
    read = signer().read(token, kind)
    assert 0 <= claims.issued_at - read.issued_at < 1
    assert 0 <= read.expires_at - claims.expires_at < 1
    assert (read.type, read.token_id, read.user_id, read.login_id) == (kind, "at_1", "user_1", login_id)
    assert token.isascii()
    assert token.isprintable()


def test_others_can_read_our_tokens_with_the_secret() -> None:
    token = signer().sign(CLAIMS)
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
    options: Any = {"verify_exp": False}
    assert jwt.decode(token, SECRET, ["HS256"], options, audience="sluice")["sub"] == "user_1"


def test_a_forged_token_that_is_right_in_all_is_read() -> None:
    """So that the refusals below are for the reason that they name."""
    assert signer().read(forged(PAYLOAD), TokenType.ACCESS).user_id == "user_1"


@pytest.mark.parametrize("kind", list(TokenType))
def test_a_token_is_good_for_one_thing(kind: TokenType) -> None:
    token = signer().sign(Claims(kind, "at_1", "user_1", NOW, NOW + 3600))
    refused(token, *(other for other in TokenType if other is not kind))


def test_a_token_expires() -> None:
    token = signer().sign(CLAIMS)
    assert signer(NOW + 3599).read(token, TokenType.ACCESS).user_id == "user_1"
    error = refused(token, now=NOW + 3601)
    assert error.code == "token_expired"
    assert refused(token[:-4] + "AAAA", now=NOW + 3601).code == "invalid_token", "and only a real one says so"


def test_a_clock_may_be_a_little_ahead_but_not_more() -> None:
    behind = signer(NOW - CLOCK_SKEW_S + 1)
    assert behind.read(signer().sign(CLAIMS), TokenType.ACCESS).user_id == "user_1"
    refused(signer().sign(CLAIMS), now=NOW - CLOCK_SKEW_S - 1)


@pytest.mark.parametrize("header", [{"alg": "none"}, {"alg": "None"}, {"alg": "NONE"}, {"alg": ""}, {}])
@pytest.mark.parametrize("signature", ["", "AAAA"])
def test_a_token_that_says_it_needs_no_signature_is_refused(header: dict[str, str], signature: str) -> None:
    refused(f"{encoded(header)}.{encoded(PAYLOAD)}.{signature}")
    refused(f"{encoded(header)}.{encoded(PAYLOAD)}")


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_another_algorithm_is_refused_even_with_our_secret(algorithm: str) -> None:
    refused(forged(PAYLOAD, SECRET * 2, algorithm))


def test_a_token_that_was_signed_with_anothers_private_key_is_refused() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    refused(forged(PAYLOAD, key, "RS256"))
    # With the algorithm's name put right, the signature is still none of ours.
    _, payload, signature = forged(PAYLOAD, key, "RS256").split(".")
    refused(f"{encoded({'alg': 'HS256', 'typ': 'JWT'})}.{payload}.{signature}")


@pytest.mark.parametrize("key", [b"f" * 32, SECRET + b"x", SECRET.upper()])
def test_another_secret_is_refused(key: bytes) -> None:
    refused(forged(PAYLOAD, key))


@pytest.mark.parametrize(
    "headers",
    [
        {"kid": "../../dev/null"},
        {"jku": "https://evil.example/keys"},
        {"jwk": {"kty": "oct", "k": "AAAA"}},
        {"x5u": "https://evil.example"},
    ],
)
def test_a_token_does_not_choose_its_key(headers: dict[str, Any]) -> None:
    refused(forged(PAYLOAD, b"f" * 32, **headers))


@pytest.mark.parametrize("place", range(3))
def test_a_tampered_token_is_refused(place: int) -> None:
    parts = signer().sign(CLAIMS).split(".")
    for position in range(len(parts[place]) - 1):  # the last character has bits that do not count
        part = parts[place]
        other = "B" if part[position] == "A" else "A"
        tampered = [*parts[:place], part[:position] + other + part[position + 1 :], *parts[place + 1 :]]
        refused(".".join(tampered))


@pytest.mark.parametrize(
    "changes",
    [
        *({claim: None} for claim in PAYLOAD if claim != "sid"),
        *({claim: other} for claim, others in WRONG.items() for other in others),
        {"nbf": 4102444800},
    ],
)
def test_a_token_with_another_claim_is_refused(changes: dict[str, Any]) -> None:
    refused(forged(changed(**changes)))


@pytest.mark.parametrize("payload", [b"", b"null", b"[]", b'"x"', b"\xff", b"{", b"[" * 2000, b"1e999"])
def test_a_payload_that_is_no_object_is_refused_also_when_it_is_signed(payload: bytes) -> None:
    refused(jwt.PyJWS().encode(payload, SECRET, "HS256"))


@pytest.mark.parametrize(
    "token",
    [
        *("", ".", "..", "...", "a.b.c", "a.b", "Bearer x", "null", "\x00", "\r\n", "=", "e30.e30.e30"),
        *("ä", "ä.ö.ü", "🙂", "\ud800", "\udcff.a.b", "ｅ.ｙ.Ｊ"),
        *("x" * 10_000_000, "." * 4000, "x" * 1000 + "." + "y" * 1000 + "." + "z" * 1000),
        encoded(b"[" * 2900) + ".e30.AAAA",
        encoded(b'{"a":' * 580) + ".e30.AAAA",
        encoded({"alg": "HS256", "b64": False, "crit": ["b64"]}) + "..AAAA",
        encoded({"alg": "HS256", "kid": 1}) + ".e30.AAAA",
        encoded({"alg": ["HS256"]}) + ".e30.AAAA",
        encoded(b'{"alg":' + b"9" * 2900 + b"}") + ".e30.AAAA",
    ],
    ids=lambda token: ascii(token[:20]),
)
def test_what_is_no_token_is_refused(token: str) -> None:
    error = refused(token)
    assert error.code == "invalid_token"
    assert error.message == "this token is not valid"


@given(st.text(max_size=300))
def test_no_text_is_a_token(text: str) -> None:
    refused(text)


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists)


@given(st.dictionaries(st.sampled_from([*PAYLOAD, "nbf"]), JSON, min_size=1))
def test_no_claim_of_another_kind_gets_through_but_as_a_refusal(changes: dict[str, Any]) -> None:
    payload = {**PAYLOAD, **changes}
    token = jwt.PyJWS().encode(json.dumps(payload).encode(), SECRET, "HS256")
    try:
        claims = signer().read(token, TokenType.ACCESS)
    except Unauthenticated:
        return
    assert isinstance(claims.user_id, str)
    assert isinstance(claims.token_id, str)
    assert claims.expires_at > NOW


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=64))
def test_no_three_pieces_are_a_token(header: bytes, payload: bytes, signature: bytes) -> None:
    refused(".".join(map(encoded, (header, payload, signature))))


def test_no_refusal_tells_the_token(caplog: pytest.LogCaptureFixture) -> None:
    token = forged(PAYLOAD, b"f" * 32)
    error = refused(token)
    assert token not in error.message + caplog.text
    assert SECRET.decode() not in repr(signer()) + caplog.text
