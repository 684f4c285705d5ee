# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Finds backends by name, the product's own and those that other packages add.

A package adds a backend through an entry point of the group ``mozpool.power``, ``mozpool.boot``, ``mozpool.probe``,
``mozpool.agent`` or ``mozpool.launcher``: the entry point's name is the backend's, its object a class (or any
callable) that takes a :class:`~mozpool.bmm.interfaces.BackendContext`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from types import MappingProxyType
from typing import cast

from mozpool.bmm.interfaces import Agent, BackendContext, Boot, Launcher, Power, Probe
from mozpool.errors import NoSuchBackend

log = logging.getLogger(__name__)

BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "power": {
        "proxr": "mozpool.bmm.backends.proxr:ProXRPower",
        "command": "mozpool.bmm.backends.command:CommandPower",
        "pdudaemon": "mozpool.bmm.backends.pdudaemon:PDUDaemonPower",
        "redfish": "mozpool.bmm.backends.redfish:RedfishPower",
    },
    "boot": {"pxe": "mozpool.bmm.backends.pxe:PXEBoot"},
    "probe": {
        "fping": "mozpool.bmm.backends.fping:FpingProbe",
        "adb": "mozpool.bmm.backends.adb:AdbProbe",
        "echo": "mozpool.fakes.echo:EchoProbe",
        "lambdatest": "mozpool.bmm.backends.lambdatest:LambdaTestProbe",
    },
    "agent": {
        "sut": "mozpool.bmm.backends.sut:SUTAgent",
        "adb": "mozpool.bmm.backends.adb:AdbAgent",
    },
    "launcher": {"lambdatest": "mozpool.bmm.backends.lambdatest:LambdaTestLauncher"},
}
"""What a bare checkout has: interface, backend's name, where its class is. Imported when first used."""

DEFAULTS: Mapping[str, str] = {"power": "proxr", "boot": "pxe", "probe": "fping", "agent": "sut"}
"""The backend of each interface for devices that name none."""

NOTHING_BUILT: Mapping[tuple[str, str], object] = MappingProxyType({})

_KINDS: Mapping[str, type] = {"power": Power, "boot": Boot, "probe": Probe, "agent": Agent, "launcher": Launcher}


class Registry:
    """Gives backends by name; each is built once, when first asked for. Safe to use from any thread."""

    def __init__(
        self,
        context: BackendContext,
        defaults: Mapping[str, str] = DEFAULTS,
        built: Mapping[tuple[str, str], object] = NOTHING_BUILT,
    ) -> None:
        """Look up what is installed, without importing it.

        ``context`` is what every backend is built with; ``defaults`` maps interfaces to names and replaces
        those of :data:`DEFAULTS`. ``built`` are more backends, by interface and name, that exist already.
        """
        self._context = context
        self._defaults = {**DEFAULTS, **defaults}
        installed = entry_points()
        self._known = {interface: _find(interface, installed.select(group=_group(interface))) for interface in BUILT_IN}
        self._built: dict[tuple[str, str], object] = dict(built)
        self._lock = threading.Lock()

    def power(self, name: str | None = None) -> Power:
        """The Power backend of this name (None: the default). Raises NoSuchBackend."""
        return cast(Power, self._get("power", name))

    def boot(self, name: str | None = None) -> Boot:
        """The Boot backend of this name (None: the default). Raises NoSuchBackend."""
        return cast(Boot, self._get("boot", name))

    def probe(self, name: str | None = None) -> Probe:
        """The Probe backend of this name (None: the default). Raises NoSuchBackend."""
        return cast(Probe, self._get("probe", name))

    def agent(self, name: str | None = None) -> Agent:
        """The Agent backend of this name (None: the default). Raises NoSuchBackend."""
        return cast(Agent, self._get("agent", name))

    def launcher(self, name: str) -> Launcher:
        """The Launcher backend of this name; devices that name none have none. Raises NoSuchBackend."""
        return cast(Launcher, self._get("launcher", name))

    def launchers_in_use(self) -> list[Launcher]:
        """Those that have been asked for."""
        with self._lock:
            return [cast(Launcher, backend) for (kind, _), backend in self._built.items() if kind == "launcher"]

    def names(self, interface: str) -> list[str]:
        """The backends that exist for ``power``, ``boot``, ``probe``, ``agent`` or ``launcher``, sorted."""
        built = {name for kind, name in self._built if kind == interface}
        return sorted(built | set(self._known[interface]))

    def usual(self, interface: str) -> str:
        """The backend of ``power``, ``boot``, ``probe`` or ``agent`` for devices that name none."""
        return self._defaults[interface]

    def _get(self, interface: str, name: str | None) -> object:
        name = self._defaults[interface] if name is None else name
        with self._lock:
            if (interface, name) not in self._built:
                self._built[interface, name] = self._build(interface, name)
            return self._built[interface, name]

    def _build(self, interface: str, name: str) -> object:
        entry = self._known[interface].get(name)
        if entry is None:
            exist = ", ".join(self.names(interface))
            raise NoSuchBackend(f"there is no {interface} backend {name!r}; there are: {exist}", field=interface)
        try:
            backend: object = entry.load()(self._context)
        except Exception as e:  # whatever another package's code raises
            raise NoSuchBackend(f"the {interface} backend {name!r} cannot be used: {e}", field=interface) from e
        if not isinstance(backend, _KINDS[interface]):
            raise NoSuchBackend(
                f"the {interface} backend {name!r}, {entry.value}, does not implement {_KINDS[interface].__name__}",
                field=interface,
            )
        return backend


def _group(interface: str) -> str:
    return f"mozpool.{interface}"


def _find(interface: str, installed: EntryPoints) -> dict[str, EntryPoint]:
    """All entry points of an interface by name. The product's own names can't be taken by another package."""
    group = _group(interface)
    found = {name: EntryPoint(name, value, group) for name, value in BUILT_IN[interface].items()}
    for entry in installed:
        if found.setdefault(entry.name, entry).value != entry.value:
            kept = found[entry.name].value
            log.warning("the %s backend %r of %s is hidden by %s", interface, entry.name, entry.value, kept)
    return found
