# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The registry: the product's own backends, and those of another package that is really installed (on a path)."""

from __future__ import annotations

import configparser
import importlib
import logging
import sys
import threading
from pathlib import Path

import pytest

from mozpool.bmm.backends.fping import FpingProbe
from mozpool.bmm.backends.proxr import ProXRPower
from mozpool.bmm.backends.pxe import PXEBoot
from mozpool.bmm.backends.sut import SUTAgent
from mozpool.bmm.registry import BUILT_IN, DEFAULTS, Registry
from mozpool.errors import NoSuchBackend

OTHER_PACKAGE = '''
from mozpool.bmm.interfaces import Probe

built = []

class Door(Probe):
    """Knocks at the door."""

    def __init__(self, context):
        self.context = context
        built.append(self)

    def ping(self, device, deadline):
        return True

def broken(context):
    raise RuntimeError("no door")

def stranger(context):
    return object()
'''

ENTRY_POINTS = """
[mozpool.probe]
door = mozpool_other_package:Door
fping = mozpool_other_package:Door
broken = mozpool_other_package:broken
missing = mozpool_no_such_module:Door
stranger = mozpool_other_package:stranger

[mozpool.power]
door = mozpool_other_package:Door
"""


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """Install a package that brings backends; returns its module."""
    (tmp_path / "mozpool_other_package.py").write_text(OTHER_PACKAGE)
    info = tmp_path / "mozpool_other_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mozpool-other-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("mozpool_other_package")
    del sys.modules["mozpool_other_package"]


def test_the_defaults_are_the_old_boards_backends(context):
    registry = Registry(context)
    assert isinstance(registry.power(), ProXRPower)
    assert isinstance(registry.boot(), PXEBoot)
    assert isinstance(registry.probe(), FpingProbe)
    assert isinstance(registry.agent(), SUTAgent)


def test_a_backend_is_found_by_name_and_built_once(context):
    registry = Registry(context)
    assert registry.power("proxr") is registry.power() is registry.power("proxr")


def test_other_defaults_can_be_given(context, other_package):
    registry = Registry(context, {"probe": "door"})
    assert isinstance(registry.probe(), other_package.Door)
    assert isinstance(registry.power(), ProXRPower)


def test_an_unknown_name_lists_what_exists(context):
    with pytest.raises(NoSuchBackend, match=r"there is no probe backend 'nope'; there are: .*echo, .*fping") as caught:
        Registry(context).probe("nope")
    assert caught.value.field == "probe"


@pytest.mark.parametrize("interface", ["power", "boot", "agent"])
def test_every_interface_has_its_own_names(context, interface):
    with pytest.raises(NoSuchBackend, match=f"there is no {interface} backend 'fping'"):
        getattr(Registry(context), interface)("fping")


def test_another_package_can_add_a_backend(context, other_package):
    registry = Registry(context)
    door = registry.probe("door")
    assert isinstance(door, other_package.Door)
    assert door.context is context
    assert "door" in registry.names("probe")


def test_another_package_cannot_replace_one_of_ours_unnoticed(context, other_package, caplog):
    with caplog.at_level(logging.WARNING):
        registry = Registry(context)
    assert isinstance(registry.probe("fping"), FpingProbe)
    assert "the probe backend 'fping' of mozpool_other_package:Door is hidden by" in caplog.text


@pytest.mark.parametrize(
    ("interface", "name", "reason"),
    [
        ("probe", "broken", r"the probe backend 'broken' cannot be used: no door"),
        ("probe", "missing", r"the probe backend 'missing' cannot be used: No module named"),
        ("probe", "stranger", r"does not implement Probe"),
        ("power", "door", r"does not implement Power"),
    ],
)
def test_a_backend_that_is_no_good_is_an_error_with_a_reason(context, other_package, interface, name, reason):
    with pytest.raises(NoSuchBackend, match=reason):
        getattr(Registry(context), interface)(name)


def test_threads_that_ask_at_once_get_the_same_one(context, other_package):
    registry = Registry(context)
    barrier = threading.Barrier(8)
    found = []

    def ask() -> None:
        barrier.wait(5)
        found.append(registry.probe("door"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert len(other_package.built) == 1


def test_the_built_in_backends_are_those_of_the_package(context):
    """A bare checkout and an installed package offer the same."""
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    declared = {}
    for group, text in setup["options.entry_points"].items():
        if group.startswith("mozpool."):
            pairs = (line.partition("=") for line in text.strip().splitlines())
            declared[group.removeprefix("mozpool.")] = {name.strip(): value.strip() for name, _, value in pairs}
    assert declared == BUILT_IN
    assert all(name in BUILT_IN[interface] for interface, name in DEFAULTS.items())
