"""Why Sluice closes a connection.

A client may reconnect at once on 1011 to 1013 (the `openai` package does so by itself), should resume on
4408, and must change something first on the others. Source: RFC 6455 §7.4 for the codes below 4000.
"""

from enum import IntEnum


class CloseCode(IntEnum):
    INVALID_UTF8 = 1007
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    RESTART = 1012
    OVERLOADED = 1013
    UNAUTHENTICATED = 4401
    FORBIDDEN = 4403
    WRITE_DEADLINE = 4408
    TOO_MANY = 4429
