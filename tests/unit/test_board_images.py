# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What builds boards' images: the preseed, the lines of the self-test, and the command line of the live image."""

from __future__ import annotations

import binascii
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from mozpool import resources

SCRIPTS = resources.path("scripts")
HARDWARE = SCRIPTS / "board" / "hardware"
DESCRIPTIONS = sorted(HARDWARE.glob("*.json"))

needs_disk_tools = pytest.mark.skipif(
    not all(
        shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
        for name in ("sfdisk", "mcopy", "mkfs.vfat", "mke2fs", "syslinux")
    ),
    reason="needs fdisk, mtools, dosfstools, e2fsprogs and syslinux",
)


def run(script: str, *arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=env or None, check=False)


def description(tmp_path: Path, **changes: object) -> Path:
    """A description of a small board, changed."""
    value: dict[str, object] = {
        "hardware": "small",
        "preseed": {
            "size_mib": 16,
            "boot_loader": "u-boot",
            "partitions": [
                {"name": "boot", "file_system": "vfat", "size_mib": 8},
                {"name": "system", "file_system": "ext4", "size_mib": 4},
            ],
            "files": ["MLO"],
            "texts": {"uEnv.txt": ["a=1", "b=2"]},
            "boot_script": ["echo hello"],
        },
        "selftest": [{"name": "disk", "kind": "block_device", "device": "vda", "bytes": 1, "priority": 1}],
    }
    preseed = value["preseed"]
    assert isinstance(preseed, dict)
    for name, change in changes.items():
        if name in preseed or name == "unknown":
            preseed[name] = change
        else:
            value[name] = change
    file = tmp_path / "small.json"
    file.write_text(json.dumps(value))
    return file


# --- Self-tests ---


def test_the_lines_agree_with_the_descriptions():
    done = run("board/selftest-lines", "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert {file.stem for file in DESCRIPTIONS} == {file.stem for file in HARDWARE.glob("*.lines")}


def test_lines_are_sorted_by_priority_and_counted(tmp_path):
    tests = [
        {"name": "late", "kind": "boot_file", "file": "sub/MLO", "sha256": "0" * 64, "priority": 10},
        {
            "name": "the card",
            "kind": "register",
            "device": "mmcblk0",
            "register": "cid",
            "pattern": "03*",
            "priority": 2,
        },
        {"name": "table", "kind": "partition_table", "sha1": "1" * 40, "priority": 2, "verbose": True},
    ]
    file = description(tmp_path, selftest=tests)
    assert run("board/selftest-lines", file).returncode == 0
    assert (tmp_path / "small.lines").read_text().splitlines() == [
        "mozpool-selftest-1\tsmall\t3",
        "2\t0\tregister\tthe card\tmmcblk0\tcid\t03*",
        "2\t1\tpartition_table\ttable\t" + "1" * 40,
        "10\t0\tboot_file\tlate\tsub/MLO\t" + "0" * 64,
    ]


def test_lines_that_are_out_of_date_are_found(tmp_path):
    file = description(tmp_path)
    done = run("board/selftest-lines", "--check", file)
    assert done.returncode == 1
    assert "out of date" in done.stderr
    assert not (tmp_path / "small.lines").exists()


@pytest.mark.parametrize(
    ("test", "named"),
    [
        ({"kind": "nothing"}, "kind"),
        ({"priority": -1}, "priority"),
        ({"priority": True}, "priority"),
        ({"name": "a\tb"}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"device": "../vda"}, "device"),
        ({"bytes": "1"}, "bytes"),
        ({"verbose": 1}, "verbose"),
        ({"more": 1}, "more"),
        ({"kind": "boot_file", "file": "../x", "sha256": "0" * 64}, "test 1"),
    ],
)
def test_a_wrong_test_is_named(tmp_path, test, named):
    good = {"name": "disk", "kind": "block_device", "device": "vda", "bytes": 1, "priority": 1}
    done = run("board/selftest-lines", description(tmp_path, selftest=[{**good, **test}]))
    assert done.returncode == 2
    assert f"{named}" in done.stderr
    assert "test 1" in done.stderr


# --- Preseed ---


def on_boot(image: Path, name: str) -> bytes:
    return subprocess.run(["mcopy", "-i", f"{image}@@1M", f"::{name}", "-"], capture_output=True, check=True).stdout


@needs_disk_tools
def test_a_panda_like_card_has_its_boot_loader_and_scripts(tmp_path):
    (tmp_path / "MLO").write_bytes(b"the loader")
    done = run("build-preseed", description(tmp_path), tmp_path / "card.img", "--files", tmp_path)
    assert done.returncode == 0, done.stderr
    image = tmp_path / "card.img"
    assert image.stat().st_size == 16 << 20
    listed = subprocess.run(["mdir", "-b", "-i", f"{image}@@1M"], capture_output=True, text=True, check=True).stdout
    assert listed.split() == ["::/MLO", "::/uEnv.txt", "::/boot.scr"]
    assert on_boot(image, "MLO") == b"the loader"
    assert on_boot(image, "uEnv.txt") == b"a=1\nb=2\n"
    assert list(tmp_path.glob(".preseed*")) == []

    script = on_boot(image, "boot.scr")
    header, data = script[:64], script[64:]
    magic, check, _, size, _, _, data_check = struct.unpack(">7I", header[:28])
    assert (magic, size, data_check) == (0x27051956, len(data), binascii.crc32(data))
    assert check == binascii.crc32(header[:4] + bytes(4) + header[8:])
    assert header[28:32] == bytes([5, 2, 6, 0])  # Linux, ARM, script, not compressed
    assert data == struct.pack(">II", 11, 0) + b"echo hello\n"

    table = json.loads(
        subprocess.run(["/sbin/sfdisk", "-J", image], capture_output=True, text=True, check=True).stdout
    )["partitiontable"]
    assert [(row["start"], row["size"], row["type"], row.get("bootable")) for row in table["partitions"]] == [
        (2048, 16384, "c", True),
        (18432, 8192, "83", None),
    ]
    part = tmp_path / "part"
    part.write_bytes(image.read_bytes()[9 << 20 : 13 << 20])
    assert subprocess.run(["/sbin/e2fsck", "-fn", part], capture_output=True, check=False).returncode == 0


@needs_disk_tools
def test_the_virtual_disk_has_a_boot_sector_and_the_loader(tmp_path):
    images = [tmp_path / "a.img", tmp_path / "b.img"]
    for image in images:
        done = run("build-preseed", HARDWARE / "virtual.json", image)
        assert done.returncode == 0, done.stderr
    content = images[0].read_bytes()
    assert content == images[1].read_bytes()
    assert content[:440] == Path("/usr/lib/syslinux/mbr/mbr.bin").read_bytes().ljust(440, b"\0")[:440]
    assert content[510:512] == b"\x55\xaa"
    assert len(on_boot(images[0], "ldlinux.sys")) > 10_000
    assert b"LINUX vmlinuz" in on_boot(images[0], "syslinux.cfg")


def test_a_boot_loader_file_that_is_missing_is_named(tmp_path):
    done = run("build-preseed", description(tmp_path), tmp_path / "card.img")
    assert done.returncode == 1
    assert "MLO is missing" in done.stderr
    assert not (tmp_path / "card.img").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"size_mib": 12}, "preseed.size_mib is 12, and the partitions need 13"),
        ({"size_mib": "16"}, "preseed.size_mib"),
        ({"boot_loader": "grub"}, "preseed.boot_loader is 'grub'"),
        ({"partitions": []}, "preseed.partitions"),
        ({"partitions": [{"name": "a", "file_system": "ext4", "size_mib": 1}]}, "should be vfat"),
        ({"partitions": [{"name": "a", "file_system": "xfs", "size_mib": 1}]}, "preseed.partitions[1].file_system"),
        ({"files": ["../MLO"]}, "preseed.files"),
        ({"texts": {"a/b": []}}, "preseed.texts"),
        ({"texts": {"a": "text"}}, "preseed.texts.a"),
        ({"unknown": 1}, "unknown"),
        ({"preseed": None}, "no object preseed"),
    ],
)
def test_what_is_wrong_with_a_description_is_named(tmp_path, changes, named):
    done = run("build-preseed", description(tmp_path, **changes), tmp_path / "card.img")
    assert done.returncode == 2
    assert named in done.stderr


# --- Live image ---


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read"),
        ("nothing\n", "has no SSH key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "is a private key"),
    ],
)
def test_keys_that_are_none_are_refused(tmp_path, content, why):
    keys = tmp_path / "keys"
    if content is not None:
        keys.write_text(content)
    done = run("build-live-image", "--keys", keys, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert why in done.stderr


def test_a_machine_without_apt_is_told(tmp_path):
    done = run("build-live-image", "--output", tmp_path / "out", "--cache", tmp_path / "cache", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "There is no apt-cache here" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", ["build-live-image", "build-preseed", "board/selftest-lines"])
def test_help_is_short_and_tells_the_exit_status(script):
    done = run(script, "--help")
    assert done.returncode == 0
    assert "Exit status" in done.stdout
