# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``pxe-config``, and the commands of ``mozpool-db`` for what it refers to: images and hardware types."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import insert, select, update

from mozpool.bmm import catalogue
from mozpool.bmm.backends.pxe import render
from mozpool.cli import db, pxeconfig
from mozpool.db import images, tables
from mozpool.db.engine import Database
from tests.conftest import open_database

Run = Callable[..., Result]

GOOD = "label b2g\nappend mobile-imaging-url=%URL%/b2g.sh ip=%IPADDRESS% name=%DEVICE%\n"


class Commands:
    """The two commands on a database, with two images and three hardware types."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.folder = folder
        self._config = folder / "config.ini"
        url = database.url.render_as_string(hide_password=False)
        self._config.write_text(f"[database]\nengine = {url}\n[server]\nfqdn = one.example.com\n")
        for words in ("add-image b2g --boot-config-key b2gbase --reusable", "add-image self-test --no-agent --hidden"):
            assert self.db(*words.split()).exit_code == 0
        for words in ("panda ES", "tegra 250", "tegra 300"):
            assert self.db("add-hardware-type", *words.split()).exit_code == 0

    def db(self, *words: str) -> Result:
        return CliRunner().invoke(db.main, ["--config", str(self._config), *words], prog_name="mozpool-db")

    def pxe(self, *words: str, stdin: str | bytes | None = None) -> Result:
        command = ["--mozpool-config", str(self._config), *words]
        return CliRunner().invoke(pxeconfig.main, command, prog_name="pxe-config", input=stdin)

    def add(self, name: str, text: str | bytes = GOOD, *more: str) -> Result:
        return self.pxe("add", name, "--description", "for tests", "--config", "-", *more, stdin=text)

    def rows(self) -> list[images.PxeConfig]:
        with self.database.read() as conn:
            return images.find_pxe_configs(conn)

    def boots(self, image: str, type_: str, model: str) -> str | None:
        with self.database.read() as conn:
            found = images.by_name(conn, image)
            assert found is not None
            hardware = {(each.type, each.model): each.id for each in images.known_hardware(conn)}
            return images.pxe_config_for(conn, hardware[type_, model], found.id)


@pytest.fixture
def commands(database: Database, tmp_path: Path) -> Commands:
    """Once on SQLite, once on MariaDB."""
    return Commands(database, tmp_path)


@pytest.fixture
def lite(sqlite_url: str, tmp_path: Path):
    """On SQLite, where the database makes no difference."""
    database = open_database(sqlite_url)
    yield Commands(database, tmp_path)
    database.dispose()


def refused(done: Result, status: int, *said: str) -> None:
    assert done.exit_code == status, done.output
    for words in said:
        assert words in done.stderr
    assert "Traceback" not in done.output


# --- PXE configs ---


def test_a_config_is_added_assigned_changed_and_deleted(commands: Commands):
    (commands.folder / "text").write_text(GOOD)
    done = commands.pxe("add", "b2g-1", "--description", "B2G, first", "--config", str(commands.folder / "text"))
    assert (done.exit_code, done.stdout, done.stderr) == (0, "Added PXE config b2g-1.\n", "")
    assert [(row.name, row.description, row.contents, row.active) for row in commands.rows()] == [
        ("b2g-1", "B2G, first", GOOD, True)
    ]
    done = commands.pxe("assign", "b2g-1", "--image", "b2g", "--type", "panda")
    assert (done.exit_code, done.stdout) == (0, "b2g-1 boots b2g on panda ES.\n")
    assert commands.boots("b2g", "panda", "ES") == "b2g-1"
    refused(commands.pxe("delete", "b2g-1", "--yes"), 1, "b2g-1 is used: b2g on panda ES")
    assert commands.pxe("modify", "b2g-1", "--inactive", "--description", "old").exit_code == 0
    assert [(row.description, row.contents, row.active) for row in commands.rows()] == [("old", GOOD, False)]
    assert commands.pxe("modify", "b2g-1", "--config", "-", "--active", stdin=GOOD * 2).exit_code == 0
    assert [(row.description, row.contents, row.active) for row in commands.rows()] == [("old", GOOD * 2, True)]
    assert commands.pxe("unassign", "b2g-1", "--image", "b2g", "--type", "panda", "--yes").exit_code == 0
    assert commands.boots("b2g", "panda", "ES") is None
    assert commands.pxe("delete", "b2g-1", "--yes").exit_code == 0
    assert commands.rows() == []


def test_names_are_taken_letter_by_letter_and_none_differ_in_case_only(commands: Commands):
    commands.add("b2g-1")
    refused(commands.add("B2G-1"), 1, "PXE config 'B2G-1' can't be added: there is 'b2g-1'")
    refused(commands.db("add-image", "B2G"), 1, "image 'B2G' can't be added: there is 'b2g'")
    refused(commands.pxe("delete", "B2G-1", "--yes"), 2, "NAME: 'B2G-1' is not")
    refused(commands.pxe("assign", "b2g-1", "--image", "B2G", "--type", "panda"), 2, "--image: 'B2G' is not")
    assert [row.name for row in commands.rows()] == ["b2g-1"]


def test_the_list_says_what_each_is_used_for(lite: Commands):
    lite.add("b2g-1")
    lite.add("spare", GOOD, "--inactive")
    for model in ("250", "300"):
        lite.pxe("assign", "b2g-1", "--image", "b2g", "--type", "tegra", "--model", model)
    assert [line.split() for line in lite.pxe("list").stdout.splitlines()] == [
        ["NAME", "ACTIVE", "DESCRIPTION", "USED", "FOR"],
        ["b2g-1", "yes", "for", "tests", "b2g", "on", "tegra", "250,", "b2g", "on", "tegra", "300"],
        ["spare", "no", "for", "tests", "-"],
    ]
    shown = json.loads(lite.pxe("list", "--json").stdout)["pxe_configs"]
    assert [(row["name"], row["active"], len(row["used_for"])) for row in shown] == [
        ("b2g-1", True, 2),
        ("spare", False, 0),
    ]
    assert shown[0]["used_for"][0] == {"image": "b2g", "hardware_type": "tegra", "hardware_model": "250"}


def test_show_prints_all_or_the_text_as_it_is(lite: Commands):
    lite.add("b2g-1", GOOD.rstrip())
    lite.pxe("assign", "b2g-1", "--image", "b2g", "--type", "panda")
    shown = lite.pxe("show", "b2g-1").stdout
    for line in ("Description:  for tests", "State:        active", "Used for:     b2g on panda ES"):
        assert line in shown.splitlines()
    assert shown.endswith(f"\n\n{GOOD}")
    assert lite.pxe("show", "b2g-1", "--config-only").stdout == GOOD.rstrip()
    assert lite.pxe("modify", "b2g-1", "--config", "-", stdin=lite.pxe("show", "b2g-1").stdout).exit_code == 0


def test_what_may_be_wrong_is_a_warning(lite: Commands):
    done = lite.add("odd", "append %SERVER% 100%25 %IPADDRESS%\n")
    assert (done.exit_code, done.stdout) == (0, "Added PXE config odd.\n")
    assert "no mobile-imaging-url= in it" in done.stderr
    assert "%SERVER% stays as it is" in done.stderr
    assert "%IPADDRESS% stays" not in done.stderr
    assert lite.add("fine").stderr == ""
    assert "%NIX%" in lite.pxe("modify", "fine", "--config", "-", stdin=GOOD + "%NIX%").stderr


def test_all_placeholders_that_it_knows_are_replaced():
    text = " ".join(catalogue.PLACEHOLDERS)
    given = render(text, ip_address="10.0.0.1", url="http://one", device="d1", token="t1")
    assert given == "10.0.0.1 http://one d1 t1"


@pytest.mark.parametrize(
    ("words", "stdin", "said"),
    [
        (("add", "n" * 33, "--description", "x", "--config", "-"), GOOD, "NAME: 'nnn"),
        (("add", "a/b", "--description", "x", "--config", "-"), GOOD, "NAME: 'a/b' is not 1 to 32"),
        (("add", "", "--description", "x", "--config", "-"), GOOD, "NAME: '' is not"),
        (("add", "old", "--description", "x", "--config", "-"), GOOD, "'old' is not free"),
        (("add", "new", "--description", " ", "--config", "-"), GOOD, "--description: ' ' is not 1 to"),
        (("add", "new", "--description", "x", "--config", "-"), "", "--config: '' is not 1 to"),
        (("add", "new", "--description", "x", "--config", "-"), b"\xff\xfe", "is not a text file in UTF-8"),
        (("add", "new", "--description", "x", "--config", "-"), "\xe4" * 32768, "of at most 65535 bytes"),
        (("add", "new", "--description", "x", "--config", "-"), "a\0b", "--config"),
        (("add", "new", "--description", "x"), GOOD, "--config"),
        (("add", "new", "--config", "-"), GOOD, "--description"),
        (("add", "new", "--description", "x", "--config", "/nowhere"), GOOD, "/nowhere"),
        (("modify", "old"), "", "nothing to change"),
        (("modify", "nix", "--active"), "", "NAME: 'nix' is not a PXE config; there is old"),
        (("show", "nix"), "", "NAME: 'nix' is not a PXE config"),
        (("delete", "nix", "--yes"), "", "NAME: 'nix' is not a PXE config"),
        (("assign", "old", "--image", "nix", "--type", "panda"), "", "an image; there are b2g, self-test"),
        (("assign", "old", "--image", "b2g", "--type", "nix"), "", "--type: 'nix'"),
        (("assign", "old", "--image", "b2g", "--type", "tegra"), "", "--model: is missing; tegra has 250, 300"),
        (("assign", "old", "--image", "b2g", "--type", "tegra", "--model", "1"), "", "--model: '1'"),
        (("frobnicate",), "", "No such command"),
    ],
)
def test_wrong_usage_ends_with_status_2_and_changes_nothing(lite: Commands, words, stdin, said):
    lite.add("old")
    before = lite.rows()
    refused(lite.pxe(*words, stdin=stdin), 2, said)
    assert lite.rows() == before


def test_it_asks_before_anything_is_lost(lite: Commands):
    lite.add("one")
    lite.add("two")
    use = ("--image", "b2g", "--type", "panda")
    assert lite.pxe("assign", "one", *use).exit_code == 0
    done = lite.pxe("assign", "two", *use, stdin="n\n")
    assert done.exit_code == 1
    assert "one boots b2g on panda ES now" in done.output
    assert lite.boots("b2g", "panda", "ES") == "one"
    assert lite.pxe("unassign", "one", *use, stdin="").exit_code == 1
    assert lite.pxe("delete", "two", stdin="n\n").exit_code == 1
    assert len(lite.rows()) == 2
    assert lite.pxe("assign", "two", *use, stdin="y\n").exit_code == 0
    assert lite.boots("b2g", "panda", "ES") == "two"
    refused(lite.pxe("unassign", "one", *use, "--yes"), 1, "one does not boot b2g on panda ES: two does")
    assert lite.pxe("delete", "one", stdin="y\n").exit_code == 0
    assert [row.name for row in lite.rows()] == ["two"]


def test_a_config_that_a_device_is_about_to_boot_is_not_deleted(lite: Commands):
    lite.add("one")
    device = {"name": "panda-1", "fqdn": "panda-1", "inventory_id": 1, "state": "ready", "state_counters": "{}"}
    with lite.database.begin() as conn:
        server = images.ensure_imaging_server(conn, "one.example.com")
        conn.execute(
            insert(tables.devices).values(
                **device, mac_address="aabbccddeeff", imaging_server_id=server, pxe_config="one"
            )
        )
    refused(lite.pxe("delete", "one", "--yes"), 1, "is used: device panda-1")
    lite.database.run(lambda conn: conn.execute(update(tables.devices).values(pxe_config=None)))
    assert lite.pxe("delete", "one", "--yes").exit_code == 0


def test_a_missing_database_is_told(tmp_path: Path):
    (tmp_path / "config.ini").write_text(f"[database]\nengine = sqlite:///{tmp_path}/nothing.sqlite\n")
    done = CliRunner().invoke(pxeconfig.main, ["--mozpool-config", str(tmp_path / "config.ini"), "list"])
    refused(done, 1, "does not exist")
    assert not (tmp_path / "nothing.sqlite").exists()


def test_every_command_explains_itself():
    overview = CliRunner().invoke(pxeconfig.main, ["-h"], prog_name="pxe-config").stdout
    for command in pxeconfig.main.commands:
        assert command in overview
        assert CliRunner().invoke(pxeconfig.main, [command, "--help"]).exit_code == 0
    assert "..." not in overview.partition("Commands:")[2]


# --- Images and hardware types ---


def test_images_and_hardware_types_are_listed_as_they_were_added(commands: Commands):
    assert commands.db("add-hardware-type", "phone", "X", "--power", "proxr", "--probe", "echo").exit_code == 0
    assert [line.split() for line in commands.db("list-images").stdout.splitlines()[1:]] == [
        ["b2g", "b2gbase", "yes", "yes", "no"],
        ["self-test", "-", "no", "no", "yes"],
    ]
    listed = json.loads(commands.db("list-images", "--json").stdout)["images"]
    assert listed[0] == {
        "name": "b2g",
        "boot_config_keys": ["b2gbase"],
        "can_reuse": True,
        "has_sut_agent": True,
        "hidden": False,
    }
    assert commands.db("list-hardware-types").stdout.splitlines()[2:3] == ["phone  X      power=proxr, probe=echo"]
    types = json.loads(commands.db("list-hardware-types", "--json").stdout)["hardware_types"]
    assert {"type": "phone", "model": "X", "backends": {"power": "proxr", "probe": "echo"}} in types


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add-image", "b2g"), "NAME: 'b2g' is not free"),
        (("add-image", "n" * 33), "is not 1 to 32"),
        (("add-image", "new", "--boot-config-key", "a", "--boot-config-key", "a"), "--boot-config-key: 'a'"),
        (("add-image", "new", "--boot-config-key", " "), "--boot-config-key: ' '"),
        (("add-hardware-type", "panda", "ES"), "'panda ES' is not new"),
        (("add-hardware-type", "panda", "m" * 33), "MODEL: 'mmm"),
        (("add-hardware-type", "", "m"), "TYPE: ''"),
        (("add-hardware-type", "panda", "new", "--power", "nix"), "--power: 'nix' is not a power backend"),
        (("add-hardware-type", "panda"), "MODEL"),
    ],
)
def test_wrong_images_and_hardware_types_are_refused(lite: Commands, words, said):
    def all_rows() -> list[object]:
        with lite.database.read() as conn:
            return [conn.execute(select(table)).all() for table in (tables.images, tables.hardware_types)]

    before = all_rows()
    refused(lite.db(*words), 2, said)
    assert all_rows() == before
