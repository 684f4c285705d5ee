# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What a request wants of a device. Requests with equal criteria can be served by the same devices."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mozpool.db.requests import Request

ANY = "any"


@dataclass(frozen=True)
class Criteria:
    """All conditions must hold; ``any`` and None ask for nothing."""

    device: str = ANY
    environment: str = ANY
    hardware_type: str | None = None
    hardware_model: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    image_id: int | None = None
    """The image that is to be installed: hardware that has no PXE config for it can't serve the request."""
    environments: tuple[str, ...] | None = None
    """Those that the request's team may use; None: all."""

    @classmethod
    def of(cls, request: Request, environments: tuple[str, ...] | None = None) -> Criteria:
        """The criteria of a stored request, whose team may use these environments."""
        return cls(
            device=request.requested_device,
            environment=request.environment,
            hardware_type=request.hardware_type,
            hardware_model=request.hardware_model,
            labels=request.labels,
            image_id=request.image_id,
            environments=environments,
        )

    @cached_property
    def key(self) -> str:
        """A digest that is equal for equal criteria, on every server."""
        parts = [
            self.device,
            self.environment,
            self.hardware_type,
            self.hardware_model,
            sorted(self.labels.items()),
            self.image_id,
            *([] if self.environments is None else [sorted(self.environments)]),
        ]
        return hashlib.sha1(json.dumps(parts).encode(), usedforsecurity=False).hexdigest()

    def describe(self) -> str:
        """For people: what is asked for, in words."""
        parts = [f"hardware type {self.hardware_type}"] if self.hardware_type else []
        if self.hardware_model:
            parts.append(f"model {self.hardware_model}")
        if self.environment != ANY:
            parts.append(f"environment {self.environment}")
        elif self.environments is not None:
            parts.append(f"environment {' or '.join(self.environments)}")
        parts += [f"{name}={value}" for name, value in sorted(self.labels.items())]
        noun = "device" if self.device == ANY else f"device {self.device}"
        if parts:
            return f"{noun} with {', '.join(parts)}"
        return "any device" if self.device == ANY else noun
