# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Power through Redfish management controllers, with the library sushy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mozpool.bmm import httpio
from mozpool.bmm.interfaces import BackendContext, Power, Target
from mozpool.clock import Deadline
from mozpool.errors import BadInput, HardwareError, LaneError

if TYPE_CHECKING:
    sushy: Any
else:
    try:
        import sushy
        import sushy.auth
        import sushy.connector
    except ImportError as e:
        raise ImportError("it needs the package sushy: pip install 'mozpool[redfish]'") from e

OFF_TIME = 1.0
"""Seconds that a device stays without power in a power cycle."""

_POLL = 1.0
"""Seconds between two looks at the power state: controllers take their time to switch."""

_URL = re.compile(r"https?://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?/?")
_SYSTEM = re.compile(r"/[!-~]{1,500}")


class RedfishPower(Power):
    """Switches the system that the options ``redfish`` (URL of the controller) and ``system`` (its path there) name.

    Every operation logs in and out: controllers have room for few sessions, and one that is kept would be lost with
    each restart of this process.
    """

    def __init__(self, context: BackendContext) -> None:
        self._clock = context.clock
        self._off_time = OFF_TIME / context.speed
        self._poll = _POLL / context.speed
        self._user = context.settings.redfish_user
        self._password = context.settings.redfish_password
        self._verify = context.settings.redfish_verify

    def lane(self, device: Target) -> str:
        """``redfish:HOST:PORT`` of the controller. Raises HardwareError without usable options."""
        url, _ = _options(device, "power control")
        return f"redfish:{_place(url)}"

    def power_cycle(self, device: Target, deadline: Deadline) -> None:
        """Force off, wait until it is, pause, on, wait until it is. Raises HardwareError, LaneError."""
        with self._system(device, "power cycle", deadline) as system:
            system.aftermath = "; the device may be without power"
            self._switch(system, deadline, power=False)
            self._clock.sleep(deadline.remaining(self._off_time))
            self._switch(system, deadline, power=True)

    def power_off(self, device: Target, deadline: Deadline) -> None:
        """Force off and wait until it is. Raises HardwareError, LaneError."""
        with self._system(device, "power off", deadline) as system:
            self._switch(system, deadline, power=False)

    def power_on(self, device: Target, deadline: Deadline) -> None:
        """Switch on and wait until it is. Raises HardwareError, LaneError."""
        with self._system(device, "power on", deadline) as system:
            self._switch(system, deadline, power=True)

    def is_on(self, device: Target, deadline: Deadline) -> bool | None:
        """What the controller says; None while it is changing. Raises HardwareError, LaneError."""
        with self._system(device, "power status", deadline) as system:
            return system.has_power()

    def test(self, lane: str, deadline: Deadline) -> None:
        """Whether a Redfish controller answers, without a login. Raises LaneError, BadInput."""
        place = lane.removeprefix("redfish:")
        if place == lane or not _URL.fullmatch(f"https://{place}"):
            raise BadInput.value("lane", lane, "redfish:HOST:PORT")
        problem = ""
        # The lane does not say which of the two it is.
        for number, scheme in enumerate(("https", "http")):
            part = deadline.within(deadline.remaining() / (2 - number))
            with httpio.session(part) as session:
                try:
                    answer = session.get(f"{scheme}://{place}/redfish/v1/", verify=False)
                    if answer.status_code in (401, 403) or (answer.ok and isinstance(answer.json(), dict)):
                        return
                    problem = f"answered {answer.status_code}, but no Redfish root"
                except (ValueError, RecursionError):
                    problem = "answered no JSON"
                except httpio.CallError as e:
                    problem = str(e)
        raise LaneError(lane, "communication test", problem, culprit=_culprit(place))

    def _switch(self, system: _System, deadline: Deadline, *, power: bool) -> None:
        """Switch, unless it is so already, and wait until the controller says so. Raises HardwareError."""
        if system.has_power() is power:
            return
        system.reset("On" if power else "ForceOff")
        # A tenth is left for the logout.
        patience = deadline.within(0.9 * deadline.remaining())
        while True:
            try:
                if system.has_power() is power:
                    return
            except Exception:
                if not deadline.expired:
                    raise
            if patience.expired:
                raise system.failed(f"its power is not {_word(power)} {deadline.seconds:.3g} s after it was asked")
            self._clock.sleep(patience.remaining(self._poll))

    @contextmanager
    def _system(self, device: Target, operation: str, deadline: Deadline) -> Iterator[_System]:
        """The device's system, with a login that ends with it; the controller's failures leave as LaneError."""
        url, path = _options(device, operation)
        if not self._user:
            raise HardwareError(device.name, operation, "[bmm] redfish_user is not set")
        system = _System(device.name, operation)
        auth = sushy.auth.SessionOrBasicAuth(self._user, self._password)
        connector = sushy.connector.Connector(url, verify=self._verify)
        connector._session.close()
        connector._session = httpio.session(deadline)
        try:
            try:
                system.connect(sushy.Sushy(url, auth=auth, connector=connector), path)
                yield system
            finally:
                # Also when the operation failed; a controller that is silent has used up the deadline.
                with suppress(Exception):
                    auth.close()
                with suppress(AttributeError):  # it never came to a login
                    auth.reset_session_attrs()  # else sushy would try again when it is garbage-collected
                connector.close()
        except HardwareError as e:
            raise HardwareError(e.device, e.operation, self._scrubbed(e.reason)) from None
        except Exception as e:
            # Not sushy's errors alone: what a controller sends makes it raise KeyError, TypeError and others.
            reason = self._scrubbed(_reason(e)) + system.aftermath
            if isinstance(e, _OF_THE_DEVICE):
                raise HardwareError(device.name, operation, reason) from None
            raise LaneError(device.name, operation, reason, culprit=_culprit(_place(url))) from None

    def _scrubbed(self, text: str) -> str:
        """Without the password, which a controller might send back in its errors."""
        return text.replace(self._password, "***") if self._password else text


class _System:
    """One computer system of a controller. What sushy raises leaves as it is."""

    def __init__(self, device: str, operation: str) -> None:
        self._device = device
        self._operation = operation
        self._system: Any = None
        self.aftermath = ""
        """What a failure from here on leaves behind, for the end of its message."""

    def connect(self, root: Any, path: str | None) -> None:
        self._system = root.get_system(path)

    def has_power(self) -> bool | None:
        self._system.refresh(force=True)
        return {sushy.PowerState.ON: True, sushy.PowerState.OFF: False}.get(self._system.power_state)

    def reset(self, kind: str) -> None:
        self._system.reset_system(sushy.ResetType(kind))

    def failed(self, reason: str) -> HardwareError:
        return HardwareError(self._device, self._operation, reason + self.aftermath)


_OF_THE_DEVICE = (
    sushy.exceptions.InvalidParameterValueError,
    sushy.exceptions.MissingActionError,
    sushy.exceptions.ResourceNotFoundError,
    sushy.exceptions.UnknownDefaultError,
    sushy.exceptions.BadRequestError,
)
"""Errors that blame the device's options, or its own system, and not the controller."""


def _reason(error: Exception) -> str:
    cause = error.__context__
    if isinstance(error, sushy.exceptions.AccessError):
        return "refuses the login of [bmm] redfish_user"
    if isinstance(error, sushy.exceptions.ConnectionError) and isinstance(cause, httpio.CallError):
        return str(cause)
    if isinstance(error, sushy.exceptions.SushyError):
        text = "".join(letter if letter.isprintable() else " " for letter in str(error))
        return text if len(text) <= 200 else f"{text[:197]}..."
    return f"what it answered is not Redfish ({type(error).__name__})"


def _options(device: Target, operation: str) -> tuple[str, str | None]:
    """The controller's URL, without a slash at the end, and the system's path there. Raises HardwareError."""
    url = device.options.get("redfish")
    if url is None:
        raise HardwareError(device.name, operation, "it has no option redfish")
    match = _URL.fullmatch(url)
    if match is None or not 1 <= int(match["port"] or 443) <= 65535:
        # A user name or password in it must not show.
        shown = repr(re.sub(r"//.*@", "//***@", url)[:80])
        expected = "a controller's URL such as https://bmc-1.example.com (no user, no path)"
        raise HardwareError(device.name, operation, f"its option redfish, {shown}, is not {expected}")
    path = device.options.get("system")
    if path is not None and not _SYSTEM.fullmatch(path):
        reason = f"its option system, {path[:80]!r}, is not a path such as /redfish/v1/Systems/1"
        raise HardwareError(device.name, operation, reason)
    return url.rstrip("/").lower(), path


def _place(url: str) -> str:
    """``HOST:PORT`` of a URL."""
    parts = urlsplit(url)
    default = 443 if parts.scheme == "https" else 80
    return parts.netloc if parts.port else f"{parts.netloc}:{default}"


def _culprit(place: str) -> str:
    return f"Redfish controller {place}"


def _word(power: bool) -> str:
    return "on" if power else "off"
