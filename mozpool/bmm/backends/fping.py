# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Pings by the program ``fping``, which may send ICMP where this process may not."""

from __future__ import annotations

import shutil
import subprocess

from mozpool.bmm.interfaces import BackendContext, Probe, Target
from mozpool.bmm.program import environment
from mozpool.clock import Deadline
from mozpool.errors import HardwareError

PATIENCE = 0.5
"""Seconds that a device has to answer."""

_TROUBLE = {
    2: "the name is not known",
    3: "fping does not know its arguments",
    4: "fping could not send",
}
"""fping's exit codes that say nothing about the device; 0 is reachable, 1 is not."""


class FpingProbe(Probe):
    """One ICMP echo request a ping."""

    def __init__(self, context: BackendContext) -> None:
        program = context.settings.fping
        self._program = shutil.which(program)
        where = "cannot be run" if "/" in program else "is not on PATH"
        self._missing = f"the program {program} {where} (Debian package fping)"

    def ping(self, device: Target, deadline: Deadline) -> bool:
        """Whether the device answers within half a second. Raises HardwareError when it can't be asked."""
        if self._program is None:
            raise HardwareError(device.name, "ping", self._missing)
        # Near the deadline the device gets less time, so that fping can still say what it found.
        milliseconds = max(1, round(min(PATIENCE, 0.8 * deadline.remaining()) * 1000))
        # "--": an address from the inventory that begins with a dash stays an address.
        command = [self._program, "-q", "-r", "0", "-t", str(milliseconds), "--", device.address]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=deadline.remaining(),
                env=environment({}),
                check=False,
            )
        except subprocess.TimeoutExpired:
            reason = f"fping was not done within {deadline.seconds:.3g} s (asking for the address {device.address!r})"
            raise HardwareError(device.name, "ping", reason) from None
        except FileNotFoundError:
            raise HardwareError(device.name, "ping", self._missing) from None
        except (OSError, ValueError) as e:
            raise HardwareError(device.name, "ping", f"cannot run fping: {e}") from e
        if done.returncode in (0, 1):
            return done.returncode == 0
        trouble = _TROUBLE.get(done.returncode, f"fping ended with status {done.returncode}")
        words = done.stderr.decode(errors="replace").strip()
        raise HardwareError(device.name, "ping", f"{trouble}: {words or device.address}")
