# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The Python client of Mozpool, and the command ``mozpool``.

from mozpool.client import Client

client = Client(["http://mozpool1.example.com", "http://mozpool2.example.com"])
with client.hold(image="b2g", duration=1800, boot_config={"b2gbase": "http://…"}) as device:
    run_tests(device.address)
"""

from mozpool.client.api import Client, Progress
from mozpool.client.errors import (
    BadRequest,
    ClientError,
    Conflict,
    DeviceLost,
    NotAllowed,
    NotFound,
    RequestFailed,
    ServerUnavailable,
    WaitTimeout,
)
from mozpool.client.hold import Hold
from mozpool.client.models import (
    AuditEntry,
    Device,
    Image,
    LogLine,
    Output,
    Report,
    ReportKind,
    Request,
    Status,
    Waiting,
)

__all__ = [
    "AuditEntry",
    "BadRequest",
    "Client",
    "ClientError",
    "Conflict",
    "Device",
    "DeviceLost",
    "Hold",
    "Image",
    "LogLine",
    "NotAllowed",
    "NotFound",
    "Output",
    "Progress",
    "Report",
    "ReportKind",
    "Request",
    "RequestFailed",
    "ServerUnavailable",
    "Status",
    "WaitTimeout",
    "Waiting",
]
