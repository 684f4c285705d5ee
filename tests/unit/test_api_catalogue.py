# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The API of images, hardware types, PXE configs and environments: what is changed, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from mozpool.db import tables
from tests.app_fixtures import Server, server

TEXT = "append mobile-imaging-url=%URL%/b2g.sh ip=%IPADDRESS% name=%DEVICE%\n"
PANDA = {"hardware_type": "panda", "hardware_model": "ES"}


@pytest.fixture
def site(sqlite_url: str, tmp_path: Path) -> Iterator[Server]:
    """A server on SQLite, for what is refused before the database has to say anything."""
    with server(sqlite_url, tmp_path) as made:
        yield made


def content(site: Server) -> dict[str, Any]:
    """All rows that the API of this page may change."""
    names = ("images", "hardware_types", "pxe_configs", "image_pxe_configs", "devices", "requests")
    with site.daemon.database.read() as conn:
        return {name: [tuple(row) for row in conn.execute(select(tables.metadata.tables[name]))] for name in names}


def refused(site: Server, path: str, body: dict[str, Any], status: int, *words: str, field: str | None = None) -> None:
    """The call is refused in these words, and changes nothing."""
    before = content(site)
    answer = site.post(path, body)
    assert answer.status_code == status, answer.text
    error = answer.get_json()["error"]
    for text in words:
        assert text in error["message"]
    assert error["field"] == field
    assert content(site) == before


def done(site: Server, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    answer = site.post(path, body or {})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.get_json()
    return found


def pxe_config(site: Server, name: str) -> dict[str, Any]:
    found: dict[str, Any] = site.get(f"/api/bmm/pxe_config/{name}/details/").get_json()["details"]
    return found


def woken(site: Server, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows whenever the queue is to be looked at again."""
    calls: list[int] = []
    known = site.app.extensions["mozpool.site"]
    object.__setattr__(known, "device_changed", lambda: calls.append(1))
    return calls


# --- PXE configs ---


def test_a_pxe_config_is_created_assigned_changed_and_deleted(
    imaging_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = imaging_server
    calls = woken(site, monkeypatch)
    made = done(site, "/api/bmm/pxe_config/create/", {"name": "b2g-2", "description": "next", "contents": TEXT})
    assert made["details"] == pxe_config(site, "b2g-2")
    assert (made["details"]["active"], made["details"]["used_for"]) == (True, [])
    assert not calls
    done(site, "/api/bmm/pxe_config/b2g-2/assign/", {"image": "b2g", **PANDA, "instead_of": "b2g"})
    assert len(calls) == 1
    assert pxe_config(site, "b2g-2")["used_for"] == [{"image": "b2g", **PANDA}]
    assert pxe_config(site, "b2g")["used_for"] == []
    body = {"contents": TEXT * 2, "active": False, "based_on": made["details"]["revision"]}
    changed = done(site, "/api/bmm/pxe_config/b2g-2/change/", body)["details"]
    assert (changed["contents"], changed["active"], changed["description"]) == (TEXT * 2, False, "next")
    assert changed["revision"] != made["details"]["revision"]
    done(site, "/api/bmm/pxe_config/b2g-2/unassign/", {"image": "b2g", "hardware_type": "panda"})
    assert len(calls) == 2
    done(site, "/api/bmm/pxe_config/b2g-2/delete/")
    assert site.get("/api/bmm/pxe_config/b2g-2/details/").status_code == 404
    assert done(site, "/api/bmm/pxe_config/b2g/change/") == {"details": pxe_config(site, "b2g")}


def test_a_pxe_config_that_somebody_else_changed_is_not_overwritten(imaging_server: Server) -> None:
    site = imaging_server
    looked_at = pxe_config(site, "b2g")["revision"]
    done(site, "/api/bmm/pxe_config/b2g/change/", {"description": "by somebody else", "based_on": looked_at})
    body = {"contents": TEXT, "based_on": looked_at}
    refused(site, "/api/bmm/pxe_config/b2g/change/", body, 409, "somebody else has changed PXE config b2g")
    done(site, "/api/bmm/pxe_config/b2g/change/", {"contents": TEXT})
    assert pxe_config(site, "b2g")["description"] == "by somebody else"


@pytest.mark.parametrize(
    ("path", "body", "status", "words", "field"),
    [
        ("create", {"name": "b2g", "description": "x", "contents": TEXT}, 409, "'b2g' is not free", "name"),
        ("create", {"name": "B2G", "description": "x", "contents": TEXT}, 409, "there is 'b2g'", None),
        ("create", {"name": "a/b", "description": "x", "contents": TEXT}, 400, "'a/b' is not 1 to 32", "name"),
        ("create", {"name": "n" * 33, "description": "x", "contents": TEXT}, 400, "at most 32", "name"),
        ("create", {"name": "new", "description": " ", "contents": TEXT}, 400, "description: ' '", "description"),
        ("create", {"name": "new", "description": "x", "contents": "\n"}, 400, "contents:", "contents"),
        ("create", {"name": "new", "description": "x", "contents": "a\0"}, 400, "contents:", "contents"),
        ("create", {"name": "new", "description": "x", "contents": "ä" * 40_000}, 400, "65535 bytes", "contents"),
        ("create", {"name": "new", "description": "x"}, 400, "is missing", "contents"),
        ("nix/change", {"active": False}, 404, "'nix' is not a PXE config; there are", "pxe_config"),
        ("b2g/change", {"contents": ""}, 400, "contents: ''", "contents"),
        ("b2g/change", {"active": "perhaps"}, 400, "active: 'perhaps'", "active"),
        ("b2g/delete", {}, 409, "PXE config b2g is used: b2g on panda ES", None),
        ("nix/delete", {}, 404, "'nix' is not a PXE config", "pxe_config"),
        ("nix/assign", {"image": "b2g", **PANDA}, 404, "'nix' is not", "pxe_config"),
        ("b2g/assign", {"image": "nix", **PANDA}, 404, "image: 'nix' is not an image; there are", "image"),
        ("b2g/assign", {"image": "b2g", "hardware_type": "nix"}, 404, "there is panda", "hardware_type"),
        ("b2g/assign", {"image": "b2g", **PANDA, "hardware_model": "1"}, 404, "'1' is not", "hardware_model"),
        ("b2g/assign", {"image": "android", **PANDA, "instead_of": ""}, 409, "android boots android on panda", None),
        ("b2g/unassign", {"image": "android", **PANDA}, 409, "b2g does not boot android on panda ES: android", None),
        ("b2g/unassign", {"image": "b2g"}, 400, "is missing", "hardware_type"),
        ("check", {"contents": TEXT, "device": "nobody"}, 404, "there is no device nobody", "device"),
    ],
)
def test_what_cannot_be_done_to_pxe_configs(
    site: Server, path: str, body: dict[str, Any], status: int, words: str, field: str | None
) -> None:
    refused(site, f"/api/bmm/pxe_config/{path}/", body, status, words, field=field)


def test_a_pxe_config_that_a_device_is_to_boot_is_not_deleted(site: Server) -> None:
    done(site, "/api/bmm/pxe_config/create/", {"name": "new", "description": "x", "contents": TEXT})
    site.change(pxe_config="new")
    refused(site, "/api/bmm/pxe_config/new/delete/", {}, 409, "is used: device device1")
    site.change(pxe_config=None)
    done(site, "/api/bmm/pxe_config/new/delete/")


def test_a_text_is_looked_over_and_written_for_a_device_without_being_stored(site: Server) -> None:
    before = content(site)
    said = done(site, "/api/bmm/pxe_config/check/", {"contents": "%DEVICE% %SERVER%"})
    assert said["text"] is None
    assert "mobile-imaging-url=" in said["doubts"][0]
    assert "%SERVER% stays as it is" in said["doubts"][1]
    said = done(site, "/api/bmm/pxe_config/check/", {"contents": TEXT, "device": "device1"})
    assert said["doubts"] == []
    assert said["text"].endswith("name=device1\n")
    assert "%" not in said["text"]
    assert content(site) == before


def test_the_text_for_another_servers_device_is_written_there(site: Server) -> None:
    site.move("device1", site.other_server())
    answer = site.post("/api/bmm/pxe_config/check/", {"contents": TEXT, "device": "device1"})
    assert answer.status_code == 302


# --- Images ---


def test_an_image_is_created_changed_renamed_and_deleted(
    imaging_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = imaging_server
    calls = woken(site, monkeypatch)
    new = {"name": "raw", "boot_config_keys": ["url", "sha256"], "can_reuse": True, "hidden": True}
    made = done(site, "/api/image/create/", new)["details"]
    assert {**new, "has_sut_agent": True, "devices": 0, "boots": []}.items() <= made.items()
    assert "raw" not in [image["name"] for image in site.get("/api/image/list/").get_json()["images"]]
    assert "raw" in [image["name"] for image in site.get("/api/image/list/?all=1").get_json()["images"]]
    change = {"name": "disk", "boot_config_keys": [], "hidden": False, "based_on": made["revision"]}
    changed = done(site, "/api/image/raw/change/", change)["details"]
    assert (changed["name"], changed["boot_config_keys"], changed["can_reuse"]) == ("disk", [], True)
    assert len(calls) == 1
    assert site.get("/api/image/raw/details/").status_code == 404
    done(site, "/api/bmm/pxe_config/b2g/assign/", {"image": "disk", **PANDA})
    boots = site.get("/api/image/disk/details/").get_json()["details"]["boots"]
    assert boots == [{**PANDA, "pxe_config": "b2g"}]
    refused(site, "/api/image/disk/delete/", {}, 409, "image disk is used by PXE configs b2g (on panda ES)")
    done(site, "/api/bmm/pxe_config/b2g/unassign/", {"image": "disk", **PANDA})
    done(site, "/api/image/disk/delete/")
    assert site.get("/api/image/disk/details/").status_code == 404


def test_an_image_that_is_used_is_not_deleted(site: Server) -> None:
    done(site, "/api/image/create/", {"name": "old"})
    image = site.get("/api/image/old/details/").get_json()["details"]["id"]
    site.change("device1", image_id=image)
    site.change("device2", next_image_id=image)
    number = site.made("device3")
    table = tables.requests
    site.daemon.database.run(lambda conn: conn.execute(update(table).values(image_id=image)))
    words = ("devices device1;", "devices that are to get it device2;", f"open requests {number}")
    refused(site, "/api/image/old/delete/", {}, 409, *words)
    site.daemon.database.run(lambda conn: conn.execute(update(table).values(state="closed")))
    refused(site, "/api/image/old/delete/", {}, 409, f"requests of the past {number}")
    site.change("device1", image_id=None)
    site.change("device2", next_image_id=None)
    site.daemon.database.run(lambda conn: conn.execute(update(table).values(image_id=None)))
    values = {"image_id": image, "hardware_type_id": 1, "pxe_config_id": None}
    site.daemon.database.run(lambda conn: conn.execute(insert(tables.image_pxe_configs).values(values)))
    done(site, "/api/image/old/delete/")


@pytest.mark.parametrize(
    ("path", "body", "status", "words", "field"),
    [
        ("create", {"name": "b2g"}, 409, "'b2g' is not free", "name"),
        ("create", {"name": "B2G"}, 409, "there is 'b2g'", None),
        ("create", {"name": " b2g"}, 400, "' b2g' is not 1 to 32", "name"),
        ("create", {"name": "new", "boot_config_keys": ["a", "a"]}, 400, "named once", "boot_config_keys"),
        ("create", {"name": "new", "boot_config_keys": [" "]}, 400, "boot_config_keys: ' '", "boot_config_keys"),
        ("create", {"name": "new", "boot_config_keys": "a"}, 400, "boot_config_keys", "boot_config_keys"),
        ("create", {}, 400, "name: is missing", "name"),
        ("nix/change", {"hidden": True}, 404, "image: 'nix' is not an image", "image"),
        ("b2g/change", {"name": "android"}, 409, "'android' is not free", "name"),
        ("b2g/change", {"name": "Android"}, 409, "there is 'android'", None),
        ("b2g/change", {"name": "a/b"}, 400, "name: 'a/b'", "name"),
        ("b2g/change", {"boot_config_keys": ["a", "a"]}, 400, "named once", "boot_config_keys"),
        ("b2g/change", {"hidden": True, "based_on": "old"}, 409, "somebody else has changed image b2g", None),
        ("self-test/change", {"name": "other"}, 409, "self-test can't be renamed", None),
        ("maintenance/delete", {}, 409, "maintenance can't be deleted", None),
        ("nix/delete", {}, 404, "'nix' is not an image", "image"),
        ("b2g/delete", {}, 409, "PXE configs b2g (on panda ES)", None),
    ],
)
def test_what_cannot_be_done_to_images(
    site: Server, path: str, body: dict[str, Any], status: int, words: str, field: str | None
) -> None:
    refused(site, f"/api/image/{path}/", body, status, words, field=field)


# --- Hardware types ---


def test_a_hardware_type_is_created_changed_and_deleted(
    imaging_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = imaging_server
    calls = woken(site, monkeypatch)
    new = {"type": "phone", "model": "X", "backends": {"probe": "adb", "power": ""}}
    made = done(site, "/api/hardware_type/create/", new)["hardware_type"]
    assert (made["backends"], made["devices"], made["images"]) == ({"probe": "adb"}, 0, [])
    path = f"/api/hardware_type/{made['id']}"
    body = {"model": "Y", "backends": {"agent": "adb"}, "based_on": made["revision"]}
    changed = done(site, f"{path}/change/", body)["hardware_type"]
    assert (changed["type"], changed["model"], changed["backends"]) == ("phone", "Y", {"agent": "adb"})
    assert len(calls) == 1
    listed = site.get("/api/hardware_type/list/").get_json()["hardware_types"]
    assert [(each["type"], each["devices"]) for each in listed] == [("panda", 3), ("phone", 0)]
    assert listed[0]["images"] == ["android", "b2g", "maintenance", "self-test"]
    done(site, f"{path}/delete/")
    refused(site, f"{path}/delete/", {}, 404, "no hardware type", field="hardware_type")


def test_what_a_hardware_type_says_besides_its_backends_stays(site: Server) -> None:
    backends = {"power": "gone", "probe": "echo", "options": {"outlet": "1"}}
    table = tables.hardware_types
    site.daemon.database.run(lambda conn: conn.execute(update(table).values(backends=json.dumps(backends))))
    changed = done(site, "/api/hardware_type/1/change/", {"backends": {"power": "gone", "agent": "sut"}})
    assert changed["hardware_type"]["backends"] == {"options": {"outlet": "1"}, "power": "gone", "agent": "sut"}


@pytest.mark.parametrize(
    ("path", "body", "status", "words", "field"),
    [
        ("create", {"type": "panda", "model": "ES"}, 409, "'panda ES' is not new", "model"),
        ("create", {"type": "PANDA", "model": "es"}, 409, "is not new", "model"),
        ("create", {"type": "panda"}, 400, "model: is missing", "model"),
        ("create", {"type": "a/b", "model": "x"}, 400, "type: 'a/b'", "type"),
        ("create", {"type": "a", "model": "x", "backends": {"power": "nix"}}, 400, "power backend; ", "backends.power"),
        ("create", {"type": "a", "model": "x", "backends": {"nix": "sut"}}, 400, "one of power", "backends"),
        ("1/change", {"model": ""}, 400, "model: ''", "model"),
        ("1/change", {"backends": {"agent": "nix"}}, 400, "an agent backend; there are", "backends.agent"),
        ("1/change", {"model": "EA", "based_on": "old"}, 409, "changed hardware type panda ES", None),
        ("99/change", {"model": "EA"}, 404, "there is no hardware type 99", "hardware_type"),
        ("x/change", {"model": "EA"}, 404, "there is no hardware type x", "hardware_type"),
        ("1/delete", {}, 409, "used by devices device1, device2, device3; by images android, b2g", None),
    ],
)
def test_what_cannot_be_done_to_hardware_types(
    site: Server, path: str, body: dict[str, Any], status: int, words: str, field: str | None
) -> None:
    refused(site, f"/api/hardware_type/{path}/", body, status, words, field=field)


# --- Environments ---


def environments(site: Server) -> dict[str, int]:
    details = site.get("/api/environment/list/?details=1").get_json()["details"]
    return {each["name"]: each["devices"] for each in details}


def test_an_environment_is_renamed_with_all_its_devices(
    imaging_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = imaging_server
    calls = woken(site, monkeypatch)
    site.change("device3", environment="staging")
    site.made(environment="production")
    version = site.device("device1").version
    assert environments(site) == {"production": 2, "staging": 1}
    assert done(site, "/api/environment/rename/", {"environment": "production", "name": "live"}) == {"devices": 2}
    assert environments(site) == {"live": 2, "staging": 1}
    assert len(calls) == 1
    assert site.device("device1").version > version
    assert "environment production -> live" in site.log("device1")
    rename = {"environment": "live", "name": "staging"}
    refused(site, "/api/environment/rename/", rename, 409, "there is an environment staging", field="name")
    assert done(site, "/api/environment/rename/", {**rename, "merge": True}) == {"devices": 2}
    assert environments(site) == {"staging": 3}
    assert done(site, "/api/environment/rename/", {"environment": "staging", "name": "Staging"}) == {"devices": 3}
    assert site.get("/api/environment/list/").get_json() == {"environments": ["Staging"]}


def test_devices_without_an_environment_are_in_none(imaging_server: Server) -> None:
    site = imaging_server
    site.change("device1", environment=None)
    site.change("device2", environment="none")
    assert environments(site) == {"none": 2, "production": 1}
    assert done(site, "/api/environment/rename/", {"environment": "none", "name": "lab"}) == {"devices": 2}
    assert environments(site) == {"lab": 2, "production": 1}


@pytest.mark.parametrize(
    ("body", "status", "words", "field"),
    [
        ({"environment": "nix", "name": "lab"}, 404, "environment of devices; there is production", "environment"),
        ({"environment": "production", "name": "any"}, 400, "any stands for all", "name"),
        ({"environment": "production", "name": "production"}, 409, "has this name already", "name"),
        ({"environment": "production", "name": ""}, 400, "name: ''", "name"),
        ({"environment": "production"}, 400, "name: is missing", "name"),
    ],
)
def test_what_cannot_be_done_to_environments(
    site: Server, body: dict[str, Any], status: int, words: str, field: str | None
) -> None:
    refused(site, "/api/environment/rename/", body, status, words, field=field)
