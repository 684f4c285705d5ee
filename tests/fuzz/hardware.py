# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What hardware answers: relay boards, PDUs, Redfish controllers, agents, and the programs that stand for hardware."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mozpool.bmm.backends.adb import AdbAgent, AdbProbe
from mozpool.bmm.backends.command import CommandPower
from mozpool.bmm.backends.fping import FpingProbe
from mozpool.bmm.backends.pdudaemon import PDUDaemonPower
from mozpool.bmm.backends.proxr import ProXRPower
from mozpool.bmm.backends.redfish import RedfishPower
from mozpool.bmm.backends.sut import SUTAgent
from mozpool.bmm.interfaces import Agent, BackendContext, CommandResult, Power, Target
from mozpool.clock import Deadline
from mozpool.config import BMM
from mozpool.errors import HardwareError
from tests.fuzz.engine import Target as Fuzzed
from tests.fuzz.engine import fuzzer
from tests.fuzz.peers import SEPARATOR, HastyClock, Peer

QUICK = 1e6
"""Pauses divided by this are none."""

ENOUGH = 20.0


def context(**settings: Any) -> BackendContext:
    return BackendContext(HastyClock(), tftp_root=None, speed=QUICK, settings=BMM(**settings))


def joined(operation: int, *answers: bytes) -> bytes:
    """An input: which operation it is, and what its peer answers."""
    return bytes((operation,)) + SEPARATOR.join(answers)


def chosen(data: bytes, operations: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    return operations[(data[0] if data else 0) % len(operations)]


def power_operations(power: Power, device: Target, lane: str) -> list[Callable[[], Any]]:
    def limit() -> Deadline:
        return Deadline(HastyClock(), ENOUGH)

    return [
        lambda: power.power_cycle(device, limit()),
        lambda: power.power_off(device, limit()),
        lambda: power.power_on(device, limit()),
        lambda: power.is_on(device, limit()),
        lambda: power.test(lane, limit()),
    ]


def agent_operations(agent: Agent, device: Target) -> list[Callable[[], Any]]:
    def limit() -> Deadline:
        return Deadline(HastyClock(), ENOUGH)

    def run() -> None:
        assert isinstance(agent.run(device, ["ls", "-l", "/"], limit()), CommandResult)

    def uptime() -> None:
        found = agent.uptime(device, limit())
        assert found is None or 0 <= found < float("inf")

    return [
        lambda: agent.verify(device, limit()),
        lambda: agent.check_storage(device, limit()),
        lambda: agent.reboot(device, limit()),
        uptime,
        run,
    ]


@fuzzer(
    seeds=[
        joined(0, b"\x55", b"\x01", b"\x55", b"\x00"),
        joined(1, b"\x55", b"\x01"),
        joined(2, b"\x55", b"\x00"),
        joined(3, b"\x00"),
        joined(4, b"\x55"),
    ],
    raises=(HardwareError,),
)
def relay_board() -> Iterator[Fuzzed]:
    """A ProXR relay board."""
    with Peer() as peer:
        power = ProXRPower(context())
        relay = f"127.0.0.1:{peer.port}"
        device = Target("d1", "127.0.0.1", "0" * 12, relay_info=f"{relay}:bank1:relay3")
        operations = power_operations(power, device, f"relay:{relay}")

        def one(data: bytes) -> None:
            peer.says(data[1:])
            chosen(data, operations)()

        yield one


@fuzzer(
    seeds=[
        joined(0, b"OK - accepted request: reboot pdu1:3"),
        joined(1, b"OK"),
        joined(2, b"500 Invalid request"),
        joined(4, b"404 <html>no such page</html>"),
    ],
    raises=(HardwareError,),
)
def pdudaemon() -> Iterator[Fuzzed]:
    """pdudaemon's answers."""
    with Peer(http=True) as peer:
        url = f"http://127.0.0.1:{peer.port}"
        power = PDUDaemonPower(context(pdudaemon=url))
        device = Target("d1", "127.0.0.1", "0" * 12, options={"pdu": "pdu1", "port": "3"})
        operations = power_operations(power, device, f"pdudaemon:{url}:pdu1")

        def one(data: bytes) -> None:
            peer.says(data[1:])
            chosen(data, operations)()

        yield one


ROOT = {
    "@odata.type": "#ServiceRoot.v1_5_0.ServiceRoot",
    "@odata.id": "/redfish/v1/",
    "Id": "RedvirtService",
    "Name": "Redvirt Service",
    "RedfishVersion": "1.5.0",
    "UUID": "85775665-c110-4b85-8989-e6162170b3ec",
    "Systems": {"@odata.id": "/redfish/v1/Systems"},
    "SessionService": {"@odata.id": "/redfish/v1/SessionService"},
    "Links": {"Sessions": {"@odata.id": "/redfish/v1/SessionService/Sessions"}},
}
LOGIN = (
    b"HTTP/1.1 201 Created\r\nX-Auth-Token: 94ff7a\r\nLocation: /redfish/v1/SessionService/Sessions/1\r\n"
    b"Content-Length: 2\r\n\r\n{}"
)


def system(power: str) -> dict[str, Any]:
    return {
        "@odata.type": "#ComputerSystem.v1_1_0.ComputerSystem",
        "@odata.id": "/redfish/v1/Systems/1",
        "Id": "1",
        "Name": "board",
        "UUID": "38947555-7742-3448-3784-823347823834",
        "PowerState": power,
        "Status": {"State": "Enabled", "Health": "OK"},
        "SystemType": "Physical",
        "Links": {"Chassis": [], "ManagedBy": []},
        "Boot": {"BootSourceOverrideEnabled": "Once", "BootSourceOverrideTarget": "Pxe"},
        "Actions": {
            "#ComputerSystem.Reset": {
                "target": "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset",
                "ResetType@Redfish.AllowableValues": ["On", "ForceOff", "ForceRestart"],
            }
        },
    }


def text(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _redfish(operation: int, *states: str) -> bytes:
    """What a controller says; an empty state is the answer to a reset, and so is the end to the logout."""
    said = [text(system(state)) if state else b"204 " for state in states]
    return joined(operation, text(ROOT), LOGIN, *said, b"204 ")


REDFISH_ERROR = text({"error": {"code": "Base.1.0.GeneralError", "message": "no", "@Message.ExtendedInfo": [{}]}})


@fuzzer(
    seeds=[
        _redfish(0, "On", "On", "", "Off", "Off", "", "On"),
        _redfish(1, "On", "On", "", "Off"),
        _redfish(2, "Off", "Off", "", "PoweringOn", "On"),
        _redfish(3, "On", "On"),
        joined(3, text(ROOT), b"401 " + REDFISH_ERROR),
        joined(3, text(ROOT), LOGIN, b"503 " + REDFISH_ERROR),
        joined(4, b"not https", text(ROOT)),
    ],
    raises=(HardwareError,),
    seconds=5.0,
)
def redfish() -> Iterator[Fuzzed]:
    """A Redfish controller's answers."""
    with Peer(http=True) as peer:
        power = RedfishPower(context(redfish_user="u", redfish_password="secret", redfish_verify=False))
        place = f"127.0.0.1:{peer.port}"
        options = {"redfish": f"http://{place}", "system": "/redfish/v1/Systems/1"}
        operations = power_operations(power, Target("d1", "127.0.0.1", "0" * 12, options=options), f"redfish:{place}")

        def one(data: bytes) -> None:
            peer.says(data[1:])
            chosen(data, operations)()

        yield one


PROMPT = b"$>\0"


@fuzzer(
    seeds=[
        joined(0, PROMPT, b"/mnt/sdcard/tests\n" + PROMPT, b"SUTAgentAndroid Version 1.20\n" + PROMPT),
        joined(
            1,
            *(PROMPT, b"/mnt/sdcard\n" + PROMPT, PROMPT, b"created\n" + PROMPT, b"TRUE\n" + PROMPT),
            *(b"7bc4ad6a6c3d2a53e3b7a1a3b1ea2f5f\n" + PROMPT, b"Deleting file(s)\n" + PROMPT),
        ),
        joined(2, PROMPT, b"##AGENT-WARNING## no\n" + PROMPT),
        joined(3, PROMPT, b"0 days 0 hours 5 minutes 12 seconds 33 ms\n" + PROMPT),
        joined(3, PROMPT, b" 10:12:13 up 3 days,  2:05,  1 user,  load average: 0.01\n" + PROMPT),
        joined(4, PROMPT, b"total 0\nreturn code [0]\n" + PROMPT),
        joined(4, PROMPT, b"tot", b"al\n", PROMPT),
    ],
    raises=(HardwareError,),
)
def sut_agent() -> Iterator[Fuzzed]:
    """SUTAgent's prompts and answers."""
    with Peer(speaks_first=True) as peer:
        device = Target("d1", "127.0.0.1", "0" * 12, options={"sut_port": str(peer.port)})
        operations = agent_operations(SUTAgent(context()), device)

        def one(data: bytes) -> None:
            peer.says(data[1:])
            chosen(data, operations)()

        yield one


def _adb(word: str) -> bytes:
    return b"%04x" % len(word) + word.encode()


ONLINE = b"OKAY" + _adb("127.0.0.1:5555\tdevice\n")
FEATURES = b"OKAY" + _adb("shell_v2,cmd,stat_v2")
OLD_FEATURES = b"OKAY" + _adb("cmd")


VERSION = b"OKAY00040029"
CHOSEN = b"OKAY12345678"
"""A device, by the number of its transport."""


def _shell(output: bytes, code: int) -> list[bytes]:
    """A device is chosen, and prints something by the shell protocol."""
    packets = (
        b"\x01" + len(output).to_bytes(4, "little") + output + b"\x03" + (1).to_bytes(4, "little") + bytes((code,))
    )
    return [FEATURES, VERSION, CHOSEN, b"OKAY" + packets]


@fuzzer(
    seeds=[
        joined(0, ONLINE, *_shell(b"0123456789abcdef\n", 0), *_shell(b"google/panda\n", 0)),
        joined(1, ONLINE, *_shell(b"", 0), *_shell(b"", 0), *_shell(b"x", 0)),
        joined(2, ONLINE, VERSION, CHOSEN, b"OKAY"),
        joined(3, ONLINE, *_shell(b"350.71 234.02\n", 0)),
        joined(4, ONLINE, *_shell(b"total 0\n", 1)),
        joined(4, ONLINE, OLD_FEATURES, VERSION, CHOSEN, b"OKAYtotal 0\nX4EXIT:0\n"),
        joined(5, ONLINE, *_shell(b"0123456789abcdef\n", 0)),
        joined(5, b"OKAY0000", b"OKAY" + _adb("connected to 127.0.0.1:5555"), b"OKAY0000", b"OKAY0000"),
        joined(5, b"FAIL" + _adb("device unauthorized")),
    ],
    raises=(HardwareError,),
)
def adb_server() -> Iterator[Fuzzed]:
    """The adb server's answers, and devices' behind it."""
    with Peer() as peer:
        made = context(adb_server=f"127.0.0.1:{peer.port}")
        device = Target("d1", "127.0.0.1", "0" * 12)
        probe = AdbProbe(made)
        operations = [
            *agent_operations(AdbAgent(made), device),
            lambda: probe.ping(device, Deadline(HastyClock(), ENOUGH)),
        ]

        def one(data: bytes) -> None:
            peer.says(data[1:])
            chosen(data, operations)()

        yield one


@fuzzer(seeds=[b"\0on\n", b"\0OFF", b"\1", b"\2cannot reach the switch\n"], raises=(HardwareError,))
def programs() -> Iterator[Fuzzed]:
    """What fping and the programs of ``[commands]`` print, and how they end."""
    with tempfile.TemporaryDirectory() as directory:
        said, script = Path(directory) / "said", Path(directory) / "program"
        # The first byte is the exit status, and the rest is printed.
        shown = f"tail -c +2 {shlex.quote(str(said))}"
        script.write_text(f"#!/bin/sh\n{shown}; {shown} >&2\nexit $(head -c1 {said} | od -An -tu1)\n")
        script.chmod(0o755)
        made = context(fping=str(script))
        power = CommandPower(
            BackendContext(
                HastyClock(), None, QUICK, commands={f"x.{each}": (str(script),) for each in ("on", "off", "status")}
            )
        )
        device = Target("d1", "127.0.0.1", "0" * 12, options={"command": "x"})
        probe = FpingProbe(made)
        operations = [
            lambda: power.is_on(device, Deadline(HastyClock(), ENOUGH)),
            lambda: probe.ping(device, Deadline(HastyClock(), ENOUGH)),
        ]

        def one(data: bytes) -> None:
            said.write_bytes(data)
            operations[len(data) % 2]()

        yield one
