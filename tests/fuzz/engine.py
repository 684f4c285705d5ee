# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Runs fuzzers: by coverage where atheris is installed, else by chance, and says what is wrong.

What is wrong: an exception that the parser does not document, an input that takes too long, and memory, threads or open
files that grow with the number of inputs.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import resource
import sys
import tempfile
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.fuzz.mutate import MOST_BYTES, mutated

Target = Callable[[bytes], object]

HANGS = 240.0
"""Seconds after which an input counts as one that is never done with."""

MEASURED = 20.0
"""Seconds for which it is seen whether something grows."""

GROWTH = 128 * 1024
"""Bytes by which memory may grow in that time."""

INSTRUMENTED = ("mozpool",)
"""Whose lines guide the fuzzer."""


@dataclass(frozen=True)
class Fuzzer:
    """A parser, and inputs that it understands."""

    name: str
    about: str
    set_up: Callable[[], AbstractContextManager[Target]]
    seeds: Sequence[bytes]
    documented: tuple[type[Exception], ...]
    """What it may raise."""
    once_failed: Sequence[bytes]
    """Inputs that showed a fault which is mended."""
    seconds: float
    """Of the processor's time, that an input may take."""


FUZZERS: dict[str, Fuzzer] = {}
"""By name."""


def fuzzer(
    *,
    seeds: Sequence[bytes],
    raises: tuple[type[Exception], ...] = (),
    once_failed: Sequence[bytes] = (),
    seconds: float = 2.0,
) -> Callable[[Callable[[], Iterator[Target]]], Callable[[], Iterator[Target]]]:
    """Registers a generator that sets something up, yields what an input is given to, and tidies up."""

    def register(set_up: Callable[[], Iterator[Target]]) -> Callable[[], Iterator[Target]]:
        name = set_up.__name__
        about = (set_up.__doc__ or "").strip()
        FUZZERS[name] = Fuzzer(name, about, contextmanager(set_up), seeds, raises, once_failed, seconds)
        return set_up

    return register


class Found(Exception):
    """An input that shows a fault; ``str()`` tells both."""


class Tries:
    """Gives inputs to a target, and watches it."""

    def __init__(self, fuzzer: Fuzzer, target: Target) -> None:
        self.fuzzer = fuzzer
        self.target = target
        self.number = 0
        self.since: float | None = None
        """When (monotonic) the present input was begun."""
        self.data = b""

    def once(self, data: bytes) -> None:
        """Try an input. Raises Found."""
        self.number += 1
        self.data, self.since = data, time.monotonic()
        begun = time.thread_time()
        try:
            self.target(data)
        except self.fuzzer.documented:
            pass
        except Exception as error:
            raise Found(f"{self.fuzzer.name}: {type(error).__name__} by {data!r}: {str(error)[:2000]}") from error
        finally:
            self.since = None
        limit = self.fuzzer.seconds * (20 if tracemalloc.is_tracing() else 1)  # which takes its time, too
        if (spent := time.thread_time() - begun) > limit:
            raise Found(f"{self.fuzzer.name}: {spent:.1f} s by {data[:MOST_BYTES]!r}")

    def measure(self, inputs: Iterator[bytes], seconds: float) -> None:
        """See that nothing grows with the number of inputs, for about so many seconds. Raises Found."""
        tracemalloc.start()
        try:
            self._settle(inputs, seconds / 2)
            before, files, threads = tracemalloc.take_snapshot(), _open_files(), threading.active_count()
            size = tracemalloc.get_traced_memory()[0]
            number = self._settle(inputs, seconds)
            grown = tracemalloc.get_traced_memory()[0] - size
            if grown > GROWTH:
                places = tracemalloc.take_snapshot().compare_to(before, "lineno")[:3]
                where = "\n".join(map(str, places))
                raise Found(f"{self.fuzzer.name}: {grown} bytes more after {number} inputs:\n{where}")
        finally:
            tracemalloc.stop()
        if (more := _open_files() - files) > 20:
            raise Found(f"{self.fuzzer.name}: {more} more files are open after {number} inputs")
        if (more := threading.active_count() - threads) > 20:
            raise Found(f"{self.fuzzer.name}: {more} more threads after {number} inputs")

    def _settle(self, inputs: Iterator[bytes], seconds: float) -> int:
        """Try inputs for so long; how many it was."""
        begun, end = self.number, time.monotonic() + seconds
        while time.monotonic() < end:
            self.once(next(inputs))
        gc.collect()
        return self.number - begun


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def inputs(fuzzer: Fuzzer, seed: int, *, wander: bool = True) -> Iterator[bytes]:
    """What once failed, the seeds, and then changes of them without end; the same for the same ``seed``.

    With ``wander`` some are changed again and again, and are kept for that.
    """
    yield from fuzzer.once_failed
    yield from fuzzer.seeds
    rng = random.Random(seed)
    pool = [*fuzzer.seeds, *fuzzer.once_failed]
    while True:
        data = mutated(rng.choice(pool), rng, fuzzer.seeds)
        yield data
        if wander and rng.random() < 0.05:  # some way from the seeds, and back
            pool.append(data)
            if len(pool) > 4 * len(fuzzer.seeds) + 50:
                pool = [*fuzzer.seeds, *fuzzer.once_failed]


def shortly(fuzzer: Fuzzer, seconds: float, most: int) -> int:
    """Try up to so many inputs, the same ones each time, for at most so many seconds; how many it was. Raises Found."""
    end = time.monotonic() + seconds
    with fuzzer.set_up() as target:
        tries = Tries(fuzzer, target)
        found = inputs(fuzzer, 1)
        least = len(fuzzer.once_failed) + len(fuzzer.seeds)
        while tries.number < least or (tries.number < most and time.monotonic() < end):
            tries.once(next(found))
    return tries.number


# --- For minutes, in a process of its own ---


def for_long(name: str, minutes: float, *, guided: bool) -> NoReturn:
    """Fuzz until the time is over or something is found, say what came of it, and end the process."""
    atheris: Any = None
    if guided:
        import atheris  # type: ignore[no-redef, import-untyped, import-not-found, unused-ignore]

        with atheris.instrument_imports(include=list(INSTRUMENTED)):
            import tests.fuzz.catalogue
    else:
        import tests.fuzz.catalogue  # noqa: F401
    fuzzer = FUZZERS[name]
    stack = ExitStack()
    tries = Tries(fuzzer, stack.enter_context(fuzzer.set_up()))
    _watch(tries)
    found = inputs(fuzzer, random.SystemRandom().randrange(2**32))
    begun = time.monotonic()
    end = begun + 60 * minutes

    def once(data: bytes) -> None:
        try:
            tries.once(data)
            if time.monotonic() >= end:
                spent, number = time.monotonic() - begun, tries.number
                tries.measure(inputs(fuzzer, 1, wander=False), MEASURED)
                stack.close()
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
                _end(
                    f"{name}: {number} executions, {number / spent:.0f} a second, {memory} MB at most; nothing found", 0
                )
        except Found as error:
            traceback.print_exception(error)
            _end(f"FOUND after {tries.number} executions in {time.monotonic() - begun:.0f} s: {error}", 1)
        except AssertionError as error:  # by what was set up, at the end
            _end(f"FOUND at the end of {name}: {error!r}", 1)

    for data in [*fuzzer.once_failed, *fuzzer.seeds]:
        once(data)
    if atheris is None:
        while True:
            once(next(found))
    corpus = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mozpool-fuzz-")))
    for number, data in enumerate(fuzzer.seeds):
        (corpus / str(number)).write_bytes(data)

    def change(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, most))
        return mutated(bytes(data), rng, fuzzer.seeds)[:most]

    # Hangs are found here; what is measured at the end would be one, too.
    options = {"max_len": MOST_BYTES, "timeout": 1_000_000, "rss_limit_mb": 3000, "verbosity": 0, "detect_leaks": 0}
    flags = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], str(corpus), *flags, f"-artifact_prefix={corpus}/"], once, custom_mutator=change)
    atheris.Fuzz()
    _end(f"{name}: the fuzzer ended by itself", 1)


def _watch(tries: Tries) -> None:
    """End the process, and say where it is, when an input is never done with."""

    def look() -> None:
        while True:
            time.sleep(1)
            since = tries.since
            if since is not None and time.monotonic() - since > HANGS:
                faulthandler.dump_traceback(all_threads=True)
                _end(f"FOUND: {tries.fuzzer.name} is not done within {HANGS:g} s with {tries.data!r}", 1)

    threading.Thread(target=look, name="watch", daemon=True).start()


def _end(text: str, status: int) -> NoReturn:
    print(text, flush=True)
    sys.stderr.flush()
    os._exit(status)
