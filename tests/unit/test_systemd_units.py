# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The units of scripts/systemd: what a service that was broken into can't do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.processes import needs

UNITS = sorted((Path(__file__).parents[2] / "scripts" / "systemd").glob("*.service"))

WANTED = {
    "User": "mozpool",
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateMounts": "yes",
    "PrivateDevices": "yes",
    "ProtectClock": "yes",
    "ProtectControlGroups": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectProc": "invisible",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "RemoveIPC": "yes",
    "KeyringMode": "private",
    "LockPersonality": "yes",
    "SystemCallArchitectures": "native",
    "SystemCallFilter": "@system-service",
}

CAPABILITIES = {
    # fping's echo requests
    "mozpool": {"CAP_NET_RAW"},
    # DHCP and TFTP; ARP entries of boards without an address; echo requests before an address is handed out
    "mozpool-netboot": {"CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN", "CAP_NET_RAW"},
    "mld": set(),
}

WRITES = {"mozpool": ["-/srv/tftp"], "mozpool-netboot": [], "mld": []}

LOGS = {"mozpool": ["mozpool"], "mozpool-netboot": [], "mld": ["mozpool"]}
"""Where [auth] audit_log may be, below /var/log."""

MOST_EXPOSED = {"mozpool": 20, "mozpool-netboot": 22, "mld": 18}
"""What systemd itself makes of it, in tenths; 10 would be bare."""


def service(unit: Path) -> dict[str, list[str]]:
    """The section [Service]: all values of each key."""
    found: dict[str, list[str]] = defaultdict(list)
    section = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found[key].append(value)
    return found


def test_there_are_the_units_that_are_looked_at() -> None:
    assert {unit.stem for unit in UNITS} == CAPABILITIES.keys()


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.stem))
def test_a_service_may_do_what_it_needs_and_no_more(unit: Path) -> None:
    said = service(unit)
    assert {key: said[key] for key in WANTED} == {key: [value] for key, value in WANTED.items()}
    for key in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert set(" ".join(said[key]).split()) == CAPABILITIES[unit.stem], key
    families = {"AF_UNIX", "AF_INET", "AF_INET6"} | (set() if unit.stem == "mld" else {"AF_NETLINK"})
    assert set(" ".join(said["RestrictAddressFamilies"]).split()) == families
    assert said["ReadWritePaths"] == WRITES[unit.stem]
    assert said["LogsDirectory"] == LOGS[unit.stem]
    assert said["LogsDirectoryMode"] == ["0750" for _ in LOGS[unit.stem]]
    assert int(said["UMask"][0], 8) & 0o022 == 0o022
    # hyperexecute may make code while it runs; nothing else does.
    assert said["MemoryDenyWriteExecute"] == ([] if unit.stem == "mld" else ["yes"])
    # What is secret stands in files that only root or the service may read, not where everybody may look.
    assert not [line for line in said["Environment"] if "PASSWORD" in line or "KEY" in line or "TOKEN" in line]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.stem))
def test_systemd_thinks_so_too(unit: Path) -> None:
    needs(None if shutil.which("systemd-analyze") else "systemd-analyze is missing")
    done = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={MOST_EXPOSED[unit.stem]}", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [line for line in done.stderr.splitlines() if "Unknown" in line or "Failed to parse" in line]


WITHOUT_WRITTEN_CODE = """
import ctypes, mmap, sys
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
if ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
    sys.exit(77)
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
except PermissionError:
    pass
else:
    sys.exit("it is not refused")
import mozpool.cli.server, mozpool.cli.netboot, mozpool.web.oidc
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey
for key, algorithm in ((RSAKey.generate_key(2048), "RS256"), (ECKey.generate_key("P-256"), "ES256")):
    jwt.decode(jwt.encode({"alg": algorithm}, {"sub": "7"}, key), key)
"""
"""Loads all that the daemon does, and checks ID tokens, in a process that may not run what it has written."""


def test_no_library_needs_what_memorydenywriteexecute_refuses() -> None:
    """The kernel's own means (prctl(2), PR_SET_MDWE, Linux 6.3) in place of systemd's filter of system calls."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_WRITTEN_CODE], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this kernel does not know PR_SET_MDWE")
    assert done.returncode == 0, done.stderr
