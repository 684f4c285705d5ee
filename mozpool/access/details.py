# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What of a call's values goes into the audit: short, and without the secrets that can be told by their names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from mozpool.logbook import one_line

HIDDEN = "(hidden)"

LONGEST = 200
"""Characters of a text that are kept."""

MOST = 4000
"""Characters that all of it may take as JSON."""

ITEMS = 30
"""Items of a list or an object that are kept."""

BULKY = frozenset({"contents"})
"""Keys whose texts are only counted: whole files, which may hold anything."""

CALLED = frozenset({"callback_url"})
"""Keys of URLs of which only scheme and host are kept: whoever knows one whole can speak in its owner's name."""

_WORD = (
    r"(?:token|secret|passw|passphrase|credential|cookie|authorization|signature"
    r"|api[_-]?key|access[_-]?key|private[_-]?key|server[_-]?key)"
)
_NAME = re.compile(rf"[\w.-]*{_WORD}|(?:pass|pwd|sig)$", re.IGNORECASE | re.ASCII)
_QUOTED = r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'"
_IN_TEXT = re.compile(
    rf"(?<![\w.-])(?=[\w.-]*{_WORD})([\w.-]++[\"']?\s*+[=:]\s*+)(?:{_QUOTED}|[^\s&;,\"']+)", re.IGNORECASE | re.ASCII
)
_HEADER = re.compile(
    r"(\b(?:proxy-)?(?:authorization|(?:set-)?cookie)[\"']?\s*:\s*)(?![\s\"'])[^\"'\\]+", re.IGNORECASE | re.ASCII
)
"""A header of HTTP whose value may have several words: all that follows, up to a quote or an end of line."""
_IN_QUERY = re.compile(r"([?&](?:pass|pwd|pin|sig|auth|key|code)=)[^&\s\"'#]+", re.IGNORECASE | re.ASCII)
_USER_IN_URL = re.compile(r"(\w://)[^/?#\s]+@")
_SCHEME = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]+", re.IGNORECASE)
_OURS = re.compile(r"\b(mozpool_\d+_)[\w-]+", re.ASCII)


def fit(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the audit keeps them: JSON of at most MOST characters.

    Hidden is what has a name like a secret's, in objects, queries, headers and command lines; user and password in
    URLs; tokens of Mozpool's own wherever they stand; and of URLs that are called (CALLED) all behind the host. What
    nobody can tell for a secret stays: people should give none to commands as a bare argument.
    """
    made = {_key(key): _value(str(key), value, 3) for key, value in values.items()}
    if len(json.dumps(made)) <= MOST:
        return made
    kept: dict[str, Any] = {}
    size = 0
    for key, value in made.items():
        size += len(json.dumps({key: value}))
        if size > MOST - LONGEST:
            kept["left out"] = f"{len(made) - len(kept)} of {len(made)} values"
            break
        kept[key] = value
    return kept


def text(said: str) -> str:
    """A text on one line, without what can be told for a secret, not longer than LONGEST characters and a remark."""
    if said.isalnum() and said.isascii() and len(said) <= LONGEST:
        return said
    said = masked(said[: 2 * MOST])
    return said if len(said) <= LONGEST else f"{said[:LONGEST]}… ({len(said)} characters)"


def masked(said: str) -> str:
    """A text on one line, without what can be told for a secret."""
    said = one_line(said)
    said = _USER_IN_URL.sub(rf"\1{HIDDEN}@", said)
    said = _OURS.sub(rf"\1{HIDDEN}", said)
    said = _HEADER.sub(rf"\1{HIDDEN}", said)
    said = _SCHEME.sub(rf"\1 {HIDDEN}", said)
    said = _IN_QUERY.sub(rf"\1{HIDDEN}", said)
    return _IN_TEXT.sub(rf"\1{HIDDEN}", said)


def words(command: Sequence[str]) -> list[str]:
    """The words of a command line, without what can be told for a secret: by the option before it, or by itself."""
    return [
        HIDDEN if word and _NAME.match(name) else masked(word[: 2 * MOST])
        for name, word in zip(_options(command), command, strict=True)
    ]


def _options(items: Sequence[object]) -> list[str]:
    """For each item of a list the option of a command line, such as --password, that it follows."""
    names = [item.lstrip("-") if isinstance(item, str) and item[:1] == "-" else "" for item in items]
    return ["", *names][: len(names)]


def host_of(url: str) -> str:
    """Scheme and host of a URL, without what may be secret in it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        return "http://"
    return f"{parts.scheme.lower()}://{f'[{host}]' if ':' in host else host}{port}"


def _key(key: object) -> str:
    said = str(key)
    return said if said.isidentifier() and len(said) <= LONGEST else one_line(said)[:LONGEST]


def _value(key: str, value: Any, depth: int) -> Any:
    if _NAME.match(key) and value not in (None, "", True, False):
        return HIDDEN
    if isinstance(value, str):
        if key in BULKY:
            return f"{len(value)} characters"
        return text(host_of(value) if key in CALLED else value)
    if value is None or isinstance(value, bool | int | float):
        return value if not isinstance(value, int) or abs(value) < 2**63 else text(str(value)[:LONGEST])
    if depth == 0:
        return "…"
    if isinstance(value, Mapping):
        named = list(value.items())[:ITEMS]
        return {_key(name): _value(str(name), item, depth - 1) for name, item in named}
    if isinstance(value, list | tuple):
        items = value[:ITEMS]
        return [_value(name, item, depth - 1) for name, item in zip(_options(items), items, strict=True)]
    return text(str(value))
