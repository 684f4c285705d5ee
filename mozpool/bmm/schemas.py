# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What BMM's paths take and give."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from mozpool.apikit import MAX_TEXT, Flag, Input, Labels, Name


class PowerCycleBody(Input):
    """What to boot: without `pxe_config`, the device's own storage."""

    pxe_config: Name | None = Field(None, description="Every boot uses this PXE config until `clear-pxe`.")
    boot_config: Annotated[str, StringConstraints(max_length=MAX_TEXT)] | None = Field(
        None, description="Replaces the next boot config; the next image stays as it is."
    )


class CommentsBody(Input):
    """Free text about a device."""

    comments: Annotated[str, StringConstraints(max_length=10_000)]


def _one(environment: str) -> str:
    if environment == "any":
        raise ValueError("any stands for all environments in requests: no device is in it")
    return environment


class EnvironmentBody(Input):
    """Where a device belongs."""

    environment: Annotated[Name, AfterValidator(_one)] = Field(description="Its name, other than `any`.")


class LabelsBody(Input):
    """All labels that a device is to have."""

    labels: Labels


class PxeConfigListQuery(Input):
    """Which PXE configs are wanted."""

    active_only: Flag = Field(False, description="Only those in use; any value counts.")


# Answers


class Success(BaseModel):
    """Whether it answered."""

    success: bool
    reason: str | None = Field(None, description="Why not.")


class EnvironmentList(BaseModel):
    """All environments that devices are in."""

    environments: list[str]


class PxeConfigList(BaseModel):
    """Names, sorted."""

    pxe_configs: list[str]


class PxeConfigUse(BaseModel):
    """What a PXE config is used for."""

    image: str
    hardware_type: str
    hardware_model: str


class PxeConfigDetails(BaseModel):
    """A PXE config; `version` and `content` are what old readers look for."""

    id: int
    name: str
    description: str
    contents: str
    content: str
    version: int
    active: bool
    used_for: list[PxeConfigUse]


class PxeConfigAnswer(BaseModel):
    """A PXE config."""

    details: PxeConfigDetails


class RelayBoardInfo(BaseModel):
    """A relay board, or another power switch."""

    id: int
    name: str
    fqdn: str = Field(description="Host name; of another switch, whatever tells it from the others.")
    imaging_server: str
    state: str = Field(description="`ok`, `suspect` or `failed`.")
    backend: str = Field(description="The power backend that switches it: `proxr` for relay boards.")
    since: str | None = Field(description="When it got into this state; null when it has always been in it.")
    reason: str | None = Field(description="Why it is not `ok`.")
    devices: int = Field(description="How many devices hang on it.")
    waiting: int = Field(description="How many of them wait for it to work again, where this server owns it.")


class RelayList(BaseModel):
    """All relay boards and other power switches that something is known of, sorted by name."""

    relays: list[RelayBoardInfo]
