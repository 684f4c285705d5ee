# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Fake boards: what they boot, whom they tell, how they fail."""

from __future__ import annotations

import json
import socket
from dataclasses import replace

import pytest

from mozpool.errors import BadInput
from mozpool.fakes.board import Behaviour, BoardSpec, second_stage
from mozpool.fakes.sutagent import COMMAND_PORT
from tests.unit.fakes_support import (
    BOARD,
    FAST,
    ImagingServer,
    ask,
    connect,
    cut,
    eventually,
    rack_of,
    spec,
    until_prompt,
    write_pxe,
)


@pytest.fixture
def server():
    server = ImagingServer()
    yield server
    server.close()


@pytest.fixture
def lab(tmp_path, server):
    """Build a running rack with one board, whose PXE file names this script (None: it has no PXE file)."""
    racks = []

    def build(script=None, behaviour=FAST, seed=1, **fields):
        board = spec(1, **fields)
        rack = rack_of(board, server_url=server.url, tftp_root=tmp_path, behaviour=behaviour, seed=seed)
        if script is not None:
            path = write_pxe(tmp_path, board, server.imaging_url(script))
            # As LifeGuard does: who boots into the live image is not to do so again.
            server.on_event = lambda event: path.unlink(missing_ok=True)
        racks.append(rack)
        rack.start()
        return rack.boards["board-1"], rack

    yield build
    for rack in racks:
        rack.stop()


def cycle(rack, board):
    """Take the power and give it back."""
    for on in (False, True):
        rack.set_power(board.name, on)


def wait_until_done(board):
    eventually(lambda: not board.busy)


def steps(board):
    return [entry.what for entry in board.history]


def details(board, what):
    return [entry.detail for entry in board.history if entry.what == what]


def since_power_on(board):
    what = steps(board)
    return what[len(what) - what[::-1].index("power_on") :]


def test_it_is_up_with_its_image_from_the_start(lab):
    board, _ = lab()
    assert board.powered
    assert board.network_up
    assert board.image == "b2g"
    with connect(board.spec.address, COMMAND_PORT) as agent:
        assert until_prompt(agent) == b"$>\0"


def test_without_power_everything_is_gone(lab):
    board, rack = lab()
    with connect(board.spec.address, COMMAND_PORT) as agent:
        until_prompt(agent)
        rack.set_power(board.name, False)
        assert cut(agent)
    assert not board.network_up
    with pytest.raises(ConnectionRefusedError):
        connect(board.spec.address, COMMAND_PORT)


def test_without_a_pxe_file_it_boots_its_own_storage(lab):
    board, rack = lab()
    cycle(rack, board)
    eventually(lambda: board.agent.listening)
    assert since_power_on(board) == ["boot_loader", "storage_boot", "up"]
    assert board.image == "b2g"


def test_an_image_without_an_agent_answers_pings_only(lab):
    board, rack = lab(agent=False)
    cycle(rack, board)
    eventually(lambda: since_power_on(board)[-1:] == ["up"])
    assert board.network_up
    assert not board.agent.listening


def test_a_board_with_an_unknown_image_answers_pings_only(lab):
    board, _ = lab(image=None)
    assert board.network_up
    assert not board.agent.listening


def test_the_boot_loader_answers_pings(lab):
    board, rack = lab(behaviour=replace(FAST, boot_loader_seconds=1e9))
    cycle(rack, board)
    eventually(lambda: since_power_on(board) == ["boot_loader"])
    assert board.network_up
    assert not board.agent.listening


def test_it_installs_b2g_and_boots_into_it(lab, server):
    board, rack = lab("b2g-second-stage.sh", image="android")
    with connect(board.spec.address, COMMAND_PORT) as agent:
        until_prompt(agent)
        ask(agent, "mkdr /mnt/sdcard/old")
    cycle(rack, board)
    assert server.next_paths(5) == [
        "event/mobile_init_started/",
        "bootconfig/",
        "event/b2g_downloading/",
        "event/b2g_extracting/",
        "event/b2g_rebooting/",
    ]
    eventually(lambda: board.agent.listening)
    assert board.image == "b2g"
    assert json.loads(board.boot_config) == {"b2gbase": "http://images/b2g/"}
    assert server.paths.empty()
    with connect(board.spec.address, COMMAND_PORT) as agent:
        until_prompt(agent)
        assert ask(agent, "isdir /mnt/sdcard/old") == b"FALSE\n$>\0"
    assert since_power_on(board) == [
        *["boot_loader", "pxe_boot", "live_image", "event", "event", "download", "event", "extract", "installed"],
        *["event", "rebooting", "boot_loader", "storage_boot", "up"],
    ]


def test_it_installs_android(lab, server):
    board, rack = lab("android-second-stage.sh")
    cycle(rack, board)
    events = ["mobile_init_started", "bootconfig", "android_downloading", "android_extracting", "android_rebooting"]
    assert server.next_events(5) == events
    eventually(lambda: board.agent.listening)
    assert board.image == "android"


def test_it_installs_a_raw_image(lab, server):
    board, rack = lab("raw-second-stage.sh")
    cycle(rack, board)
    events = ["mobile_init_started", "bootconfig", "raw_downloading", "raw_writing", "raw_rebooting"]
    assert server.next_events(5) == events
    eventually(lambda: board.agent.listening)
    assert board.image == "raw"


def test_it_stays_in_maintenance(lab, server):
    board, rack = lab("maintenance-second-stage.sh")
    cycle(rack, board)
    assert server.next_events(2) == ["mobile_init_started", "maint_mode"]
    eventually(lambda: not board.busy)
    assert board.network_up
    assert not board.agent.listening
    assert board.image == "b2g"


@pytest.mark.parametrize(("failure", "last"), [(0.0, "self_test_ok"), (1.0, "failed_self_test")])
@pytest.mark.parametrize("script", ["selftest.sh", "panda-self-test.sh"])
def test_it_tests_itself(lab, server, script, failure, last):
    board, rack = lab(script, behaviour=replace(FAST, self_test_failure=failure))
    cycle(rack, board)
    assert server.next_events(3) == ["mobile_init_started", "self_test_running", last]
    eventually(lambda: not board.busy)
    assert board.network_up


def test_a_pxe_file_that_stays_makes_it_install_again(lab, server):
    board, rack = lab("b2g-second-stage.sh")
    server.on_event = lambda event: None
    cycle(rack, board)
    events = ["mobile_init_started", "bootconfig", "b2g_downloading", "b2g_extracting", "b2g_rebooting"]
    assert server.next_events(10) == events * 2


@pytest.mark.parametrize("script", ["other.sh", ""])
def test_a_second_stage_that_it_does_not_know_leaves_it_in_the_live_image(lab, server, script):
    board, rack = lab(script)
    cycle(rack, board)
    assert server.next_events(1) == ["mobile_init_started"]
    eventually(lambda: "hung" in steps(board))


def test_a_boot_configuration_without_a_server_makes_it_call_the_one_it_knows(lab, server, tmp_path):
    board, rack = lab()
    write_pxe(tmp_path, board.spec, "append mobile-imaging-url=maintenance.sh")
    cycle(rack, board)
    assert server.next_events(2) == ["mobile_init_started", "maint_mode"]


def test_it_calls_the_server_of_its_boot_configuration(lab, server, tmp_path):
    board, rack = lab()
    other = ImagingServer()
    try:
        write_pxe(tmp_path, board.spec, other.imaging_url("maintenance.sh"))
        cycle(rack, board)
        assert other.next_events(2) == ["mobile_init_started", "maint_mode"]
        assert server.paths.empty()
    finally:
        other.close()


def test_it_sends_back_the_token_that_it_was_booted_with(lab, server, tmp_path):
    board, rack = lab()
    other = ImagingServer()
    try:
        write_pxe(tmp_path, board.spec, "mozpool-token=first " + server.imaging_url("b2g-second-stage.sh"))
        server.redirect_to = other.url
        other.on_event = lambda event: write_pxe(tmp_path, board.spec, other.imaging_url("maintenance.sh"))
        cycle(rack, board)
        other.next_events(7)
        assert server.callers == [(board.spec.address, "first")] * 5
        assert other.callers == [*[(board.spec.address, "first")] * 5, *[(board.spec.address, None)] * 2]
    finally:
        other.close()


def test_it_follows_a_redirect_to_its_own_server(lab, server):
    board, rack = lab("maintenance.sh")
    other = ImagingServer()
    try:
        server.redirect_to = other.url
        cycle(rack, board)
        assert other.next_events(2) == ["mobile_init_started", "maint_mode"]
    finally:
        other.close()


def test_it_calls_again_until_the_server_understands(lab, server):
    board, rack = lab("maintenance.sh")
    server.statuses = [503, 500, 404]
    cycle(rack, board)
    assert server.next_events(5) == ["mobile_init_started"] * 4 + ["maint_mode"]
    eventually(lambda: not board.busy)
    assert len(details(board, "call_failed")) == 3


def test_it_calls_again_until_there_is_a_server(lab, server, tmp_path):
    board, rack = lab()
    path = write_pxe(tmp_path, board.spec, f"mobile-imaging-url=http://{BOARD}/maintenance.sh")
    cycle(rack, board)
    eventually(lambda: len(details(board, "call_failed")) >= 2)
    assert path.exists()
    assert details(board, "event") == []
    cycle(rack, board)  # power takes it out of that, too
    eventually(lambda: since_power_on(board)[-1:] == ["call_failed"])


def test_a_boot_failure_lasts_until_the_next_power_cycle(lab):
    board, rack = lab(behaviour=replace(FAST, boot_failure=1.0))
    cycle(rack, board)
    eventually(lambda: "hung" in steps(board))
    assert since_power_on(board) == ["boot_loader", "hung"]
    assert not board.network_up
    assert not board.busy
    board.behaviour = FAST
    cycle(rack, board)
    eventually(lambda: board.agent.listening)


def test_a_download_failure_hangs_or_starts_again(lab, server):
    seen = set()
    for seed in range(10):
        board, rack = lab("b2g.sh", behaviour=replace(FAST, download_failure=0.5), seed=seed)
        cycle(rack, board)
        wait_until_done(board)
        what = steps(board)
        assert ("installed" in what) is not ("hung" in what)
        seen |= {"again" for step in what if step == "download_again"} | {"hung" for step in what if step == "hung"}
        rack.stop()
        if seen == {"again", "hung"}:
            return
    raise AssertionError(f"ten boards only did {seen}")


def test_an_extraction_failure_leaves_nothing_to_boot(lab, server):
    board, rack = lab("b2g.sh", behaviour=replace(FAST, extraction_failure=1.0))
    cycle(rack, board)
    eventually(lambda: "hung" in steps(board))
    assert board.image is None
    assert server.next_events(4)[-1] == "b2g_extracting"
    cycle(rack, board)
    eventually(lambda: since_power_on(board)[-1:] == ["hung"])
    assert since_power_on(board) == ["boot_loader", "storage_boot", "hung"]
    assert not board.network_up
    assert server.paths.empty()


def test_power_that_goes_while_it_installs_leaves_nothing_to_boot(lab, server):
    board, rack = lab("b2g.sh", behaviour=replace(FAST, extract_seconds=1e9))
    cycle(rack, board)
    eventually(lambda: "extract" in steps(board))
    cycle(rack, board)
    eventually(lambda: since_power_on(board)[-1:] == ["hung"])
    assert "installed" not in steps(board)


def test_a_reboot_failure_lasts_until_the_next_power_cycle(lab, server):
    board, rack = lab("b2g.sh", behaviour=replace(FAST, reboot_failure=1.0))
    cycle(rack, board)
    eventually(lambda: "hung" in steps(board))
    assert steps(board)[-2:] == ["rebooting", "hung"]
    assert not board.network_up
    assert board.image == "b2g"
    cycle(rack, board)
    eventually(lambda: board.agent.listening)


def test_power_can_be_cut_at_any_moment(lab, server, tmp_path):
    board, rack = lab(behaviour=replace(FAST, speed=5000))
    write_pxe(tmp_path, board.spec, server.imaging_url("b2g.sh"))
    for _ in range(60):
        cycle(rack, board)
    (tmp_path / "pxelinux.cfg").joinpath("01-02-00-00-00-00-01").unlink()
    board._bootable, board.image = True, "b2g"
    cycle(rack, board)
    eventually(lambda: not board.busy)
    assert "error" not in steps(board)
    assert since_power_on(board) == ["boot_loader", "storage_boot", "up"]


def test_giving_power_to_a_board_that_has_it_does_nothing(lab):
    board, rack = lab()
    rack.set_power(board.name, True)
    cycle(rack, board)
    assert steps(board)[:3] == ["power_on", "up", "power_off"]


def test_an_agent_port_that_is_taken_hangs_the_board_and_says_so(lab):
    board, rack = lab()
    rack.set_power(board.name, False)
    with socket.create_server((board.spec.address, COMMAND_PORT)):
        rack.set_power(board.name, True)
        eventually(lambda: "hung" in steps(board))
    assert f"{board.spec.address}:{COMMAND_PORT}" in details(board, "hung")[0]


def test_equal_seeds_make_equal_fates(lab, server):
    behaviour = replace(Behaviour(), speed=4000)

    def fate(seed):
        board, rack = lab("b2g.sh", behaviour=behaviour, seed=seed)
        cycle(rack, board)
        eventually(lambda: not board.busy)
        rack.stop()
        return [(entry.what, entry.detail) for entry in board.history if entry.what != "pxe_boot"]

    fates = []
    for seed in range(15):
        first, second = fate(seed), fate(seed)
        assert first == second
        fates.append(first)
    assert any(one != fates[0] for one in fates)


def test_failures_come_as_often_as_told():
    with rack_of(spec(), seed=7) as rack:
        board = rack.boards["board-1"]
        for probability in (0.05, 0.2):
            board.behaviour = replace(board.behaviour, boot_failure=probability)
            failures = sum(board._fails("boot_failure") for _ in range(4000))
            assert abs(failures / 4000 - probability) < 0.03


@pytest.mark.parametrize(
    ("url", "stage"),
    [
        ("http://10.0.0.1/scripts/b2g-second-stage.sh", "b2g"),
        ("http://10.0.0.1/scripts/android-second-stage.sh", "android"),
        ("http://10.0.0.1/scripts/raw-second-stage.sh", "raw"),
        ("http://10.0.0.1/scripts/maintenance-mode.sh", "maintenance"),
        ("http://10.0.0.1/scripts/selftest-second-stage.sh", "self-test"),
        ("http://10.0.0.1/scripts/Panda-Android-Self-Test.sh", "self-test"),
        ("http://b2g.example.com/android/scripts/other.sh", None),
        ("", None),
    ],
)
def test_a_second_stage_is_known_by_its_file_name(url, stage):
    assert second_stage(url) == stage


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("speed", 0),
        ("speed", -1),
        ("speed", float("nan")),
        ("boot_failure", 1.5),
        ("jitter", 2),
        ("reboot_seconds", -1),
    ],
)
def test_a_behaviour_that_makes_no_sense_is_refused(field, value):
    with pytest.raises(BadInput, match=field):
        Behaviour(**{field: value})


def test_real_boards_fail_as_often_as_they_did():
    assert Behaviour() == Behaviour(
        boot_failure=0.05,
        download_failure=0.05,
        extraction_failure=0.08,
        reboot_failure=0.08,
        ping_failure=0.02,
        self_test_failure=0.20,
    )


@pytest.mark.parametrize(
    "value",
    [
        "board",
        {},
        {"name": "x", "address": "127.0.0.1"},
        {"name": "x", "address": "127.0.0.1", "mac_address": "AA"},
        {"name": "x", "address": "127.0.0.1", "mac_address": "020000000001", "colour": "red"},
        {"name": 1, "address": "127.0.0.1", "mac_address": "020000000001"},
        {"name": "x", "address": "127.0.0.1", "mac_address": "020000000001", "agent": "yes"},
        {"name": "x", "address": None, "mac_address": "020000000001"},
    ],
)
def test_a_description_that_makes_no_sense_is_refused(value):
    with pytest.raises(BadInput):
        BoardSpec.from_json(value)


def test_a_description_in_json_may_leave_out_what_is_optional():
    fields = {"name": "x", "address": "127.0.0.1", "mac_address": "020000000001", "relay_info": None}
    assert BoardSpec.from_json(fields) == BoardSpec("x", "127.0.0.1", "020000000001")
