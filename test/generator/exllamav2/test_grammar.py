"""A grammar on an answer, as exllamav2 asks for it."""

from collections.abc import Sequence

from internal.generator.exllamav2.grammar import GrammarFilter


class Token:
    def __init__(self, token: int) -> None:
        self._token = token

    def item(self) -> int:
        return self._token


class Matcher:
    """Allows tokens below 3, and remembers what it was told."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def consume_token(self, sampled_token: int) -> bool:
        self.tokens.append(sampled_token)
        return True

    def consume_tokens(self, sampled_tokens: Sequence[int]) -> bool:
        self.tokens += sampled_tokens
        return True

    def compute_logit_bias(self) -> bytes:
        return bytes(200 * (token < 3) for token in range(10))

    def rollback(self, num_tokens: int) -> bool:
        del self.tokens[-num_tokens:]
        return True

    def is_error(self) -> bool:
        return False

    def is_stopped(self) -> bool:
        return False


def allowed(ends: Sequence[int]) -> list[int]:
    def mask(logits: object, allowed: bytes) -> bytes:
        return allowed

    masked = GrammarFilter(Matcher(), mask, ends).mask_logits(None)
    return [token for token, value in enumerate(masked) if value]


def test_where_an_answer_may_end_it_may_end_with_each_token_that_ends_one() -> None:
    assert allowed(()) == allowed((2,)) == [0, 1, 2]
    assert allowed((2, 7, 12)) == [0, 1, 2, 7]
    assert allowed((7, 2)) == [0, 1, 2]  # here it may not


def test_the_matcher_hears_of_the_end_that_it_knows() -> None:
    matcher = Matcher()
    filter_ = GrammarFilter(matcher, lambda logits, allowed: logits, (2, 7))
    for token in (1, 7):
        filter_.feed(Token(token))
    assert matcher.tokens == [1, 2]


def test_only_what_it_was_fed_is_taken_back() -> None:
    matcher = Matcher()
    matcher.consume_tokens([0, 1])  # what an earlier attempt said
    filter_ = GrammarFilter(matcher, lambda logits, allowed: logits)
    for token in (3, 4, 5, 6):
        filter_.feed(Token(token))
    filter_.keep(1)
    filter_.keep(1)
    assert matcher.tokens == [0, 1, 3]
