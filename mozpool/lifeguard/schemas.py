# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What LifeGuard's paths take and give."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from mozpool.apikit import Flag, Input, JobInfo, LogLine, Name, Seconds, Whole

EXEC_LIMIT = 600.0
"""The longest that a command on a device may take, in seconds."""


class StateQuery(Input):
    """How fresh the state must be."""

    cache: Flag = Field(False, description="It may be a few seconds old, for monitors; any value counts.")


class WhoBody(Input):
    """Who acts."""

    assignee: str | None = Field(None, description="Who calls, for the log and the history.")


class ActorBody(WhoBody):
    """Who acts: the holder of the device, else an operator."""

    request_id: Whole | None = Field(None, description="The request that has the device: 409 when it does not.")


class FlashBody(ActorBody):
    """What to install. Besides these, every key of the image's `boot_config_keys` must be there."""

    image: Name


class StatusBody(WhoBody):
    """Whether the pool may use the device."""

    status: Literal["online", "offline"]
    reason: Annotated[str, StringConstraints(max_length=1000)] | None = Field(None, description="For the log.")


class ExecBody(ActorBody):
    """A command for the program on the device."""

    command: list[Annotated[str, StringConstraints(max_length=4096)]] = Field(
        min_length=1, max_length=256, description="The program and its arguments."
    )
    timeout: Annotated[Seconds, Field(gt=0, le=EXEC_LIMIT)] = Field(60, description="Seconds that it may take.")


# Answers


class DeviceEvent(BaseModel):
    """Nothing; for a "please" that names a claim (`claim_id`), whether LifeGuard accepted it."""

    accepted: bool | None = None
    state: str | None = None
    reason: str | None = None


class DeviceState(BaseModel):
    """The state."""

    state: str


class DeviceStatus(BaseModel):
    """State and log."""

    state: str
    log: list[LogLine]


class Started(BaseModel):
    """What the device is doing now."""

    state: str


class Agent(BaseModel):
    """How to reach the program on the device."""

    backend: str = Field(description="Which kind of program it is.")
    address: str
    available: bool = Field(description="Whether the device's image has one.")


class Power(BaseModel):
    """How the device's power is switched."""

    backend: str
    relay_info: str | None
    controllable: bool


class Holder(BaseModel):
    """Who has the device."""

    request_id: int
    assignee: str
    expires: str
    state: str = Field(description="The request's state.")
    url: str


class DeviceInfo(BaseModel):
    """All that another program needs to reach or flash a device."""

    id: int
    name: str
    fqdn: str
    address: str = Field(description="Where it answers.")
    mac_address: str
    inventory_id: int
    state: str
    device_status: str = Field(description="The state.")
    state_since: str | None
    category: str = Field(description="In use, idle, processing, failed or out of service.")
    environment: str
    comments: str | None
    image: str | None
    boot_config: str | None
    next_image: str | None
    next_boot_config: str | None
    pxe_config: str | None = Field(description="What every boot uses until it is cleared.")
    last_pxe_config: str | None
    imaging_server: str = Field(description="The server that the inventory names.")
    owner: str = Field(description="The server that acts on it now: that one, or one that has taken over from it.")
    owner_state: str = Field(
        description="`up`, `away` or `stopped`: devices of a server that is not up are not handed out."
    )
    url: str = Field(description="The device on that server.")
    hardware_type: str | None
    hardware_model: str | None
    relay_info: str | None
    labels: dict[str, str]
    agent: Agent
    power: Power
    backends: dict[str, Any]
    holder: Holder | None = Field(description="Null when nobody has it.")
    request_id: int | None
    last_seen: str | None
    waits_for: str | None = Field(
        description="What its current operation waits for because it has failed, such as `relay:HOST:PORT`; "
        "known to the device's own server only."
    )
    leaving: bool = Field(
        description="It is not in the inventory any more: nobody is given it, and it goes as soon as it is free."
    )
    job: JobInfo | None = Field(description="The job that it runs, or that is on its way to it.")


class InventoryInfo(BaseModel):
    """The inventory that devices are read from."""

    source: str | None = Field(description="Its kind, as this server is configured; null when there is none.")
    sync_interval: float = Field(description="How often this server's daemon sees to it; 0: it does not.")
    running: bool = Field(description="Whether some server reads it now.")
    holder: str | None = Field(description="Which one.")
    since: str | None
    ended: str | None = Field(description="When it was last read, or that failed.")
    ended_by: str | None
    outcome: str | None = Field(description="`ok` or `failed`.")
    message: str | None = Field(description="What became of how many hosts, or what was wrong.")


class ServerInfo(BaseModel):
    """An imaging server."""

    fqdn: str
    group: str | None = Field(description="Servers of a group take over from one another.")
    state: str = Field(
        description="`up`; `away` when it has given no sign of life for some time; `stopped`; `never started`."
    )
    version: str | None
    started: str | None = Field(description="By the server's own clock, as `last_heartbeat`.")
    uptime: int | None = Field(description="Seconds; null when it is not up.")
    last_heartbeat: str | None
    devices: int = Field(description="That it acts on.")
    open_requests: int = Field(description="That it acts for.")
    workers: int | None = Field(description="How many operations on hardware it can do at a time.")
    busy: int | None = Field(description="How many it was doing at its last sign of life.")


class ServerList(BaseModel):
    """All imaging servers of the pool, sorted by name."""

    servers: list[ServerInfo]


class ExecAnswer(BaseModel):
    """What the command gave."""

    output: str
    return_code: int | None
