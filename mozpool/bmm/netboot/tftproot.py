# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What boards find in the TFTP tree besides their own files: the boot loader, and what is booted by default."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from mozpool.bmm.backends.pxe import DIRECTORY
from mozpool.bmm.files import put
from mozpool.errors import MozpoolError

log = logging.getLogger("mozpool.netboot")

DEFAULT = """\
# Boards without a file of their own boot from their own storage. Mozpool never changes this file.
DEFAULT local
PROMPT 0
LABEL local
 LOCALBOOT -1
"""
"""``pxelinux.cfg/default``. Without it, a board that has no file of its own stops at an error."""


@dataclass(frozen=True)
class Package:
    """Where a Debian package has files for boards."""

    name: str
    directory: str
    """Below the root directory."""
    pattern: str
    needed: str
    """The file that is always among them."""

    def files(self, system: Path) -> list[Path]:
        """The files of this package that are installed."""
        return sorted(path for path in (system / self.directory).glob(self.pattern) if path.is_file())


_MODULES = Package("syslinux-common", "usr/lib/syslinux/modules/bios", "*.c32", "ldlinux.c32")
PACKAGES = {
    "lpxelinux": (Package("pxelinux", "usr/lib/PXELINUX", "lpxelinux.0", "lpxelinux.0"), _MODULES),
    "pxelinux": (Package("pxelinux", "usr/lib/PXELINUX", "pxelinux.0", "pxelinux.0"), _MODULES),
    "ipxe": (Package("ipxe", "usr/lib/ipxe", "undionly.kpxe", "undionly.kpxe"),),
}
"""What each boot loader needs. The modules belong to their boot loader's version: all are copied with it."""


def missing(root: Path, boot_loader: str) -> list[str]:
    """A sentence for everything that boards would not find in the TFTP tree ``root``."""
    if not root.is_dir():
        return [f"[paths] tftp_root: there is no directory {root}"]
    found = []
    for package in PACKAGES[boot_loader]:
        if not (root / package.needed).is_file():
            found.append(f"{root / package.needed} is missing (Debian package {package.name})")
    if not (root / DIRECTORY / "default").is_file():
        found.append(f"{root / DIRECTORY}/default is missing: boards without a file of their own stop at an error")
    return found


def prepare(root: Path, boot_loader: str, *, system: Path = Path("/")) -> list[Path]:
    """Fill the TFTP tree ``root`` with the boot loader of the packages that are installed below ``system``.

    What is there already and equal is left alone, and so is ``pxelinux.cfg/default`` whatever it says. A boot loader
    that was put there by hand needs no package; one of another version that may not be replaced is only logged.
    Returns what was written.

    Raises MozpoolError that names the missing packages, the missing directory, or what can't be written.
    """
    if not root.is_dir():
        raise MozpoolError(f"[paths] tftp_root: there is no directory {root}")
    absent = [
        package
        for package in PACKAGES[boot_loader]
        if not (root / package.needed).is_file() and not (system / package.directory / package.needed).is_file()
    ]
    if absent:
        names = " ".join(package.name for package in absent)
        files = ", ".join(f"/{package.directory}/{package.needed}" for package in absent)
        raise MozpoolError(f"the boot loader {boot_loader} needs {files} (apt-get install {names})")
    contents = {root / source.name: source for package in PACKAGES[boot_loader] for source in package.files(system)}
    written = []
    try:
        (root / DIRECTORY).mkdir(exist_ok=True)
        written += [target for target, source in contents.items() if _copy(source, target)]
        default = root / DIRECTORY / "default"
        if not default.exists():
            put(default, DEFAULT.encode())
            written.append(default)
    except OSError as error:
        raise MozpoolError(f"{root} can't be filled: {error.filename}: {error.strerror}") from error
    return written


def _copy(source: Path, target: Path) -> bool:
    """Let ``target`` be a copy of ``source``; whether it had to be written. Raises OSError."""
    try:
        return put(target, source.read_bytes())
    except PermissionError as error:
        if not target.is_file():
            raise
        log.warning("%s is not that of the installed package, and can't be replaced: %s", target, error.strerror)
        return False
