# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Files for boards over HTTP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from mozpool import resources
from tests.app_fixtures import Server, server

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def store(tmp_path: Path) -> Path:
    directory = tmp_path / "images"
    (directory / "b2g" / "1").mkdir(parents=True)
    (directory / "b2g" / "1" / "boot.tar.gz").write_bytes(CONTENT)
    (directory / "run.sh").write_text("#!/bin/sh\n")
    (directory / "page.html").write_text("<script>alert(1)</script>")
    (tmp_path / "secret").write_text("secret")
    return directory


@pytest.fixture
def site(sqlite_url: str, tmp_path: Path, store: Path) -> Iterator[Server]:
    with server(sqlite_url, tmp_path, paths={"image_store": store}) as made:
        yield made


def get(site: Server, path: str, **options: Any) -> TestResponse:
    """The answer, read to its end as a server does, so that its file is closed."""
    return site.get(path, buffered=True, **options)


def test_an_image_comes_as_it_is(site: Server) -> None:
    said = get(site, "/images/b2g/1/boot.tar.gz")
    assert (said.status_code, said.data) == (200, CONTENT)
    assert said.mimetype == "application/octet-stream"
    assert "Content-Encoding" not in said.headers  # no client is to unpack it on the way


def test_head_says_how_large_it_is(site: Server) -> None:
    said = site.client.head("/images/b2g/1/boot.tar.gz", buffered=True)
    assert (said.status_code, said.data, said.content_length) == (200, b"", len(CONTENT))


def test_a_part_of_it_can_be_asked_for(site: Server) -> None:
    said = get(site, "/images/b2g/1/boot.tar.gz", headers={"Range": "bytes=100-199"})
    assert (said.status_code, said.data) == (206, CONTENT[100:200])
    assert said.headers["Content-Range"] == f"bytes 100-199/{len(CONTENT)}"
    assert get(site, "/images/run.sh", headers={"Range": "bytes=9999-"}).status_code == 416


def test_what_has_not_changed_is_not_sent_again(site: Server, store: Path) -> None:
    first = get(site, "/images/run.sh")
    tag, when = first.headers["ETag"], first.headers["Last-Modified"]
    for headers in ({"If-None-Match": tag}, {"If-Modified-Since": when}):
        assert get(site, "/images/run.sh", headers=headers).status_code == 304
    (store / "run.sh").write_text("#!/bin/sh\nexit 1\n")
    assert get(site, "/images/run.sh", headers={"If-None-Match": tag}).status_code == 200


def test_scripts_are_text_and_pages_are_not_shown(site: Server) -> None:
    said = get(site, "/images/run.sh")
    assert (said.mimetype, said.text) == ("text/plain", "#!/bin/sh\n")
    said = get(site, "/images/page.html")
    assert said.mimetype == "application/octet-stream"
    assert said.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    ["nowhere", "b2g", "b2g/", "../secret", "b2g/../../secret", "%2e%2e/secret", "..%2fsecret", "/etc/passwd", "%00"],
)
@pytest.mark.parametrize("place", ["images", "scripts"])
def test_nothing_else_can_be_read(site: Server, place: str, path: str) -> None:
    said = site.get(f"/{place}/{path}")
    assert said.status_code == 404
    assert said.get_json()["error"]["code"] == "not_found"


def test_people_get_a_page_that_says_so(site: Server) -> None:
    said = get(site, "/images/nowhere", headers={"Accept": "text/html"})
    assert (said.status_code, said.mimetype) == (404, "text/html")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_the_server_may_not_read_is_forbidden(site: Server, store: Path) -> None:
    (store / "run.sh").chmod(0)
    assert get(site, "/images/run.sh").status_code == 403


def test_without_an_image_store_there_are_no_images(sqlite_url: str, tmp_path: Path) -> None:
    with server(sqlite_url, tmp_path) as made:
        said = made.get("/images/x")
    assert said.status_code == 404
    assert "[paths] image_store is not set" in said.get_json()["error"]["message"]


def test_the_boards_scripts_are_served(site: Server) -> None:
    directory = resources.path("scripts") / "board"
    scripts = [path for path in directory.rglob("*.sh") if path.is_file()]
    assert scripts
    for path in scripts:
        said = get(site, f"/scripts/{path.relative_to(directory)}")
        assert (said.status_code, said.mimetype, said.data) == (200, "text/plain", path.read_bytes())


# --- What an iPXE is to boot ---


def pxe_file(site: Server, text: str | bytes) -> None:
    root = site.daemon.settings.paths.tftp_root
    assert root is not None
    (root / "pxelinux.cfg").mkdir(exist_ok=True)
    content = text if isinstance(text, bytes) else text.encode()
    (root / "pxelinux.cfg" / "01-aa-bb-cc-dd-ee-ff").write_bytes(content)


@pytest.mark.parametrize("mac", ["aa-bb-cc-dd-ee-ff", "AA:BB:CC:DD:EE:FF", "aabbccddeeff"])
def test_a_board_boots_its_own_storage_unless_it_has_a_file(site: Server, mac: str) -> None:
    said = site.get(f"/ipxe/{mac}")
    assert (said.status_code, said.mimetype) == (200, "text/plain")
    assert said.text == "#!ipxe\nsanboot --no-describe --drive 0x80 || exit\n"
    assert said.headers["Cache-Control"] == "no-store"
    pxe_file(site, "DEFAULT l\nLABEL l\nLINUX http://x/vmlinuz\nIPAPPEND 2\n")
    said = site.get(f"/ipxe/{mac}")
    assert said.text == "#!ipxe\nkernel http://x/vmlinuz BOOTIF=01-aa-bb-cc-dd-ee-ff\nboot\n"


def test_a_file_that_can_not_be_translated_is_an_error_that_says_why(site: Server) -> None:
    pxe_file(site, "DEFAULT x\n")
    said = site.get("/ipxe/aabbccddeeff")
    assert said.status_code == 422
    assert "it has no such LABEL" in said.get_json()["error"]["message"]
    pxe_file(site, b"\xff\xfe")
    said = site.get("/ipxe/aabbccddeeff")
    assert said.status_code == 500
    assert "is not text in UTF-8" in said.get_json()["error"]["message"]


def test_what_is_no_mac_address_is_refused(site: Server) -> None:
    said = site.get("/ipxe/device1")
    assert (said.status_code, said.get_json()["error"]["field"]) == (400, "mac")
