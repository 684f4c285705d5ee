# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Files for boards over HTTP: images, the scripts that run on boards, and what an iPXE is to boot."""

from __future__ import annotations

from pathlib import Path

from apiflask import APIBlueprint
from flask import Response, make_response, send_from_directory

from mozpool import resources
from mozpool.apikit import site
from mozpool.bmm.backends.pxe import DIRECTORY, file_name
from mozpool.bmm.netboot import ipxe
from mozpool.errors import Forbidden, MozpoolError, NotFound

blueprint = APIBlueprint("files", __name__, enable_openapi=False)

TEXT = frozenset({".cfg", ".conf", ".ipxe", ".log", ".md5", ".py", ".seed", ".sh", ".sha1", ".sha256", ".txt"})
"""Endings of files that are shown as text; what is not known is ``application/octet-stream``."""


@blueprint.get("/images/<path:name>")
def image(name: str) -> Response:
    """A file of the image store."""
    store = site().settings.paths.image_store
    if store is None:
        raise NotFound("this server has no images: [paths] image_store is not set")
    return _file(store, name)


@blueprint.get("/scripts/<path:name>")
def script(name: str) -> Response:
    """A script that boards run, or what it reads."""
    return _file(resources.path("scripts") / "board", name)


def _file(directory: Path, name: str) -> Response:
    """A file below ``directory``: as a whole, a range of it, or only that it has not changed.

    Types are ours to say, so that no archive is taken for an encoding, and no image for a page of this server.
    """
    suffix = Path(name).suffix.lower()
    kind = "text/plain" if suffix in TEXT else "application/json" if suffix == ".json" else "application/octet-stream"
    try:
        said = send_from_directory(directory, name, mimetype=kind, conditional=True)
    except PermissionError:
        raise Forbidden(f"this server may not read {name[:200]}") from None
    return said


@blueprint.get("/ipxe/<mac>")
def ipxe_script(mac: str) -> Response:
    """The iPXE script that does what the PXE config of the board with this MAC says."""
    settings = site().settings
    digits = ipxe.mac_of(mac)
    text = ipxe.OWN_STORAGE
    if settings.paths.tftp_root is not None:
        file = settings.paths.tftp_root / DIRECTORY / file_name(digits)
        try:
            text = ipxe.script(file.read_text(encoding="utf-8"), digits, settings.server.ipaddress)
        except FileNotFoundError:
            pass
        except UnicodeDecodeError:
            raise MozpoolError(f"{file} is not text in UTF-8") from None
        except OSError as error:
            raise MozpoolError(f"{file} can't be read: {error.strerror}") from error
    said = make_response(text)
    said.mimetype = "text/plain"
    said.cache_control.no_store = True
    return said
