# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The pages of relay boards, PXE configs, images, hardware types and environments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from sqlalchemy import update

from mozpool.db import tables
from tests.app_fixtures import Server, add_relay_board, server

PART = {"Mozpool-Part": "1"}
PAGES = ("/relays", "/pxe-configs", "/pxe-configs/b2g", "/images", "/hardware-types", "/environments")


@pytest.fixture
def site(sqlite_url: str, tmp_path: Path) -> Iterator[Server]:
    """A server on SQLite: the database makes no difference here."""
    with server(sqlite_url, tmp_path) as made:
        yield made


def text(site: Server, path: str, status: int = 200) -> str:
    """A page's text, without its tags."""
    answer = site.get(path, headers={"Accept": "text/html"})
    assert answer.status_code == status
    bare = re.sub(r"<[^>]+>", " ", answer.text.partition("<main")[2])
    return " ".join(bare.split())


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_a_title_a_heading_and_parts_of_its_own(site: Server, path: str) -> None:
    page = site.get(path)
    assert page.status_code == 200
    assert re.search(r"<title>\S.* · Mozpool</title>", page.text)
    assert page.text.count("<h1") == 1
    part = site.get(path, headers=PART)
    assert "<html" not in part.text
    for name in re.findall(r'<div id="([^"]+)" data-live', page.text):
        assert f'<div id="{name}" data-live' in part.text
    again = site.get(path, headers={**PART, "If-None-Match": part.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


@pytest.mark.parametrize("path", PAGES[1:-1])
def test_a_change_of_the_catalogue_is_seen_at_once_by_who_made_it(site: Server, path: str) -> None:
    etag = site.get(path, headers=PART).headers["ETag"]
    own = {"Mozpool-Forward": "1"}
    assert site.post("/api/bmm/pxe_config/b2g/change/", {"description": "the newest"}, headers=own).status_code == 200
    assert site.get(path, headers={**PART, "If-None-Match": etag}).status_code == 200


def test_the_pages_of_an_empty_pool_say_so(site: Server) -> None:
    def clear(conn) -> None:
        for name in ("device_labels", "devices", "relay_boards", "image_pxe_configs", "pxe_configs", "images"):
            conn.execute(tables.metadata.tables[name].delete())
        conn.execute(tables.hardware_types.delete())

    site.daemon.database.run(clear)
    assert "There is no PXE config yet" in text(site, "/pxe-configs")
    assert "There is no image yet" in text(site, "/images")
    assert "There is no hardware type yet" in text(site, "/hardware-types")
    assert "There are no devices" in text(site, "/environments")
    assert "Nothing is known of any power switch" in text(site, "/relays")
    assert "New PXE config" in text(site, "/new-pxe-config")


def test_names_with_odd_letters_lead_to_their_pages(site: Server) -> None:
    name = "50% <b>&'\" ?#ä"
    body = {"name": name, "description": "</textarea><script>", "contents": "</textarea>\n"}
    assert site.post("/api/bmm/pxe_config/create/", body).status_code == 200
    assert site.post("/api/image/create/", {"name": name}).status_code == 200
    assert site.post("/api/hardware_type/create/", {"type": name, "model": name}).status_code == 200
    site.change("device1", environment=name)
    for path in PAGES:
        page = site.get(path).text
        assert "<b>&" not in page
        assert "<script>" not in page
    links = [unescape(link) for link in re.findall(r'href="(/pxe-configs/[^"]+)"', site.get("/pxe-configs").text)]
    assert [site.get(link).status_code for link in links] == [200] * len(links)
    assert len(links) == 5


def test_the_list_of_pxe_configs_tells_what_each_is_for(site: Server) -> None:
    site.change("device1", pxe_config="b2g")
    site.post("/api/bmm/pxe_config/android/change/", {"active": False})
    page = text(site, "/pxe-configs")
    assert "b2g active Install Firefox OS b2g on panda ES 1 " in page
    assert "android inactive Install Android android on panda ES 0 " in page


def test_a_pxe_config_is_shown_with_what_a_device_is_given(site: Server) -> None:
    site.change("device1", pxe_config="b2g")
    page = text(site, "/pxe-configs/b2g")
    assert "1 device boots it the next time: device1" in page
    assert "this one Unassign b2g on panda ES" in page
    assert "android Assign android on panda ES" in page
    assert "where boards reach the imaging server" in page
    assert 'value="device1"' in site.get("/pxe-configs/b2g").text
    assert "http://%IPADDRESS%:8080/scripts/b2g-second-stage.sh" in page
    assert re.search(r"http://[\d.]+:8080/scripts/b2g-second-stage.sh", page)


def test_an_unknown_pxe_config_is_told_and_one_that_is_gone_says_so(site: Server) -> None:
    assert "There is no PXE config nix" in text(site, "/pxe-configs/nix", 404)
    assert "There is no PXE config nix" in text(site, "/new-pxe-config?copy=nix", 404)
    part = site.get("/pxe-configs/nix", headers=PART)
    assert part.status_code == 200
    assert "PXE config nix has been deleted" in part.text


def test_a_new_pxe_config_may_begin_as_a_copy(site: Server) -> None:
    page = site.get("/new-pxe-config?copy=b2g").text
    assert "a copy of b2g" in page
    assert "LABEL b2g" in page
    assert "mobile-imaging-url=%URL%" in site.get("/new-pxe-config").text


def test_images_are_shown_with_their_numbers_and_what_boots_them(site: Server) -> None:
    with site.daemon.database.read() as conn:
        (image,) = (row.id for row in conn.execute(tables.images.select()) if row.name == "b2g")
    site.change("device1", image_id=image)
    site.made("device2")
    page = text(site, "/images")
    assert "b2g b2gbase yes yes no 1 1 Edit b2g Delete b2g" in page
    assert "self-test none no no yes 0 0 Edit self-test" in page
    assert "Delete self-test" not in page
    assert "maintenance Change what boots maintenance on panda ES" in page
    assert 'href="/devices?image=b2g"' in site.get("/images").text


def test_hardware_types_are_shown_with_what_is_usual(site: Server) -> None:
    page = text(site, "/hardware-types")
    assert (
        "panda ES usual (proxr) usual (pxe) echo usual (sut) usual (none) 3 android, b2g, maintenance, self-test"
        in page
    )
    assert "/devices?hardware_type=panda&amp;hardware_model=ES" in site.get("/hardware-types").text
    table = tables.hardware_types
    site.daemon.database.run(lambda conn: conn.execute(update(table).values(backends='{"power": "gone"}')))
    site.post("/api/hardware_type/1/change/", {"model": "EA"}, headers={"Mozpool-Forward": "1"})
    assert "panda EA gone usual (pxe)" in text(site, "/hardware-types")


def test_environments_are_shown_by_category(site: Server) -> None:
    site.change("device1", environment="lab", state="failed_pxe_booting")
    site.change("device3", environment=None)
    site.made("device2")
    site.made(environment="nowhere", wait=60)
    page = text(site, "/environments")
    assert "lab 1 0 0 0 1 0 0 Rename lab" in page
    assert "none 1 0 1 0 0 0 0 Rename none" in page
    assert "nowhere 0 0 0 0 0 0 1 no device: its requests wait in vain" in page
    assert "production 1 1 0 0 0 0 0 Rename production" in page
    assert "1 open request takes a device of any environment" in page
    assert "/devices?environment=lab&amp;category=failed" in site.get("/environments").text


def test_a_relay_board_is_shown_with_its_devices(site: Server) -> None:
    add_relay_board(site, "far", "relay-far.example.com", site.other_server())
    page = text(site, "/relays")
    assert "relay-9 ok – 3 Test relay-9" in page
    assert "far ok – 0 Test far" in page
    page = text(site, "/relays/relay-9")
    for number in (1, 2, 3):
        assert f"device{number} ready – 127.0.0.1:9:bank1:relay{number} production" in page
    assert "No device hangs on it" in text(site, "/relays/far")
    assert "There is no relay board nix" in text(site, "/relays/nix", 404)
