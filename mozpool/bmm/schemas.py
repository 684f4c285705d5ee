# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What BMM's paths take and give."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from mozpool.apikit import MAX_TEXT, Flag, Input, Name
from mozpool.bmm.labels import Labels
from mozpool.db.tables import MAX_COLUMN


class PowerCycleBody(Input):
    """What to boot: without `pxe_config`, the device's own storage."""

    pxe_config: Name | None = Field(None, description="Every boot uses this PXE config until `clear-pxe`.")
    once: bool = Field(
        False, description="It is cleared as soon as the live image that it boots reports, or this server starts anew."
    )
    boot_config: Annotated[str, StringConstraints(max_length=MAX_TEXT)] | None = Field(
        None, description="Replaces the next boot config; the next image stays as it is."
    )


class CommentsBody(Input):
    """Free text about a device."""

    comments: Annotated[str, StringConstraints(max_length=10_000)]
    was: Annotated[str, StringConstraints(max_length=65_535)] | None = Field(
        None, description="What they are replaced of: 409 when somebody has changed them meanwhile."
    )


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


# The catalogue: images, hardware types, PXE configs, environments

Description = Annotated[str, StringConstraints(max_length=MAX_COLUMN)]
BasedOn = Annotated[
    str | None,
    Field(description="`revision` of what was looked at: if it has been changed since, the answer is 409."),
]


class NewPxeConfig(Input):
    """A PXE config."""

    name: Name
    description: Description = Field(description="What it is for, for people.")
    contents: Description = Field(
        description="What the boot loader is given. `%IPADDRESS%`, `%URL%`, `%DEVICE%` and `%TOKEN%` become the "
        "imaging server's address, its URL, the device's name and the token of its boot."
    )
    active: bool = Field(True, description="Whether it is in use.")


class PxeConfigChange(Input):
    """What is to be changed; the rest stays as it is."""

    description: Description | None = None
    contents: Description | None = None
    active: bool | None = None
    based_on: BasedOn = None


class PxeConfigText(Input):
    """A text that may become a PXE config."""

    contents: Description
    device: Name | None = Field(None, description="For which device it is to be written.")


class PxeConfigAssignment(Input):
    """Which image on which hardware."""

    image: Name
    hardware_type: Name
    hardware_model: Name | None = Field(None, description="Needed where the type has several.")
    instead_of: Annotated[str, StringConstraints(max_length=32)] | None = Field(
        None,
        description="Which PXE config boots it so far, as far as the caller knows; empty: none. If that is not so, the "
        "answer is 409.",
    )


Keys = Annotated[list[Annotated[str, StringConstraints(max_length=190)]], Field(max_length=100)]


class NewImage(Input):
    """An image."""

    name: Name
    boot_config_keys: Keys = Field([], description="Keys that requests for this image must carry.")
    can_reuse: bool = Field(False, description="A device that holds it already need not be imaged again.")
    has_sut_agent: bool = Field(True, description="Devices prove themselves by an agent that runs on it.")
    hidden: bool = Field(False, description="It is left out where people choose an image.")


class ImageChange(Input):
    """What is to be changed; the rest stays as it is."""

    name: Name | None = Field(None, description="A new name; requests must use it from then on.")
    boot_config_keys: Keys | None = None
    can_reuse: bool | None = None
    has_sut_agent: bool | None = None
    hidden: bool | None = None
    based_on: BasedOn = None


Backends = Annotated[
    dict[Annotated[str, StringConstraints(max_length=16)], Annotated[str, StringConstraints(max_length=64)]],
    Field(
        max_length=16,
        description="`power`, `boot`, `probe` and `agent`: the backends of its devices that name none themselves. What "
        "is left out, or empty, is as this server's configuration says.",
    ),
]


class NewHardwareType(Input):
    """A kind of device."""

    type: Name
    model: Name
    backends: Backends = Field({})


class HardwareTypeChange(Input):
    """What is to be changed; the rest stays as it is."""

    type: Name | None = None
    model: Name | None = None
    backends: Backends | None = None
    based_on: BasedOn = None


class EnvironmentRename(Input):
    """An environment and its new name."""

    environment: Name
    name: Annotated[Name, AfterValidator(_one)] = Field(description="Its new name, other than `any`.")
    merge: bool = Field(False, description="Whether there may be devices in an environment of this name already.")


class EnvironmentListQuery(Input):
    """What is to be told of environments."""

    details: Flag = Field(False, description="How many devices are in each; any value counts.")


# Answers


class Success(BaseModel):
    """Whether it answered."""

    success: bool
    reason: str | None = Field(None, description="Why not.")


class EnvironmentList(BaseModel):
    """All environments that devices are in."""

    environments: list[str]
    details: list[EnvironmentInfo] | None = Field(None, description="Numbers, if they were asked for.")


class EnvironmentInfo(BaseModel):
    """An environment."""

    name: str
    devices: int
    open_requests: int = Field(description="How many ask for a device of this environment.")


class Moved(BaseModel):
    """How many devices are in another environment now."""

    devices: int


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
    revision: str = Field(description="Another one as soon as anything else of it is.")
    used_for: list[PxeConfigUse]


class PxeConfigAnswer(BaseModel):
    """A PXE config."""

    details: PxeConfigDetails


class PxeConfigOpinion(BaseModel):
    """What may be wrong with a text, and what becomes of it."""

    doubts: list[str] = Field(description="Sentences.")
    text: str | None = Field(description="As the device's boot loader would be given it, if a device was named.")


class ImageBoot(BaseModel):
    """What boots an image on a hardware type."""

    hardware_type: str
    hardware_model: str
    pxe_config: str


class ImageDetails(BaseModel):
    """An image and what uses it."""

    id: int
    name: str
    boot_config_keys: list[str]
    can_reuse: bool
    hidden: bool
    has_sut_agent: bool
    revision: str = Field(description="Another one as soon as anything else of it is.")
    devices: int = Field(description="How many carry it.")
    open_requests: int = Field(description="How many ask for it.")
    boots: list[ImageBoot] = Field(description="What it can be put on.")


class ImageAnswer(BaseModel):
    """An image."""

    details: ImageDetails


class HardwareTypeInfo(BaseModel):
    """A kind of device and what uses it."""

    id: int
    type: str
    model: str
    backends: dict[str, Any] = Field(description="Interface to backend, for devices that name none; and `options`.")
    revision: str = Field(description="Another one as soon as anything else of it is.")
    devices: int = Field(description="How many are of it.")
    images: list[str] = Field(description="What can be put on it.")


class HardwareTypeList(BaseModel):
    """All kinds of devices, sorted by type and model."""

    hardware_types: list[HardwareTypeInfo]


class HardwareTypeAnswer(BaseModel):
    """A kind of device."""

    hardware_type: HardwareTypeInfo


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
