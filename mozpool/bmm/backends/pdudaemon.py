# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Power sockets of the PDUs that pdudaemon drives: SNMP ones, and some fifty kinds more.

pdudaemon's HTTP interface has three calls, ``GET /power/control/{on,off,reboot}?hostname=PDU&port=SOCKET``, and
answers when the PDU has done it: 200 ``OK - accepted request``, or 500 ``Invalid request`` for a PDU that is not in
its configuration as well as for one that did not obey (after its own ``retries``). It has no call that reads a socket.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import requests

from mozpool.bmm import httpio
from mozpool.bmm.interfaces import BackendContext, Power, Target
from mozpool.clock import Deadline
from mozpool.errors import BadInput, HardwareError, LaneError

OFF_TIME = 1.0
"""Seconds that a device stays without power in a power cycle; pdudaemon counts whole ones."""

# pdudaemon puts these into the command lines and URLs of its drivers, some of which run a shell.
_PDU = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,254}")
_PORT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}")
_DONE = "OK"


class PDUDaemonPower(Power):
    """Switches the socket that the options ``pdu`` and ``port`` name, through the daemon of ``[bmm] pdudaemon``.

    A power cycle is one call, ``reboot``: pdudaemon itself waits between off and on and goes on when this server
    goes away, so that no device stays without power because of us.
    """

    def __init__(self, context: BackendContext) -> None:
        self._url = context.settings.pdudaemon.rstrip("/")
        parts = urlsplit(self._url)
        # As it is shown: the URL may hold a password for a proxy in front of the daemon.
        self._shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
        self._off_time = round(OFF_TIME / context.speed)

    def lane(self, device: Target) -> str:
        """``pdudaemon:URL:PDU``. Raises HardwareError without usable options."""
        pdu, _ = _socket(device, "power control")
        return f"{self._lane_prefix}{pdu}"

    def power_cycle(self, device: Target, deadline: Deadline) -> None:
        """Off, a pause and on by one call. Raises HardwareError, LaneError."""
        self._switch(device, "power cycle", "reboot", deadline)

    def power_off(self, device: Target, deadline: Deadline) -> None:
        """Cut the power. Raises HardwareError, LaneError."""
        self._switch(device, "power off", "off", deadline)

    def power_on(self, device: Target, deadline: Deadline) -> None:
        """Restore the power. Raises HardwareError, LaneError."""
        self._switch(device, "power on", "on", deadline)

    def is_on(self, device: Target, deadline: Deadline) -> None:
        """None: pdudaemon can't tell. Raises HardwareError without usable options."""
        _socket(device, "power status")

    def test(self, lane: str, deadline: Deadline) -> None:
        """Whether a web server answers there; the PDU itself can't be asked. Raises LaneError, BadInput."""
        pdu = lane.removeprefix(self._lane_prefix)
        if pdu == lane or not _PDU.fullmatch(pdu):
            raise BadInput.value("lane", lane, f"{self._lane_prefix}PDU")
        status, _ = self._get("/", {}, lane, "communication test", pdu, deadline)
        if status >= 500:
            raise LaneError(lane, "communication test", f"answered {status}", culprit=self._culprit(pdu))

    @property
    def _lane_prefix(self) -> str:
        return f"pdudaemon:{self._shown}:"

    def _culprit(self, pdu: str) -> str:
        return f"PDU {pdu} of pdudaemon at {self._shown}"

    def _switch(self, device: Target, operation: str, request: str, deadline: Deadline) -> None:
        pdu, port = _socket(device, operation)
        query = {"hostname": pdu, "port": port}
        if request == "reboot":
            query["delay"] = str(self._off_time)
        status, text = self._get(f"/power/control/{request}", query, device.name, operation, pdu, deadline)
        if status == 200 and text.startswith(_DONE):
            return
        reason = f"answered {status} {text[:80]!r}"
        if status >= 500:
            reason += f": it does not know the PDU, or the PDU did not switch port {port}"
        elif status == 200:
            reason += f" where {_DONE} was expected"
        raise LaneError(device.name, operation, reason, culprit=self._culprit(pdu))

    def _get(
        self, path: str, query: dict[str, str], device: str, operation: str, pdu: str, deadline: Deadline
    ) -> tuple[int, str]:
        """Status and text of an answer. Raises LaneError when there is none."""
        with httpio.session(deadline) as session:
            try:
                answer = session.get(f"{self._url}{path}", params=query)
            except requests.RequestException as e:
                reason = str(e) if isinstance(e, httpio.CallError) else "its URL is not right"
                if operation in ("power cycle", "power off"):
                    reason += "; the device may be without power"
                raise LaneError(device, operation, reason, culprit=self._culprit(pdu)) from None
            return answer.status_code, answer.content[:200].decode(errors="replace").strip()


def _socket(device: Target, operation: str) -> tuple[str, str]:
    """The device's PDU and the port there. Raises HardwareError."""
    found = []
    for option, pattern in (("pdu", _PDU), ("port", _PORT)):
        value = device.options.get(option)
        if value is None:
            raise HardwareError(device.name, operation, f"it has no option {option}")
        if not pattern.fullmatch(value):
            shown = repr(value[:80])
            reason = f"its option {option}, {shown}, is not a name of letters, digits and . _ : -"
            raise HardwareError(device.name, operation, reason)
        found.append(value)
    return found[0], found[1]
