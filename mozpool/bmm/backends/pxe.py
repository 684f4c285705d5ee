# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Network boot by files on this server's TFTP tree (wire facts: PXE).

A board looks for ``pxelinux.cfg/01-aa-bb-cc-dd-ee-ff``. Where the file exists it boots what the file says,
else it boots from its own storage. The files are on a local disk, so deadlines play no part here.
"""

from __future__ import annotations

import re
from pathlib import Path

from mozpool.bmm.files import put
from mozpool.bmm.interfaces import NO_MAC, BackendContext, Boot, Target
from mozpool.clock import Deadline
from mozpool.errors import HardwareError, OwnFault

DIRECTORY = "pxelinux.cfg"

_MAC = re.compile(r"[0-9a-f]{12}")


TOKEN = "%TOKEN%"  # noqa: S105 - what stands for one  # nosec B105
"""What stands for the token of a device's boot, which its scripts send back with each event."""


def render(config_text: str, *, ip_address: str, url: str, device: str, token: str = TOKEN) -> str:
    """The text of a PXE configuration for a device.

    ``%IPADDRESS%`` becomes the imaging server's address, ``%URL%`` where boards reach its daemon (without a slash at
    the end), ``%DEVICE%`` the device's name, and ``%TOKEN%`` the token of its boot, where one is given. Anything else
    in percent signs is left as it is.
    """
    values = {"%IPADDRESS%": ip_address, "%URL%": url, "%DEVICE%": device, TOKEN: token}
    return re.sub("|".join(values), lambda name: values[name[0]], config_text)


def file_name(mac_address: str) -> str:
    """The name a board with this MAC (twelve hex digits) looks for: ARP type 01, lower case, dashes.

    Raises ValueError for anything else, so that no MAC can name another file.
    """
    mac = mac_address.lower()
    if not _MAC.fullmatch(mac):
        raise ValueError(f"its MAC address {mac_address!r} is not twelve hex digits")
    if mac == NO_MAC:
        raise ValueError("its MAC address is not known")
    return "-".join(["01", *(mac[i : i + 2] for i in range(0, 12, 2))])


class PXEBoot(Boot):
    """Writes and removes the boards' configuration files, each in one step that a TFTP server can't see half done."""

    def __init__(self, context: BackendContext) -> None:
        self._root = Path(context.tftp_root) if context.tftp_root else None

    def set_config(self, device: Target, config: str, deadline: Deadline) -> None:
        """Write the device's file, which gets exactly this text. Raises HardwareError, OwnFault."""
        if self._root is None:
            raise HardwareError(device.name, "network boot", "[paths] tftp_root is not set")
        try:
            path = _path(self._root, device)
            path.parent.mkdir(exist_ok=True)
            put(path, config.encode())
        except ValueError as e:
            raise HardwareError(device.name, "network boot", f"cannot write its PXE file: {e}") from e
        except OSError as e:
            raise OwnFault(device.name, "network boot", f"cannot write its PXE file: {e}") from e

    def clear(self, device: Target, deadline: Deadline) -> None:
        """Remove the device's file. Raises HardwareError, OwnFault.

        Where tftp_root is not set there can be nothing to remove, so every device may be power-cycled.
        """
        if self._root is None or device.mac_address == NO_MAC:
            return
        try:
            _path(self._root, device).unlink(missing_ok=True)
        except ValueError as e:
            raise HardwareError(device.name, "network boot", f"cannot remove its PXE file: {e}") from e
        except OSError as e:
            raise OwnFault(device.name, "network boot", f"cannot remove its PXE file: {e}") from e


def _path(root: Path, device: Target) -> Path:
    """Where the device's file is, proven to be inside ``root`` after following links.

    Raises ValueError when the device can't have one, OSError.
    """
    name = file_name(device.mac_address)
    root = root.resolve(strict=True)
    directory = (root / DIRECTORY).resolve()
    if not directory.is_relative_to(root):
        raise OSError(f"{root / DIRECTORY} leads out of tftp_root, to {directory}")
    return directory / name
