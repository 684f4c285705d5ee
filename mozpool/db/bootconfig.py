# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""When two boot configs are equal: by what they say, not by how it is written down."""

from __future__ import annotations

import hashlib
import json


def boot_config_hash(text: str | None) -> str:
    """Forty hex digits that are equal for equal boot configs.

    Parsed JSON is compared; what is empty, invalid or no object counts as ``{}`` (REST contract: equal boot config).
    """
    try:
        value = json.loads(text or "")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        value = {}
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha1(canonical.encode("ascii"), usedforsecurity=False).hexdigest()
