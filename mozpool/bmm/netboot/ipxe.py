# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""PXE configurations as iPXE scripts, for boards whose boot loader is iPXE."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import quote

from mozpool.errors import BadInput, Unprocessable

OWN_STORAGE = "#!ipxe\nsanboot --no-describe --drive 0x80 || exit\n"
"""Boot from the first disk; where that fails, let the firmware go on."""

_COSMETIC = re.compile(
    "allowoptions|console|display|endtext|f[0-9]{1,2}|font|implicit|kbdmap|menu|nohalt|noescape|prompt|say|serial|"
    "timeout|totaltimeout|ui"
)
"""Statements about what a person sees and may choose: the default label is booted whatever they say."""

_NO_LINUX = re.compile(r"\.(0|bin|bs|bss|c32|cbt|com|img)$", re.I)
"""The names of files that ``KERNEL``, unlike ``LINUX``, takes for something else."""

_OPERATORS = frozenset({"||", "&&", ";"})


@dataclass
class _Label:
    """What a label, or the part before the first one, says."""

    kernel: str | None = None
    initrds: list[str] | None = None
    append: str | None = None
    ipappend: int | None = None
    own_storage: bool = False
    problems: list[str] = field(default_factory=list)


def mac_of(text: str) -> str:
    """The twelve lower-case hex digits of a MAC address in any usual spelling. Raises BadInput."""
    digits = re.sub(r"[:.-]", "", text).lower()
    if not re.fullmatch(r"[0-9a-f]{12}", digits) or len(text) > 17:
        raise BadInput.value("mac", text, "a MAC address such as aa-bb-cc-dd-ee-ff")
    return digits


def script(config: str, mac: str, server: str) -> str:
    """The iPXE script that does what a PXE configuration says to the board with this MAC (twelve hex digits).

    A configuration that is an iPXE script already is left as it is. Otherwise the default label is translated:
    ``KERNEL`` or ``LINUX``, ``INITRD``, ``APPEND``, ``IPAPPEND`` and ``LOCALBOOT``; files without a URL come from
    ``server`` (an address) by TFTP.

    Raises Unprocessable that says what can't be translated.
    """
    if config.startswith("#!ipxe"):
        return config
    chosen = _default_label(config)
    if chosen.problems:
        raise _cannot(chosen.problems[0])
    if chosen.own_storage:
        return OWN_STORAGE
    if chosen.kernel is None:
        raise _cannot("its default label has neither KERNEL nor LINUX")
    words = [] if chosen.append in (None, "-") else str(chosen.append).split()
    initrds = [word.partition("=")[2] for word in words if word.startswith("initrd=")]
    words = [word for word in words if not word.startswith("initrd=")]
    if chosen.initrds is not None:
        initrds = chosen.initrds
    elif initrds:
        initrds = initrds[-1].split(",")
    words += _ip_words(chosen.ipappend or 0, mac, server)
    for word in words:
        if word in _OPERATORS or word.startswith("#"):
            raise _cannot(f"APPEND has the word {word}, which iPXE would not pass on")
    lines = [" ".join(["kernel", _url(chosen.kernel, server), *words])]
    lines += [f"initrd {_url(initrd, server)}" for initrd in initrds if initrd]
    return "\n".join(["#!ipxe", *lines, "boot", ""])


def _default_label(config: str) -> _Label:
    """The label that is booted when nobody chooses another one, completed by what stands before the first label."""
    before = _Label()
    labels: dict[str, _Label] = {}
    current = before
    default: str | None = None
    in_text = False
    for line in config.splitlines():
        keyword, _, value = line.strip().replace("\t", " ").partition(" ")
        keyword, value = keyword.lower(), value.strip()
        if in_text:
            in_text = keyword != "endtext"
        elif not keyword or keyword.startswith("#"):
            pass
        elif keyword == "text":
            in_text = value.lower().startswith("help")
        elif keyword == "default":
            default = value
        elif keyword == "label":
            current = labels.setdefault(value.lower(), _Label())
        else:
            _statement(current, keyword, value)
    if before.problems:
        raise _cannot(before.problems[0])
    if not default:
        raise _cannot("it has no DEFAULT")
    chosen = labels.get(default.lower())
    if chosen is None:
        raise _cannot(f"its DEFAULT is {default}, but it has no such LABEL")
    if chosen.append is None:
        chosen.append = before.append
    if chosen.ipappend is None:
        chosen.ipappend = before.ipappend
    return chosen


def _statement(label: _Label, keyword: str, value: str) -> None:
    if "${" in value:
        label.problems.append(f"{keyword.upper()} contains ${{, which iPXE would replace")
    elif keyword in ("kernel", "linux"):
        label.kernel = value
        if keyword == "kernel" and _NO_LINUX.search(value):
            label.problems.append(f"{value} is no Linux kernel")
    elif keyword == "initrd":
        label.initrds = value.split(",")
    elif keyword == "append":
        label.append = value
    elif keyword in ("ipappend", "sysappend"):
        if value not in ("0", "1", "2", "3"):
            label.problems.append(f"{keyword.upper()} {value}: only 0 to 3 are known")
        else:
            label.ipappend = int(value)
    elif keyword == "localboot":
        label.own_storage = True
    elif not _COSMETIC.fullmatch(keyword):
        label.problems.append(f"{keyword.upper()} is not known")


def _ip_words(flags: int, mac: str, server: str) -> Iterable[str]:
    """What ``IPAPPEND`` adds: 1 the network as ``ip=``, 2 the interface as ``BOOTIF=`` (ARP type 01 and MAC)."""
    if flags & 1:
        yield f"ip=${{netX/ip}}:{server}:${{netX/gateway}}:${{netX/netmask}}"
    if flags & 2:
        yield "BOOTIF=" + "-".join(["01", *(mac[i : i + 2] for i in range(0, 12, 2))])


def _url(name: str, server: str) -> str:
    """Where a file of a PXE configuration is: a URL stays, ``HOST::PATH`` and PATH come by TFTP."""
    if re.match(r"(https?|ftp|tftp)://\S+$", name):
        return name
    if not name or re.search(r"\s", name) or "://" in name:
        raise _cannot(f"{name!r} is no file name")
    host, colons, path = name.rpartition("::")
    return f"tftp://{(colons and host) or server}/{quote(path.lstrip('/'))}"


def _cannot(reason: str) -> Unprocessable:
    return Unprocessable(f"the PXE config can't be made an iPXE script: {reason}")
