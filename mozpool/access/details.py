# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What of a call's values goes into the audit: short, and without the secrets that can be told by their names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

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

_WORDS = r"[\w.-]*?(?:token|secret|passw|passphrase|credential|cookie|authorization|api_?key|access_?key|private_?key)"
_NAME = re.compile(_WORDS, re.IGNORECASE | re.ASCII)
# Each name is looked at once, from its beginning, and never given back in part: anybody may send any text.
_IN_TEXT = re.compile(
    rf"((?<![\w.-])(?={_WORDS})[\w.-]++[\"']?\s*+[=:]\s*+)(?:\"[^\"]*\"|'[^']*'|[^\s&;,\"']+)",
    re.IGNORECASE | re.ASCII,
)
_USER_IN_URL = re.compile(r"(\w://)[^/\s@]+@")
_BEARER = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]+", re.IGNORECASE)


def fit(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the audit keeps them: JSON of at most MOST characters.

    Hidden is what has a name like a secret's, in objects, in queries and in command lines; user and password in URLs.
    What nobody can tell for a secret stays: people should give none to commands as a bare argument.
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
    said = one_line(said[: 2 * MOST])
    said = _USER_IN_URL.sub(rf"\1{HIDDEN}@", said)
    said = _BEARER.sub(rf"\1 {HIDDEN}", said)
    said = _IN_TEXT.sub(rf"\1{HIDDEN}", said)
    return said if len(said) <= LONGEST else f"{said[:LONGEST]}… ({len(said)} characters)"


def _key(key: object) -> str:
    said = str(key)
    return said if said.isidentifier() and len(said) <= LONGEST else one_line(said)[:LONGEST]


def _value(key: str, value: Any, depth: int) -> Any:
    if _NAME.match(key) and value not in (None, "", True, False):
        return HIDDEN
    if isinstance(value, str):
        return f"{len(value)} characters" if key in BULKY else text(value)
    if value is None or isinstance(value, bool | int | float):
        return value if not isinstance(value, int) or abs(value) < 2**63 else text(str(value)[:LONGEST])
    if depth == 0:
        return "…"
    if isinstance(value, Mapping):
        items = list(value.items())[:ITEMS]
        return {_key(name): _value(str(name), item, depth - 1) for name, item in items}
    if isinstance(value, list | tuple):
        # An option of a command line, such as --password, and its value.
        before = ["", *(item.lstrip("-") if isinstance(item, str) and item[:1] == "-" else "" for item in value)]
        return [_value(name, item, depth - 1) for name, item in zip(before, value[:ITEMS], strict=False)]
    return text(str(value))
