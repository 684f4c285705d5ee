# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A whole lab of simulated boards with their relay boards, in one thread with one event loop."""

from __future__ import annotations

import asyncio
import random
import resource
import threading
from collections import Counter, defaultdict
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mozpool.bmm.backends.proxr import Board, RelayInfo
from mozpool.clock import Clock
from mozpool.config import Settings, host_and_port
from mozpool.fakes.board import Behaviour, BoardSpec
from mozpool.fakes.echo import ECHO_PORT
from mozpool.fakes.loopback import LoopbackBoard
from mozpool.fakes.net import FakesError
from mozpool.fakes.relayboard import RelayBoard, RelayFault
from mozpool.fakes.sutagent import COMMAND_PORT


class Rack:
    """Simulated boards and the relay boards that they hang on; a context manager that starts and stops them.

    After the start every board has power and runs the image of its description. Use it once.
    """

    def __init__(
        self,
        boards: Sequence[BoardSpec],
        server_url: str,
        tftp_root: str | Path | None,
        behaviour: Behaviour | None = None,
        rng: random.Random | None = None,
        *,
        agent_port: int = COMMAND_PORT,
        echo_port: int = ECHO_PORT,
        clock: Clock | None = None,
    ) -> None:
        """Describe the lab; nothing is opened yet.

        ``server_url`` (``http://HOST:PORT``) is called by boards whose boot configuration names no server;
        ``tftp_root`` is the directory that network boots read, None for none. ``behaviour`` is that of real
        boards and ``rng`` unpredictable unless given. ``clock`` is what the agents tell the time by.
        Raises FakesError for descriptions that contradict each other, BadInput for a bad ``relay_info``.
        """
        behaviour = behaviour or Behaviour()
        # Each part has a generator of its own, so that what one does never changes what another one does.
        seed = (rng or random.Random()).getrandbits(64)
        self.boards: dict[str, LoopbackBoard] = {}
        """By the device's name."""
        self.relay_boards: dict[str, RelayBoard] = {}
        """By ``HOST:PORT``."""
        _check_unique(boards)
        wiring: defaultdict[Board, dict[tuple[int, int], LoopbackBoard]] = defaultdict(dict)
        for spec in boards:
            board = LoopbackBoard(
                spec,
                server_url=server_url,
                tftp_root=None if tftp_root is None else Path(tftp_root),
                behaviour=behaviour,
                seed=f"{seed}:{spec.name}",
                clock=clock or Clock(),
                agent_port=agent_port,
                echo_port=echo_port,
            )
            self.boards[spec.name] = board
            if spec.relay_info is not None:
                info = RelayInfo.parse(spec.relay_info)
                other = wiring[info.board].setdefault((info.bank, info.relay), board)
                if other is not board:
                    raise FakesError(f"{other.name} and {board.name} hang on the same relay {info}")
        for place, wires in wiring.items():
            self.relay_boards[str(place)] = RelayBoard(
                place.host,
                place.port,
                rng=random.Random(f"{seed}:{place}"),
                recovery=behaviour.relay_recovery_seconds / behaviour.speed,
                on_change=_Wiring(wires),
            )
        self._thread: threading.Thread | None = None
        self._used = False

    @classmethod
    def from_settings(cls, settings: Settings, boards: Sequence[BoardSpec], server_url: str | None = None) -> Self:
        """The lab that a configuration describes. ``server_url`` is where its server listens unless given.

        Raises FakesError, BadInput.
        """
        server, testing = settings.server, settings.testing
        host = "127.0.0.1" if server.listen == "0.0.0.0" else server.listen  # noqa: S104 (nothing is bound to it)  # nosec B104
        behaviour = Behaviour(
            speed=testing.speed,
            boot_failure=testing.fake_boot_failure,
            download_failure=testing.fake_download_failure,
            extraction_failure=testing.fake_extract_failure,
            reboot_failure=testing.fake_reboot_failure,
            ping_failure=testing.fake_ping_failure,
            self_test_failure=testing.fake_selftest_failure,
        )
        url = server_url or f"http://{host_and_port(host, server.port)}"
        return cls(boards, url, settings.paths.tftp_root, behaviour, random.Random(testing.seed))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the thread and open all ports; return when everything listens.

        Raises FakesError, with everything closed again, when a port can't be had.
        """
        if self._used:
            raise RuntimeError("a rack is started once")
        self._used = True
        _allow_open_files(4 * len(self.boards) + 1024)
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(started,), name="mozpool-fakes", daemon=True)
        self._thread.start()
        try:
            started.result()
        except Exception:
            self._thread.join()
            self._thread = None
            raise

    def stop(self) -> None:
        """Close all ports and connections and end the thread. Stopping what is stopped does nothing."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            thread.join()

    def set_relay_fault(self, relay_board: str, fault: RelayFault | None) -> None:
        """Make the relay board ``HOST:PORT`` misbehave, or healthy with None. From any thread but the rack's own.

        Raises FakesError when a board that refused connections can't get its port back.
        """
        self._do(self.relay_boards[relay_board].set_fault(fault))

    def set_power(self, device: str, on: bool) -> None:
        """Pull a board's plug, or put it in again, past its relay. From any thread but the rack's own."""

        async def turn() -> None:
            self.boards[device].set_power(on)

        self._do(turn())

    def set_behaviour(self, behaviour: Behaviour) -> None:
        """Change durations and failure rates of all boards from now on. Relay boards keep theirs. From any thread."""
        for board in self.boards.values():
            board.behaviour = behaviour

    def report(self) -> dict[str, Any]:
        """What all parts have gone through, ready for JSON; times are monotonic seconds. From any thread."""
        return {
            "boards": {
                name: {"image": board.image, "boot_config": board.boot_config, "history": board.history}
                for name, board in self.boards.items()
            },
            "relay_boards": {name: relay_board.record for name, relay_board in self.relay_boards.items()},
        }

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        if self._thread is None:
            work.close()
            raise RuntimeError("the rack is not running")
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _work(self, started: Future[None]) -> None:
        """What the thread does. ``started`` gets the outcome of the start."""
        try:
            asyncio.run(self._run(started))
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _run(self, started: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        # For reading PXE files; asyncio.run ends these two threads.
        self._loop.set_default_executor(ThreadPoolExecutor(2, thread_name_prefix="mozpool-fakes-files"))
        parts: list[LoopbackBoard | RelayBoard] = [*self.boards.values(), *self.relay_boards.values()]
        try:
            for part in parts:
                await part.start()
            started.set_result(None)
            await self._stopping.wait()
        finally:
            for part in reversed(parts):  # relay boards first: from here on nobody switches a board on
                await part.close()


class _Wiring:
    """What hangs on the relays of one relay board."""

    def __init__(self, wires: dict[tuple[int, int], LoopbackBoard]) -> None:
        self._wires = wires

    def __call__(self, bank: int, relay: int, on: bool) -> None:
        board = self._wires.get((bank, relay))
        if board is not None:
            board.set_power(not on)  # wired to the normally-closed side


def _check_unique(boards: Sequence[BoardSpec]) -> None:
    for field in ("name", "address", "mac_address"):
        counts = Counter(getattr(board, field) for board in boards)
        for value, count in counts.items():
            if count > 1:
                raise FakesError(f"{count} boards have the {field} {value}")


def _allow_open_files(wanted: int) -> None:
    """Raise this process's limit of open files towards ``wanted``, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with suppress(OSError, ValueError):  # then the start says which port could not be opened
        possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
