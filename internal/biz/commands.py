"""What the client of a session can ask for. A codec makes these of its frames."""

from dataclasses import dataclass

from internal.biz.chat import Ask


@dataclass(frozen=True, slots=True)
class Create:
    """Ask a model, or several at once: `models`, where `ask` names none. Requests of one lane run one after
    another, lanes run side by side. `response_id`: the answer's, where the codec has to know it before."""

    ask: Ask
    lane: str | None = None
    queue_updates: bool = False
    models: tuple[str, ...] = ()
    response_id: str | None = None

    @property
    def count(self) -> int:
        """How many responses it is."""
        return len(self.models) or 1


@dataclass(frozen=True, slots=True)
class Cancel:
    response_id: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Follow a response again, behind event number `after` (-1: from the start)."""

    response_id: str
    after: int = -1
    lane: str | None = None
    queue_updates: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """What the codec answers by itself."""

    payloads: list[bytes]


Command = Create | Cancel | Resume | Reply
