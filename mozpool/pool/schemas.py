# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What MozPool's paths take and give."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, BaseModel, Field, StringConstraints

from mozpool.apikit import MAX_POLL, MAX_SECONDS, Flag, Input, JobInfo, LogLine, Name, PageQuery, Seconds, Whole
from mozpool.bmm.labels import Labels

PRIORITIES = 1_000_000
"""Priorities go so far from 0 in both directions."""


def _url(text: str) -> str:
    """The text, if something can be sent there."""
    try:
        parts = urlsplit(text)
        usable = bool((parts.hostname or "").encode("idna")) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not text.isprintable():
        raise ValueError("http://HOST or https://HOST is expected, with :PORT and a path as you like")
    return text


CallbackUrl = Annotated[
    str, StringConstraints(pattern=r"^https?://[^\s/?#]\S*$", max_length=2000), AfterValidator(_url)
]


class RequestBody(Input):
    """What kind of device is wanted, by whom, for how long, with which image.

    Besides these, every key of the image's `boot_config_keys` must be there.
    """

    assignee: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=256)] = Field(
        validation_alias=AliasChoices("assignee", "requester"),
        description="E-mail address of a person or host name of a machine; `requester` is another name for it.",
    )
    duration: Seconds = Field(gt=0, description="Seconds that the device is wanted for.")
    image: Name = Field(description="Name of an image.")
    environment: Name = Field("any", description="Environment that the device must be in.")
    wait: Annotated[Whole, Field(ge=0, le=MAX_SECONDS)] | None = Field(
        None, description="Seconds that it may queue: by default 600 for criteria and 0 for a named device."
    )
    priority: Annotated[Whole, Field(ge=-PRIORITIES, le=PRIORITIES)] = Field(0, description="Higher comes first.")
    hardware_type: Name | None = None
    hardware_model: Name | None = None
    labels: Labels = Field(default_factory=dict, description="Labels that the device must have, all of them.")
    callback_url: CallbackUrl | None = Field(
        None, description="Is sent a POST when the request becomes ready, fails or is closed."
    )


class WaitQuery(Input):
    """How long to wait for a device."""

    wait: Seconds = Field(
        0, description=f"Answer when a device is found or so many seconds (at most {MAX_POLL}) are over."
    )


class StatusQuery(Input):
    """How long to wait for a change."""

    wait: Seconds = Field(
        0,
        description=f"Answer when the state is not `state` any more or so many seconds (at most {MAX_POLL}) are over.",
    )
    state: Name | None = Field(None, description="The state that the caller knows of; by default the current one.")


class MatchQuery(Input):
    """What a request would ask for."""

    device: Name = "any"
    image: Name | None = Field(None, description="Leaves out devices that no PXE config can put it on.")
    environment: Name = "any"
    hardware_type: Name | None = None
    hardware_model: Name | None = None
    label: list[str] = Field(default_factory=list, description="`NAME=VALUE`; may be given several times.")


class RenewBody(Input):
    """A new end."""

    duration: Seconds = Field(description="Seconds from now.")


class RevokeBody(Input):
    """Why."""

    reason: Annotated[str, StringConstraints(strip_whitespace=True, max_length=150)] | None = Field(
        None, description="For whoever had it; it is kept as the reason of the request."
    )


class DeviceReturnBody(Input):
    """Whose the device is, to be sure."""

    request_id: Whole | None = Field(None, description="Give it back only if this request has it.")


class RequestListQuery(PageQuery):
    """Which requests are wanted: without any of these, all open and failed ones."""

    include_closed: Flag = Field(False, description="Also those that were returned or expired; any value counts.")
    assignee: str | None = None
    state: str | None = None
    device: str | None = Field(None, description="Name of the device that it has.")
    environment: str | None = None
    made_by: str | None = Field(None, description="Whose they are: the name of a token, or of who signed on.")
    job: str | None = Field(
        None,
        description="Those whose job this names, closed ones too: the number, id or URL of the job, or the id or URL "
        "of its Taskcluster task.",
    )


class DeviceListQuery(PageQuery):
    """Which devices are wanted: without any of these, all."""

    details: Flag = Field(False, description="Objects instead of names; any value counts.")
    cache: Flag = Field(
        False, description="The list of all devices with `details` may be a second old, for monitors; any value counts."
    )
    state: str | None = None
    environment: str | None = None
    hardware_type: str | None = None
    hardware_model: str | None = None
    image: str | None = None
    imaging_server: str | None = Field(None, description="The server that the inventory names.")
    label: list[str] = Field(default_factory=list, description="`NAME=VALUE`; may be given several times.")
    claimed: bool | None = Field(None, description="Whether a request has it.")
    category: str | None = Field(None, description="In use, idle, processing, failed or out of service.")
    holder: str | None = Field(None, description="Part of the assignee of the request that has it.")
    search: str | None = Field(
        None, description="Part of the name, the fqdn, the address, the MAC address or the comments."
    )
    name: list[str] = Field(default_factory=list, description="Only these devices; may be given several times.")


class ImageListQuery(Input):
    """Which images are wanted."""

    all: Flag = Field(False, description="Also hidden ones; any value counts.")


# Answers


class Version(BaseModel):
    """The server's version."""

    version: str


class RequestInfo(BaseModel):
    """A request."""

    id: int
    requested_device: str
    assignee: str
    expires: str = Field(description="In UTC, without a zone.")
    environment: str
    image: str | None
    boot_config: str = Field(description="The image's keys, as JSON in a string.")
    assigned_device: str = Field(description="Empty until a device is found.")
    url: str = Field(description="Where it is served.")
    state: str
    status: str = Field(description="The state.")
    imaging_server: str = Field(description="The server that acts for it now.")
    device_id: int | None
    device_state: str = Field(description="Empty when there is no device.")
    created: str | None
    priority: int
    wait: int
    labels: dict[str, str]
    hardware_type: str | None
    hardware_model: str | None
    callback_url: str | None = Field(description="Scheme and host of what is called; the rest may be secret.")
    made_by: str | None = Field(description="Whose it is, where the server asks who calls.")
    reason: str | None = Field(description="Why it waits, failed or was closed.")
    place: int | None = Field(
        None, description="Place in the queue among those that the same devices can serve; null when it does not wait."
    )
    job: JobInfo | None = Field(description="The job that it has or had a hosted device for; null where there is none.")


class MatchAnswer(BaseModel):
    """How many devices such a request could get."""

    matching: int = Field(description="Devices that match, whatever their state.")
    free: int = Field(description="Those of them that could be had at once.")
    reason: str | None = Field(description="Why none of them could be had at once; null when one could.")


class RequestAnswer(BaseModel):
    """The request as it is now."""

    request: RequestInfo


class RequestDetails(RequestInfo):
    """A request, flat and once more under `request`."""

    request: RequestInfo


class RequestListItem(RequestInfo):
    """A request."""

    last_device: str | None = Field(description="The device that it has, or had last if it has ended.")


class RequestList(BaseModel):
    """Requests in the order of their ids; `next_cursor` only where `limit` was given."""

    requests: list[RequestListItem]
    next_cursor: int | None = None


class RequestStatus(BaseModel):
    """State and log."""

    state: str
    log: list[LogLine]
    reason: str | None
    place: int | None
    created: str | None
    priority: int
    wait: int
    labels: dict[str, str]
    hardware_type: str | None
    hardware_model: str | None
    assigned_device: str
    device_state: str = Field(description="Empty when there is no device.")
    expires: str
    claimed_at: str | None = Field(description="When it got its device, whose log begins long before.")


class DeviceListItem(BaseModel):
    """A device."""

    id: int
    name: str
    fqdn: str
    address: str = Field(description="Where it answers.")
    inventory_id: int
    mac_address: str
    imaging_server: str = Field(description="The server that the inventory names.")
    owner: str = Field(description="The server that acts on it now: that one, or one that has taken over from it.")
    owner_state: str = Field(
        description="`up`, `away` or `stopped`: devices of a server that is not up are not handed out."
    )
    relay_info: str | None
    state: str
    device_status: str = Field(description="The state.")
    comments: str | None
    environment: str
    image: str | None
    boot_config: str | None
    last_pxe_config: str | None
    request_id: int | None
    assignee: str | None = Field(description="Who has it; null when nobody has.")
    expires: str | None = Field(description="Until when.")
    hardware_type: str | None
    hardware_model: str | None
    labels: dict[str, str]
    leaving: bool = Field(description="It is not in the inventory any more, and goes as soon as it is free.")
    job: JobInfo | None = Field(description="The job that it runs, or that is on its way to it.")


class DeviceList(BaseModel):
    """Names, or objects with `details`; `next_cursor` only where `limit` was given."""

    devices: list[str] | list[DeviceListItem]
    next_cursor: int | None = None


class ImageInfo(BaseModel):
    """An image."""

    id: int
    name: str
    boot_config_keys: list[str]
    can_reuse: bool
    hidden: bool
    has_sut_agent: bool


class ImageList(BaseModel):
    """The images that can be asked for."""

    images: list[ImageInfo]


class HistoryQuery(Input):
    """How far back to look."""

    hours: Annotated[float, Field(gt=0, le=90 * 24, allow_inf_nan=False)] = Field(
        24.0, description="The last so many hours: at most 90 days."
    )


class PoolSample(BaseModel):
    """The pool in a step."""

    time: str = Field(description="When the step begins.")
    in_use: float = Field(description="Devices of this category, on the average of the step.")
    idle: float
    processing: float
    failed: float
    out_of_service: float
    away: float = Field(description="Devices, of whatever category, whose imaging server was away.")
    waiting: int = Field(description="The most requests that waited for a device at a time.")
    ready: int = Field(description="Requests that became ready.")
    ready_median: float | None = Field(
        description="Seconds that these took from when they were made: the average of the minutes' medians."
    )
    ready_worst: float | None = Field(description="The most seconds that one of them took.")
    failures: int = Field(description="Devices that failed.")


class PoolHistory(BaseModel):
    """At most 300 steps, the oldest first; those of which nothing is known are left out."""

    step: int = Field(description="Seconds from the beginning of a step to that of the next one.")
    samples: list[PoolSample]
