# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The HTML pages: importing this registers them all on one blueprint."""

from mozpool.web.pages import (
    access,
    audit,
    catalogue,
    device,
    devices,
    docs,
    machines,
    overview,
    pxe_configs,
    relays,
    reports,
    requests,
    servers,
    signon,
)
from mozpool.web.pages.base import blueprint

__all__ = [
    "access",
    "audit",
    "blueprint",
    "catalogue",
    "device",
    "devices",
    "docs",
    "machines",
    "overview",
    "pxe_configs",
    "relays",
    "reports",
    "requests",
    "servers",
    "signon",
]
