# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Each fuzzer for a moment, with the same inputs each time; ``python -m tests.fuzz`` goes on from there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext

import pytest

import tests.fuzz.catalogue  # noqa: F401
from tests.fuzz.engine import FUZZERS, Found, Fuzzer, Tries, inputs, shortly

SECONDS = 0.8
MOST = 1500


@pytest.mark.parametrize("fuzzer", FUZZERS.values(), ids=FUZZERS)
def test_whatever_arrives_is_understood_or_refused(fuzzer: Fuzzer):
    assert shortly(fuzzer, SECONDS, MOST) >= len(fuzzer.seeds)


def found_in(target: Callable[[bytes], object], seconds: float = 2.0) -> str:
    """What is found with this target; empty: nothing."""
    made = Fuzzer("x", "", lambda: nullcontext(target), (b"seed",), (KeyError,), (), seconds)
    tries = Tries(made, target)
    try:
        tries.measure(inputs(made, 1), 0.5)
    except Found as found:
        return str(found)
    return ""


def test_what_is_wrong_is_found():
    kept: list[bytes] = []
    files: list[int] = []

    def refuses(data: bytes) -> None:
        raise KeyError(data)

    def breaks(data: bytes) -> None:
        raise RuntimeError("oh")

    def opens(data: bytes) -> None:
        files.append(os.open(os.devnull, os.O_RDONLY))
        time.sleep(0.002)  # the system allows so many only

    assert found_in(len) == ""
    assert found_in(refuses) == ""
    assert "RuntimeError by b'seed'" in found_in(breaks)
    assert "bytes more after" in found_in(lambda data: kept.append(data + bytes(1000)))
    assert " s by b'seed'" in found_in(lambda data: sum(range(200_000)), seconds=0.0001)
    try:
        assert "more files are open" in found_in(opens)
    finally:
        for file in files:
            os.close(file)
