# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What every Boot backend keeps to. ``pxe`` is the only one; what boards read is seen in the TFTP tree."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from mozpool.bmm.backends.pxe import PXEBoot
from mozpool.bmm.interfaces import Boot, Target
from mozpool.errors import HardwareError, LaneError

ENOUGH = 60.0


@dataclass
class Lab:
    """A backend, and what a device would boot by it."""

    boot: Boot
    devices: tuple[Target, ...]
    boots: Callable[[Target], str | None]
    """The configuration that a device finds; None when it boots from its own storage."""
    nonsense: tuple[Target, ...]
    broken: Boot
    """One whose server's disk can't be written."""


def pxe(request) -> Lab:
    tmp_path, context = request.getfixturevalue("tmp_path"), request.getfixturevalue("context")

    def boots(device: Target) -> str | None:
        mac = device.mac_address
        file = tmp_path / "pxelinux.cfg" / "-".join(["01", *(mac[place : place + 2] for place in range(0, 12, 2))])
        return file.read_text("utf-8") if file.exists() else None

    file = tmp_path / "file"
    file.write_text("")
    return Lab(
        PXEBoot(replace(context, tftp_root=str(tmp_path))),
        tuple(Target(f"panda-{n:04}", "127.0.0.1", f"aabbccddee{n:02x}") for n in range(1, 9)),
        boots,
        nonsense=(Target("panda-0001", "127.0.0.1", ""), Target("panda-0001", "127.0.0.1", "../../../../x")),
        broken=PXEBoot(replace(context, tftp_root=str(file))),
    )


@pytest.fixture(params=[pxe], ids=lambda made: made.__name__)
def lab(request) -> Lab:
    return request.param(request)


def test_a_device_boots_what_was_set_until_it_is_cleared(lab, seconds):
    first, second = lab.devices[:2]
    lab.boot.set_config(first, "DEFAULT one\n", seconds(ENOUGH))
    lab.boot.set_config(second, "DEFAULT t\u00ebn\n", seconds(ENOUGH))
    lab.boot.set_config(first, "DEFAULT two\n", seconds(ENOUGH))
    assert lab.boots(first) == "DEFAULT two\n"
    assert lab.boots(second) == "DEFAULT t\u00ebn\n"
    lab.boot.clear(first, seconds(ENOUGH))
    assert lab.boots(first) is None
    assert lab.boots(second) == "DEFAULT t\u00ebn\n"


def test_clearing_what_is_clear_is_fine(lab, seconds):
    for _ in range(2):
        lab.boot.clear(lab.devices[0], seconds(ENOUGH))
    assert lab.boots(lab.devices[0]) is None


def test_many_devices_are_set_and_cleared_at_the_same_time(lab, seconds):
    problems: list[BaseException] = []

    def use(device: Target) -> None:
        try:
            for number in range(20):
                lab.boot.set_config(device, f"{device.name} {number}", seconds(ENOUGH))
                if lab.boots(device) != f"{device.name} {number}":
                    problems.append(AssertionError(lab.boots(device)))
            lab.boot.clear(device, seconds(ENOUGH))
        except BaseException as e:
            problems.append(e)

    threads = [threading.Thread(target=use, args=(device,)) for device in lab.devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ENOUGH)
    assert problems == []
    assert [lab.boots(device) for device in lab.devices] == [None] * len(lab.devices)


def test_a_device_that_cannot_be_right_is_an_error_that_says_so(lab, seconds):
    for device in lab.nonsense:
        with pytest.raises(HardwareError, match=r"network boot of panda-0001 failed: .*MAC address") as caught:
            lab.boot.set_config(device, "x", seconds(ENOUGH))
        assert not isinstance(caught.value, LaneError)


def test_a_failing_server_is_an_error_that_says_so(lab, seconds):
    with pytest.raises(HardwareError, match="network boot of panda-0001 failed: cannot write"):
        lab.broken.set_config(lab.devices[0], "x", seconds(ENOUGH))
    with pytest.raises(HardwareError, match="network boot of panda-0001 failed: cannot remove"):
        lab.broken.clear(lab.devices[0], seconds(ENOUGH))
