"""Text that is safe to print and to store: without characters that deceive, and without credentials."""

from __future__ import annotations

import json
import re
import unicodedata
from urllib.parse import unquote

_OPEN = ("http", "https", "s3", "s3a", "gs", "gcs")
"""Schemes in which a name without a password, before the @, is a key or a token."""
# A secret of Amazon may contain slashes; `http://host:8080/a@b` has a port and no password.
_USER = re.compile(
    r"(?i)\b([a-z][a-z0-9+.-]*)(://)(?:([^\s/?#\"]*)@|"
    r"(?:(?<=s3://)|(?<=s3a://)|(?![^\s/?#]*:\d{1,5}(?:[/?#\"]|$)))([^\s/?#:@\"]*:[^\s@\"]*)@)"
)
_PARAMETER = re.compile(r"([?&;#])([^\s=&;#?/]+)=([^\s&;#'\"<>]*)")
_ASSIGNMENT = re.compile(r"(?<![\w/.-])(?:--?([A-Za-z][\w-]*)[= ]|([A-Za-z_]\w*)=)['\"]?[^\s$'\"]")
_NAME = re.compile(
    r"(?i)x-(?:amz|goog|ms|oss|cos)-(?!meta).*|(?:.*[_-])?(?:sig|sas|auth|authorization)|"
    r".*(?:signature|token|secret|passw(?:or)?d|passwd|passphrase|pwd|credentials?|api_?-?key)|"
    r".*(?:access|account|private|secret|storage)_?-?key(?:_?-?id)?|googleaccessid"
)


def escaped(text: object, keep: str = "", *, as_json: bool = False) -> str:
    """A text with all characters escaped that move the cursor or reorder the text beside them."""
    keep += "\u200c\u200d"  # Words and emoji need these joiners.
    return "".join(
        char
        if char in keep or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else (json.dumps(char)[1:-1] if as_json else char.encode("unicode_escape").decode())
        for char in str(text)
    )


def printable(text: str, *, as_json: bool = False) -> str:
    """A text of several lines, or JSON, as it may be printed: escaped, and without credentials."""
    return escaped(without_credentials(text), "\n\t", as_json=as_json)


def without_credentials(text: str) -> str:
    """A URI, or a text with URIs, without user names and passwords, and with *** for secret parameters."""
    if "://" not in text:
        return text
    return _PARAMETER.sub(_masked, _USER.sub(_anonymous, text))


def has_credentials(text: str) -> bool:
    """Whether a command line has credentials, in a URI or as an option or variable with a value."""
    names = ("".join(groups) for groups in _ASSIGNMENT.findall(text))
    uris = (text, unquote(text))
    return any(without_credentials(uri) != uri for uri in uris) or any(map(_NAME.fullmatch, names))


def _anonymous(match: re.Match[str]) -> str:
    scheme, border, user, keys = match.groups()
    # Azure's URIs name a container before the @, others a user.
    is_secret = ":" in unquote(keys or user) or scheme.lower() in _OPEN
    return f"{scheme}{border}" if is_secret else match[0]


def _masked(match: re.Match[str]) -> str:
    border, name, value = match.groups()
    # Google's keys are parameters with the name of many harmless ones.
    is_secret = _NAME.fullmatch(unquote(name)) or (name.lower() == "key" and value.startswith("AIza"))
    return f"{border}{name}=***" if is_secret and value else match[0]
