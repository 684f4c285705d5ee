# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A simulated board: powered by a relay, boots from the network or its own storage, installs images, fails.

It reads the PXE file that the TFTP server would give it, plays the second stage that the file names, tells the
imaging server how far it is over HTTP, and brings up its agent (wire facts: PXE). How all that reaches the board is
up to its :class:`Surroundings`; the time is that of the event loop. The failure rates and the typical durations are
those of real boards. Everything happens in the event loop's thread, unless it says otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlsplit

from mozpool.errors import BadInput, MozpoolError
from mozpool.fakes.httpclient import Answer

log = logging.getLogger(__name__)

_MOST_HISTORY = 2000
_MAC = re.compile(r"[0-9a-f]{12}")
_IMAGING_URL = re.compile(r"\bmobile-imaging-url=(\S+)")
_TOKEN = re.compile(r"\bmozpool-token=(\S+)")


@dataclass(frozen=True)
class BoardSpec:
    """What a simulated board is made of."""

    name: str
    address: str
    """Loopback address of its own, say 127.1.0.7, on which its agent listens and its pings are answered."""
    mac_address: str
    """Twelve lower-case hex digits, without colons."""
    relay_info: str | None = None
    """``HOST[:PORT]:bankN:relayM``; a board without a relay always has power."""
    hardware_type: str | None = None
    image: str | None = None
    """What is installed at the start; None: some system that answers pings and has no agent."""
    agent: bool = True
    """Whether the images of this board bring an agent, the one it starts with and those it installs."""

    def __post_init__(self) -> None:
        if not _MAC.fullmatch(self.mac_address):
            raise BadInput.value("mac_address", self.mac_address, "twelve lower-case hex digits")

    @classmethod
    def from_json(cls, value: object) -> BoardSpec:
        """Build it from an object with the fields' names as keys. Raises BadInput."""
        if not isinstance(value, Mapping):
            raise BadInput.value("board", value, "an object")
        known: dict[str, Any] = {field.name: value[field.name] for field in fields(cls) if field.name in value}
        for key in value:
            if key not in known:
                raise BadInput.value("board", key, "a field of a board")
        for key, content in known.items():
            optional = content is None and key in ("relay_info", "hardware_type", "image")
            if not (isinstance(content, bool if key == "agent" else str) or optional):
                raise BadInput.value(key, content, "true or false" if key == "agent" else "a string")
        try:
            return cls(**known)
        except TypeError as error:
            raise BadInput(f"a board needs name, address and mac_address: {value!r}") from error


@dataclass(frozen=True)
class Behaviour:
    """How long the steps of a board take, in seconds at speed 1, and how often they fail, from 0 to 1."""

    speed: float = 1.0
    """Divides all durations."""
    jitter: float = 0.3
    """By how much of it each duration varies, up and down."""

    boot_loader_seconds: float = 4.0
    live_boot_seconds: float = 12.0
    download_seconds: float = 20.0
    extract_seconds: float = 30.0
    reboot_seconds: float = 6.0
    agent_seconds: float = 8.0
    """From the end of the boot loader until the installed system and its agent are up."""
    self_test_seconds: float = 25.0
    relay_recovery_seconds: float = 1.0
    """What a relay board needs between two connections; never varies."""

    boot_failure: float = 0.05
    """Hangs in the boot loader."""
    download_failure: float = 0.05
    """Hangs while downloading, or has to start again, as often the one as the other."""
    extraction_failure: float = 0.08
    """Hangs with a half-written storage."""
    reboot_failure: float = 0.08
    """Goes down for a reboot and does not come back."""
    ping_failure: float = 0.02
    """Does not answer one ping."""
    self_test_failure: float = 0.20
    """Ends its self-test with ``failed_self_test``."""

    def __post_init__(self) -> None:
        if not self.speed > 0:
            raise BadInput.value("speed", self.speed, "a positive number")
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0 or (value > 1 and (field.name.endswith("_failure") or field.name == "jitter")):
                raise BadInput.value(field.name, value, "in the range that makes sense")

    @classmethod
    def reliable(cls, speed: float = 1.0) -> Behaviour:
        """The behaviour of boards that never fail."""
        failures = {field.name: 0.0 for field in fields(cls) if field.name.endswith("_failure")}
        return cls(speed=speed, **failures)


class HistoryEntry(NamedTuple):
    """Something that a board went through."""

    time: float
    """On the event loop's clock, which is monotonic; in seconds."""
    what: str
    """``power_on power_off boot_loader pxe_boot storage_boot live_image event call_failed download extract
    download_again installed self_test rebooting up hung error``."""
    detail: str


class _Hangs(Exception):
    """Raised inside a board's life where it stops doing anything until its power is cycled."""


class Surroundings(Protocol):
    """What a board is connected to, and what it starts for others to connect to."""

    async def plug_in(self) -> None:
        """Open what hands the board its pings. Raises MozpoolError when that can't be."""
        ...

    def unplug(self) -> None:
        """Close what hands the board its pings."""
        ...

    async def agent_up(self) -> None:
        """Open the board's agent. Raises MozpoolError when that can't be."""
        ...

    def agent_down(self) -> None:
        """Close the agent and cut its connections; nothing where it is not up."""
        ...

    def wipe(self) -> None:
        """Make the storage that the agent shows that of a newly installed image."""
        ...

    async def read_pxe_file(self) -> str | None:
        """The boot configuration for this board; None when there is none and it boots its own storage."""
        ...

    async def get(self, url: str, headers: Mapping[str, str]) -> Answer:
        """GET ``url`` with these headers, from the board's own address.

        Raises OSError when the server can't be talked with, ValueError for what makes no sense.
        """
        ...


class FakeBoard:
    """One board. ``behaviour`` may be changed from any thread at any time."""

    def __init__(
        self, spec: BoardSpec, surroundings: Surroundings, *, server_url: str, behaviour: Behaviour, seed: str
    ) -> None:
        """Describe the board; nothing is opened yet.

        ``server_url`` is the imaging server that it calls when its boot configuration names none (``http://HOST:PORT``);
        boards with equal ``seed`` and equal steps fail equally.
        """
        self.spec = spec
        self.behaviour = behaviour
        self.image = spec.image
        """What is installed."""
        self.boot_config: str | None = None
        """The boot configuration that the installed image was installed with, when this board installed it."""
        self._surroundings = surroundings
        self._server_url = server_url.rstrip("/")
        self._fate = random.Random(seed)
        # Pings and repeated calls come as other programs please; they must not disturb the board's fate.
        self._noise = random.Random(f"{seed}:noise")
        self._bootable = True
        self._powered = False
        self._network_up = False
        self._booted_at = 0.0
        self._headers: dict[str, str] = {}
        """What its live image sends with each call: the token of this boot."""
        self._life: asyncio.Task[None] | None = None
        self._history: list[HistoryEntry] = []

    @property
    def name(self) -> str:
        """The device's name."""
        return self.spec.name

    @property
    def powered(self) -> bool:
        """Whether the board has power. Safe from any thread, as are the next three."""
        return self._powered

    @property
    def network_up(self) -> bool:
        """Whether pings are answered (but for those that get lost)."""
        return self._network_up

    @property
    def busy(self) -> bool:
        """Whether the board is booting, installing or testing; a board that hangs is not."""
        return self._life is not None and not self._life.done()

    @property
    def history(self) -> list[HistoryEntry]:
        """What it went through, oldest first (the last two thousand entries)."""
        return self._history[:]

    async def start(self) -> None:
        """Plug the board in, with the installed image up and running. Raises MozpoolError when that can't be."""
        self._loop = asyncio.get_running_loop()
        await self._surroundings.plug_in()
        self._powered = True
        self._note("power_on")
        self._booted_at = self._loop.time()
        self._network_up = True
        if self._has_agent:
            await self._surroundings.agent_up()
        self._note("up", self.image or "")

    async def close(self) -> None:
        """Unplug the board and end what it is doing."""
        life, self._life = self._life, None
        self._down()
        self._surroundings.unplug()
        if life is not None:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)

    def set_power(self, on: bool) -> None:
        """Give the board its power, or cut it. Setting what is so already does nothing."""
        if on is self._powered:
            return
        self._powered = on
        self._note("power_on" if on else "power_off")
        if self._life is not None:
            self._life.cancel()
            self._life = None
        self._down()
        if on:
            self._life = self._loop.create_task(self._live(self._boot))

    def reboot(self) -> None:
        """What its own system does when it is asked to reboot."""
        if self._powered and not self.busy:
            self._life = self._loop.create_task(self._live(self._reboot))

    def uptime(self) -> float:
        """Seconds since the running system booted."""
        return self._loop.time() - self._booted_at

    def answers_ping(self) -> bool:
        """Whether it answers the ping that comes in now; some get lost."""
        return self._network_up and self._noise.random() >= self.behaviour.ping_failure

    @property
    def _has_agent(self) -> bool:
        return self.spec.agent and self.image is not None

    def _down(self) -> None:
        self._network_up = False
        self._surroundings.agent_down()

    # A board's life between two cuts of its power.

    async def _live(self, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await start()
        except _Hangs as hang:
            self._note("hung", str(hang))
        except Exception as error:  # nobody waits for this task: a fault of the simulation must not pass in silence
            self._note("error", str(error))
            log.exception("fake board %s stops", self.name)

    async def _reboot(self) -> None:
        self._note("rebooting")
        self._down()
        await self._spend(self.behaviour.reboot_seconds)
        if self._fails("reboot_failure"):
            raise _Hangs("in the reboot")
        await self._boot()

    async def _boot(self) -> None:
        self._note("boot_loader")
        self._network_up = True
        await self._spend(self.behaviour.boot_loader_seconds)
        self._network_up = False
        if self._fails("boot_failure"):
            raise _Hangs("in the boot loader")
        config = await self._surroundings.read_pxe_file()
        if config is None:
            await self._boot_storage()
        else:
            await self._boot_live_image(config)

    async def _boot_storage(self) -> None:
        self._note("storage_boot", self.image or "")
        if not self._bootable:
            raise _Hangs("nothing to boot on its storage")
        await self._spend(self.behaviour.agent_seconds)
        self._booted_at = self._loop.time()
        self._network_up = True
        if self._has_agent:
            try:
                await self._surroundings.agent_up()
            except MozpoolError as error:
                raise _Hangs(str(error)) from error
        self._note("up", self.image or "")

    # The live image and its second stages.

    async def _boot_live_image(self, config: str) -> None:
        found = _IMAGING_URL.search(config)
        imaging_url = found[1] if found else ""
        token = _TOKEN.search(config)
        self._headers = {"Mozpool-Boot-Token": token[1]} if token else {}
        self._note("pxe_boot", imaging_url)
        await self._spend(self.behaviour.live_boot_seconds)
        self._booted_at = self._loop.time()
        self._network_up = True
        self._note("live_image")
        api = f"{_server_of(imaging_url) or self._server_url}/api/device/{quote(self.name, safe='')}"
        await self._tell(api, "mobile_init_started")
        stage = second_stage(imaging_url)
        if stage is None:
            raise _Hangs("no second stage that it knows")
        if stage == "maintenance":
            await self._tell(api, "maint_mode")
        elif stage == "self-test":
            await self._self_test(api)
        else:
            await self._install(api, stage)
            await self._reboot()

    async def _self_test(self, api: str) -> None:
        await self._tell(api, "self_test_running")
        self._note("self_test")
        await self._spend(self.behaviour.self_test_seconds)
        failed = self._fails("self_test_failure")
        await self._tell(api, "failed_self_test" if failed else "self_test_ok")

    async def _install(self, api: str, image: str) -> None:
        boot_config = (await self._call(f"{api}/bootconfig/")).decode("utf-8", "replace")
        await self._tell(api, f"{image}_downloading")
        self._note("download", boot_config)
        await self._spend(self.behaviour.download_seconds)
        while self._fails("download_failure"):
            if self._fate.random() < 0.5:
                raise _Hangs("in the download")
            self._note("download_again")
            await self._spend(self.behaviour.download_seconds)

        await self._tell(api, "raw_writing" if image == "raw" else f"{image}_extracting")
        self._note("extract")
        self._bootable = False  # until it is whole
        self.image = self.boot_config = None
        self._surroundings.wipe()
        await self._spend(self.behaviour.extract_seconds)
        if self._fails("extraction_failure"):
            raise _Hangs("in the extraction")
        self._bootable = True
        self.image, self.boot_config = image, boot_config
        self._note("installed", image)
        await self._tell(api, f"{image}_rebooting")

    async def _tell(self, api: str, event: str) -> None:
        await self._call(f"{api}/event/{event}/")
        self._note("event", event)

    async def _call(self, url: str) -> bytes:
        """GET until it works, as the scripts of the live image do: the server may be restarting."""
        pause = 1.0
        while True:
            try:
                answer = await self._surroundings.get(url, self._headers)
            except (OSError, ValueError) as error:
                problem = str(error) or type(error).__name__
            else:
                if answer.status == 200:
                    return answer.body
                problem = f"status {answer.status}"
            self._note("call_failed", f"{url}: {problem}")
            await self._spend(pause, self._noise)
            pause = min(2 * pause, 30.0)

    async def _spend(self, seconds: float, rng: random.Random | None = None) -> None:
        """Let about so many seconds at speed 1 pass."""
        behaviour = self.behaviour
        variation = (rng or self._fate).uniform(-behaviour.jitter, behaviour.jitter)
        await asyncio.sleep(seconds * (1 + variation) / behaviour.speed)

    def _fails(self, what: str) -> bool:
        """Whether it does, this time: ``what`` is a field of :class:`Behaviour`."""
        probability: float = getattr(self.behaviour, what)
        return self._fate.random() < probability

    def _note(self, what: str, detail: str = "") -> None:
        self._history.append(HistoryEntry(self._loop.time(), what, detail))
        if len(self._history) > _MOST_HISTORY:
            del self._history[: _MOST_HISTORY // 2]


def second_stage(imaging_url: str) -> str | None:
    """Which stage a second-stage script plays, by its file name; None when the name tells none.

    One of ``self-test``, ``maintenance``, ``b2g``, ``android`` and ``raw``.
    """
    script = imaging_url.rstrip("/").rpartition("/")[2].lower().replace("selftest", "self-test")
    return next((stage for stage in ("self-test", "maintenance", "b2g", "android", "raw") if stage in script), None)


def _server_of(url: str) -> str | None:
    """The ``http://HOST:PORT`` of a URL; None when it has none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return f"http://{parts.netloc}" if parts.scheme == "http" and parts.netloc else None
