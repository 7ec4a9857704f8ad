"""What users, conversations and files may be called, and what passwords may be. Pure functions over text."""

import re
import unicodedata

from internal.biz.errors import InvalidRequest

MIN_USERNAME_CHARS, MAX_USERNAME_CHARS = 3, 64
MAX_EMAIL_CHARS = 254
"""Source: RFC 5321 §4.5.3.1, as corrected by erratum 1690."""
MIN_PASSWORD_CHARS, MAX_PASSWORD_CHARS = 8, 1024
"""The upper bound keeps what is hashed small: at most 4 KiB, or 18 times as much where the normal form of a
character is longer than itself."""

MAX_FILE_NAME_CHARS = 255

# Printable to Python, and yet nothing to be seen: fillers, joiners, variation selectors.
# Source: DerivedCoreProperties.txt of Unicode, Default_Ignorable_Code_Point; and the blank Braille pattern.
_INVISIBLE = frozenset(
    chr(code)
    for first, last in (
        (0x034F, 0x034F),
        (0x115F, 0x1160),
        (0x17B4, 0x17B5),
        (0x180B, 0x180F),
        (0x2800, 0x2800),
        (0x3164, 0x3164),
        (0xFE00, 0xFE0F),
        (0xFFA0, 0xFFA0),
        (0xE0100, 0xE01EF),
    )
    for code in range(first, last + 1)
)

# Between the letters of some scripts, and within one emoji.
_JOINERS = "\u200c\u200d"
# How the character before is drawn.
_VARIATIONS = "\ufe0e\ufe0f"


def checked_username(text: str) -> str:
    """The name in its normal form. Raises InvalidRequest for what is none."""
    # Text of any size may come here, and normalizing it takes time.
    name = unicodedata.normalize("NFKC", text) if len(text) <= 4 * MAX_USERNAME_CHARS else text
    longest = max(len(name), len(username_key(name)) if len(name) <= MAX_USERNAME_CHARS else 0)
    if len(name) < MIN_USERNAME_CHARS or longest > MAX_USERNAME_CHARS:
        raise InvalidRequest(
            f"a username has {MIN_USERNAME_CHARS} to {MAX_USERNAME_CHARS} characters", param="username"
        )
    if not _is_one_visible_word(name) or unicodedata.category(name[0]).startswith("M"):
        raise InvalidRequest(
            "a username has no spaces and no invisible characters, and begins with none that belongs to the "
            "one before it",
            param="username",
        )
    return name


def username_key(name: str) -> str:
    """The name as it is compared: two that differ in case or in the form of a letter are the same.

    Source: The Unicode Standard, §3.13, definition D146, put into the composed form.
    """
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFD", name).casefold()).casefold()
    return unicodedata.normalize("NFKC", folded)


def checked_email(text: str) -> str:
    """Raises InvalidRequest for what cannot be an e-mail address; whether it is one, only a letter tells."""
    local, _, host = text.rpartition("@")
    if len(text) > MAX_EMAIL_CHARS or not local or not host or not _is_one_visible_word(text):
        raise InvalidRequest(
            f"an e-mail address looks like ada@example.org and has at most {MAX_EMAIL_CHARS} characters",
            param="email",
        )
    return text


def checked_password(text: str, param: str = "password") -> str:
    """The password as it is hashed. Raises InvalidRequest when it is too short or too long."""
    password = as_hashed(text)
    if password is None or len(text) < MIN_PASSWORD_CHARS:
        raise InvalidRequest(
            f"a password has {MIN_PASSWORD_CHARS} to {MAX_PASSWORD_CHARS} characters", param=param
        )
    return password


def as_hashed(text: str) -> str | None:
    """The password in its normal form, so that every keyboard types the same; None for what cannot be one.

    Source: NIST SP 800-63B §5.1.1.2.
    """
    if len(text) > MAX_PASSWORD_CHARS or any("\ud800" <= char <= "\udfff" for char in text):
        return None
    return unicodedata.normalize("NFKC", text)


def file_name(text: str) -> str:
    """What a file is called that came as `text`: no path, one line, nothing invisible, and what stands behind
    its last dot is kept where it is too long."""
    name = visible_line(re.split(r"[/\\]", text[-16 * MAX_FILE_NAME_CHARS :])[-1])
    stem, dot, extension = name.rpartition(".")
    if len(name) > MAX_FILE_NAME_CHARS and stem and len(extension) < MAX_FILE_NAME_CHARS // 2:
        name = stem[: MAX_FILE_NAME_CHARS - len(extension) - 1].rstrip() + dot + extension
    name = name[:MAX_FILE_NAME_CHARS]
    return name if name.strip(". ") else "file"


def visible_line(text: str) -> str:
    """`text` on one line, without what cannot be seen, or turns the direction of what stands behind it."""
    kept: list[str] = []
    for char in " ".join(text.split()):
        if _is_visible(char) or (kept and _belongs_to(kept[-1], char)):
            kept.append(char)
    return " ".join("".join(kept).split())


def _is_visible(char: str) -> bool:
    # There are emoji that Python does not know yet.
    return (char.isprintable() or "\U0001f000" <= char <= "\U0001faff") and char not in _INVISIBLE


def _belongs_to(before: str, char: str) -> bool:
    """Whether a character that is nothing by itself makes another one of the one before it: ❤️ of ❤."""
    if char in _VARIATIONS:
        return before in "0123456789#*" or not (before.isascii() or before in _JOINERS + _VARIATIONS)
    return char in _JOINERS and not before.isascii() and before not in _JOINERS


def _is_one_visible_word(text: str) -> bool:
    return text.isprintable() and " " not in text and _INVISIBLE.isdisjoint(text)
