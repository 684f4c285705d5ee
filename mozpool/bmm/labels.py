# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Labels of devices, as the API and inventories may say them."""

from __future__ import annotations

import json
import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

MAX_LABELS = 16_000
"""Characters of a set of labels as JSON."""


def _storable(labels: dict[str, str]) -> dict[str, str]:
    if len(json.dumps(labels)) > MAX_LABELS:
        raise ValueError(f"they take more than {MAX_LABELS} characters")
    alike: dict[str, str] = {}
    for name in labels:
        # MySQL takes such names for one, and a device has each once.
        plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
        other = alike.setdefault(plain.casefold().rstrip(" "), name)
        if other != name:
            raise ValueError(f"{other!r} and {name!r} can be mixed up")
    return labels


Labels = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^=]+$")],
        Annotated[str, StringConstraints(max_length=190)],
    ],
    Field(max_length=64),
    AfterValidator(_storable),
]
