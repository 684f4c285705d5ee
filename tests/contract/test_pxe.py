# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The PXE backend on a real directory."""

from __future__ import annotations

import os
import stat
import threading

import pytest

from mozpool.bmm.backends.pxe import PXEBoot, render
from mozpool.bmm.interfaces import BackendContext, Target
from mozpool.clock import Clock, Deadline
from mozpool.errors import HardwareError

NAME = "01-aa-bb-cc-dd-ee-0f"
DEVICE = Target("panda-0001", "127.0.0.1", "aabbccddee0f")


@pytest.fixture
def root(tmp_path):
    directory = tmp_path / "tftp"
    directory.mkdir()
    return directory


@pytest.fixture
def boot(root):
    return PXEBoot(BackendContext(Clock(), tftp_root=str(root)))


@pytest.fixture
def deadline(seconds):
    return seconds(10)


def test_it_writes_the_text_where_the_board_looks_for_it(boot, root, deadline):
    boot.set_config(DEVICE, "DEFAULT linux\nLABEL linux\n", deadline)
    assert (root / "pxelinux.cfg" / NAME).read_bytes() == b"DEFAULT linux\nLABEL linux\n"


def test_the_tftp_server_may_read_it_whatever_the_umask(boot, root, deadline):
    before = os.umask(0o077)
    try:
        boot.set_config(DEVICE, "text", deadline)
    finally:
        os.umask(before)
    assert stat.S_IMODE((root / "pxelinux.cfg" / NAME).stat().st_mode) == 0o644


def test_it_replaces_the_file_and_leaves_nothing_else_behind(boot, root, deadline):
    boot.set_config(DEVICE, "old", deadline)
    boot.set_config(DEVICE, "n\u00ebw", deadline)
    assert (root / "pxelinux.cfg" / NAME).read_text("utf-8") == "n\u00ebw"
    assert os.listdir(root / "pxelinux.cfg") == [NAME]


def test_a_reader_sees_the_old_or_the_new_text_and_nothing_between(boot, root, deadline):
    texts = {"a" * 100_000, "b" * 50_000}
    boot.set_config(DEVICE, "a" * 100_000, deadline)
    done = threading.Event()
    seen = set()

    def read() -> None:
        while not done.is_set():
            seen.add((root / "pxelinux.cfg" / NAME).read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        for text in sorted(texts):
            boot.set_config(DEVICE, text, deadline)
    done.set()
    reader.join(10)
    assert seen <= texts


def test_clearing_removes_the_file_and_twice_is_fine(boot, root, deadline):
    other = Target("panda-0002", "127.0.0.2", "aabbccddee10")
    boot.set_config(DEVICE, "text", deadline)
    boot.set_config(other, "text", deadline)
    boot.clear(DEVICE, deadline)
    boot.clear(DEVICE, deadline)
    assert os.listdir(root / "pxelinux.cfg") == ["01-aa-bb-cc-dd-ee-10"]


def test_clearing_before_anything_was_written_is_fine(boot, deadline):
    boot.clear(DEVICE, deadline)


def test_an_upper_case_mac_becomes_lower_case(boot, root, deadline):
    boot.set_config(Target("d", "", "AABBCCDDEE0F"), "text", deadline)
    assert os.listdir(root / "pxelinux.cfg") == [NAME]


@pytest.mark.parametrize(
    "mac",
    [
        "",
        "aabbccddee0",
        "aabbccddee0ff",
        "aa:bb:cc:dd:ee:0f",
        "../../../etc",
        "aabbccddee0/",
        "aabbccddee0\n",
        "\u0661" * 12,
    ],
)
def test_no_mac_can_name_another_file(boot, root, deadline, mac):
    device = Target("panda-0001", "", mac)
    with pytest.raises(HardwareError, match=r"network boot of panda-0001 failed: .*not twelve hex digits"):
        boot.set_config(device, "text", deadline)
    with pytest.raises(HardwareError, match="not twelve hex digits"):
        boot.clear(device, deadline)
    assert os.listdir(root) == []


def test_a_link_that_leads_out_of_tftp_root_is_refused(boot, root, tmp_path, deadline):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / NAME).write_text("precious")
    (root / "pxelinux.cfg").symlink_to(outside)
    with pytest.raises(HardwareError, match="leads out of tftp_root"):
        boot.set_config(DEVICE, "text", deadline)
    with pytest.raises(HardwareError, match="leads out of tftp_root"):
        boot.clear(DEVICE, deadline)
    assert (outside / NAME).read_text() == "precious"


def test_a_link_within_tftp_root_is_followed(boot, root, deadline):
    (root / "configs").mkdir()
    (root / "pxelinux.cfg").symlink_to("configs")
    boot.set_config(DEVICE, "text", deadline)
    assert (root / "configs" / NAME).read_text() == "text"


def test_a_link_in_the_files_place_is_replaced_and_its_target_left_alone(boot, root, tmp_path, deadline):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (root / "pxelinux.cfg").mkdir()
    (root / "pxelinux.cfg" / NAME).symlink_to(precious)
    boot.set_config(DEVICE, "text", deadline)
    assert precious.read_text() == "precious"
    assert (root / "pxelinux.cfg" / NAME).read_text() == "text"
    assert not (root / "pxelinux.cfg" / NAME).is_symlink()


def test_tftp_root_itself_may_be_a_link(root, tmp_path, deadline):
    (tmp_path / "link").symlink_to(root)
    boot = PXEBoot(BackendContext(Clock(), tftp_root=str(tmp_path / "link")))
    boot.set_config(DEVICE, "text", deadline)
    assert (root / "pxelinux.cfg" / NAME).read_text() == "text"


def test_a_missing_tftp_root_is_an_error_and_not_made(tmp_path, deadline):
    boot = PXEBoot(BackendContext(Clock(), tftp_root=str(tmp_path / "nowhere")))
    with pytest.raises(HardwareError, match="nowhere"):
        boot.set_config(DEVICE, "text", deadline)
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_replaced_is_an_error_and_leaves_nothing_behind(boot, root, deadline):
    (root / "pxelinux.cfg" / NAME).mkdir(parents=True)
    with pytest.raises(HardwareError, match="cannot write its PXE file"):
        boot.set_config(DEVICE, "text", deadline)
    with pytest.raises(HardwareError, match="cannot remove its PXE file"):
        boot.clear(DEVICE, deadline)
    assert os.listdir(root / "pxelinux.cfg") == [NAME]


def test_without_tftp_root_nothing_can_be_set_and_there_is_nothing_to_clear():
    deadline = Deadline(Clock(), 10)
    boot = PXEBoot(BackendContext(Clock(), tftp_root=None))
    with pytest.raises(HardwareError, match=r"\[paths\] tftp_root is not set"):
        boot.set_config(DEVICE, "text", deadline)
    boot.clear(DEVICE, deadline)


def test_render_fills_in_the_servers_address_and_leaves_other_names_alone():
    text = "url=%URL%/x.sh syslog=%IPADDRESS% name=%DEVICE% %OTHER% 100% %ipaddress%"
    rendered = render(text, ip_address="10.0.0.1", url="http://10.0.0.1:8080", device="%URL%")
    assert rendered == "url=http://10.0.0.1:8080/x.sh syslog=10.0.0.1 name=%URL% %OTHER% 100% %ipaddress%"
