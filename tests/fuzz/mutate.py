# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Changes inputs: bytes as they are, JSON by its structure, and the order of a peer's answers.

The same input and the same state of the generator give the same change.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from tests.fuzz.peers import SEPARATOR

MOST_BYTES = 65536

DEEP = 20_000
"""More levels than any parser can go down."""

_ODD_VALUES: Sequence[Callable[[random.Random], Any]] = (
    lambda rng: None,
    lambda rng: rng.choice([True, False]),
    lambda rng: rng.choice([0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400]),
    lambda rng: rng.choice([0.5, -0.0, 1e308, float("inf"), float("nan")]),
    lambda rng: rng.choice(["", " ", "0", "x" * 300, "\ud800", "\0", "a\r\nb: c", "http://[", "%", "é", "\u2028", "-"]),
    lambda rng: rng.choice([[], {}, [[]], [{}], {"": None}, [None]]),
    lambda rng: "x" * rng.choice([63, 64, 65, 255, 256, 5000]),
)

_ODD_BYTES = (
    *(b"\0", b"\n", b"\r\n", b"\xff", b"\xc3", b" ", b"-", b"%", b"%00", b"\\", b'"', b"'", b"{", b"[", b"]", b"}"),
    *(b":", b"=", b"&", b",", b"<", b">", b"..", b"/", b"NaN", b"1e999", b"-1", b"0", b"99999999999999999999"),
    *(b"9" * 5000, b"\xf0\x9f\x98\x80", b"\xef\xbb\xbf", b"http://[", b"\\ud800", b"100", b"204", b"302", b"503"),
)


def mutated(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """An input that differs from ``data`` in one to four places."""
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4))):
        pieces = data.split(SEPARATOR)
        kind = rng.random()
        if kind < 0.15:
            pieces = _rearranged(pieces, rng, seeds)
        else:
            place = rng.randrange(len(pieces))
            changed = _json_changed(pieces[place], rng) if kind < 0.6 else None
            pieces[place] = _bytes_changed(pieces[place], rng, seeds) if changed is None else changed
        data = SEPARATOR.join(pieces)[:MOST_BYTES]
    return data


def _rearranged(pieces: list[bytes], rng: random.Random, seeds: Sequence[bytes]) -> list[bytes]:
    first, second = rng.randrange(len(pieces)), rng.randrange(len(pieces))
    kind = rng.randrange(4)
    if kind == 0:
        pieces[first], pieces[second] = pieces[second], pieces[first]
    elif kind == 1:
        pieces.insert(first, pieces[second])
    elif kind == 2:
        pieces.insert(first, rng.choice(rng.choice(seeds).split(SEPARATOR)))
    else:
        del pieces[first]
    return pieces


# --- JSON ---


def _json_changed(piece: bytes, rng: random.Random) -> bytes | None:
    """The piece with one value in its JSON changed; None where it has none."""
    start = min((at for at in (piece.find(b"{"), piece.find(b"[")) if at >= 0), default=-1)
    if start < 0:
        return None
    if rng.random() < 0.02:
        opening = rng.choice((b"[", b'{"a":'))
        return piece[:start] + opening * rng.choice((100, 900, 980, DEEP)) + piece[start:]
    try:
        value = json.loads(piece[start:])
    except (ValueError, RecursionError):
        return None
    try:
        return piece[:start] + json.dumps(_changed(value, rng)).encode()
    except (ValueError, RecursionError):
        return None


def _changed(value: Any, rng: random.Random) -> Any:
    """``value`` with something in it changed."""
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        inside = waiting.pop()
        found = inside.items() if isinstance(inside, dict) else enumerate(inside) if isinstance(inside, list) else ()
        for key, child in found:
            places.append((inside, key))
            waiting.append(child)
    if not places:
        return _odd(rng)
    holder, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif kind == 1:
        holder[str(_odd(rng))[:50]] = holder[key]
    elif kind == 2:
        other, name = rng.choice(places)
        # A copy, so that nothing contains itself.
        if name in other if isinstance(other, dict) else name < len(other):
            holder[key] = json.loads(json.dumps(other[name]))
    elif kind == 3:
        for _ in range(rng.choice((1, 3, 50))):
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
    elif kind == 4 and isinstance(holder[key], str):
        holder[key] = _bytes_changed(holder[key].encode("utf-8", "replace"), rng, [b""]).decode("utf-8", "replace")
    else:
        holder[key] = _odd(rng)
    return value


def _odd(rng: random.Random) -> Any:
    return rng.choice(_ODD_VALUES)(rng)


# --- Bytes ---


def _bytes_changed(piece: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    if not piece:
        return rng.choice(_ODD_BYTES)
    start = rng.randrange(len(piece) + 1)
    end = min(len(piece), start + rng.choice((0, 1, 1, 2, 4, 16, 200)))
    kind = rng.randrange(8)
    if kind == 0:
        middle = bytes((rng.randrange(256),))
    elif kind == 1:
        middle = b""
    elif kind == 2:
        middle = piece[start:end] * rng.choice((2, 3, 100))
    elif kind == 3:
        return piece[:start]
    elif kind == 4:
        other = rng.choice(seeds)
        place = rng.randrange(len(other) + 1)
        middle = other[place : place + rng.choice((1, 4, 16, 64))]
    elif kind == 5:
        middle = bytes(byte ^ (1 << rng.randrange(8)) for byte in piece[start:end])
    else:
        middle = rng.choice(_ODD_BYTES)
    return piece[:start] + middle + piece[end:]
