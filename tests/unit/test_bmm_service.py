# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""BMM's service with real files: the network boot says what the device's row says, whatever happened meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mozpool.db.devices import Device
from mozpool.errors import OwnFault
from tests.app_fixtures import Server


class Boots:
    """What device1 boots."""

    def __init__(self, server: Server) -> None:
        self.server = server
        assert server.daemon.settings.paths.tftp_root is not None
        self.directory = server.daemon.settings.paths.tftp_root / "pxelinux.cfg"

    def sync(self, **fields: object) -> Device:
        """Make the files say what the row with these fields says."""
        row = replace(self.server.device(), **fields)  # type: ignore[arg-type]
        self.server.daemon.bmm.sync_boot(row)
        return row

    def files(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.directory.glob("*")}


@pytest.fixture
def boots(imaging_server: Server) -> Boots:
    return Boots(imaging_server)


def test_a_file_that_somebody_removed_is_written_again(boots: Boots) -> None:
    row = boots.sync(pxe_config="b2g")
    before = boots.files()
    assert list(before) == ["01-02-00-00-00-00-01"]
    (boots.directory / "01-02-00-00-00-00-01").unlink()
    boots.server.daemon.bmm.sync_boot(row)
    assert boots.files() == before


def test_a_file_that_somebody_wrote_is_removed(boots: Boots) -> None:
    boots.sync(pxe_config=None)
    boots.directory.mkdir(exist_ok=True)
    (boots.directory / "01-02-00-00-00-00-01").write_text("LABEL mine")
    boots.sync(pxe_config=None)
    assert boots.files() == {}


def test_a_device_with_another_network_card_leaves_no_file_behind(boots: Boots) -> None:
    boots.sync(pxe_config="b2g")
    boots.sync(pxe_config="b2g", mac_address="0200000000ee")
    assert list(boots.files()) == ["01-02-00-00-00-00-ee"]
    boots.sync(pxe_config=None, mac_address="0200000000ff")
    assert boots.files() == {}


def test_a_directory_that_is_away_is_the_servers_own_fault(boots: Boots, tmp_path: Path) -> None:
    (tmp_path / "tftp").rename(tmp_path / "elsewhere")
    with pytest.raises(OwnFault, match="cannot write its PXE file"):
        boots.sync(pxe_config="b2g")
    (tmp_path / "elsewhere").rename(tmp_path / "tftp")
    boots.sync(pxe_config="b2g")
    assert len(boots.files()) == 1
