# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The scripts that run on boards, under busybox, against a real HTTP server that also misbehaves.

A board is a directory here. What only a kernel can do (mount, reboot, network) is stood in for by shell functions;
tests/lab/test_live_image.py runs the same scripts on virtual machines, where nothing is.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import random
import shutil
import socket
import subprocess
import tarfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mozpool import resources

BOARD = resources.path("scripts", "board")
SCRIPTS = sorted(BOARD.glob("*.sh"))

needs_busybox = pytest.mark.skipif(not shutil.which("busybox"), reason="needs busybox")
needs_disk_tools = pytest.mark.skipif(
    not (shutil.which("mcopy") and Path("/sbin/mkfs.vfat").exists() and Path("/sbin/debugfs").exists()),
    reason="needs mtools, dosfstools and e2fsprogs",
)


def _may_unshare() -> bool:
    """Whether a process may get a /dev of its own here."""
    program = shutil.which("unshare")
    if program is None:
        return False
    return subprocess.run([program, "-rm", "true"], capture_output=True, check=False).returncode == 0


# mount copies a boot partition out, and umount brings it back: files are partitions here, and tests may not be root.
# Others are empty when they are mounted to be filled. after_umount is for what disks do wrong.
STAND_INS = """
reboot() { echo "reboot $*" >>"$T/done"; exit 0; }
logger() { printf '%s\\n' "$*" >>"$T/syslog"; }
hostname() { echo "hostname $1" >>"$T/done"; }
insmod() { echo "insmod $1" >>"$T/done"; }
syslogd() { echo "syslogd $*" >>"$T/done"; }
ip() { :; }
udhcpc() { echo 10.0.0.9 >"$RUN/address"; printf '%s\\n' "$DHCP_NAME" >"$RUN/hostname"; }
nslookup() { cat "$T/nslookup"; }
mount() {
    [ "$1 $2" != "-t tmpfs" ] && [ "$1 $2" != "-t proc" ] && [ "$1 $2" != "-t sysfs" ] || return 0
    [ "$1 $2" != "-t devtmpfs" ] && [ "$1 $2" != "-t devpts" ] || return 0
    M_TYPE=$2
    M_OPTION=
    [ "$3" != -o ] || { M_OPTION=$4; shift 2; }
    M_DEVICE=$3
    M_DIR=$4
    echo "mount $M_TYPE ${M_DEVICE##*/}${M_OPTION:+ $M_OPTION}" >>"$T/done"
    [ "$M_TYPE" != vfat ] || mcopy -s -n -i "$M_DEVICE" '::*' "$M_DIR"
    [ "$M_TYPE $M_OPTION" != "ext4 ro" ] || /sbin/debugfs -R "rdump / $M_DIR" "$M_DEVICE" 2>/dev/null
}
after_umount() { :; }
umount() {
    if [ "$M_OPTION" = ro ]; then
        :
    elif [ "$M_TYPE" = vfat ]; then
        for path in $(mdir -b -a -i "$M_DEVICE" ::/); do
            [ -e "$M_DIR/${path#::/}" ] || mdeltree -i "$M_DEVICE" "$path"
        done
        for path in "$M_DIR"/*; do
            [ "${path##*/}" = ldlinux.sys ] || mcopy -s -o -i "$M_DEVICE" "$path" ::/ || return 1
        done
    else
        /sbin/mke2fs -q -F -d "$M_DIR" "$M_DEVICE" || return 1
    fi
    find "$M_DIR" -mindepth 1 -maxdepth 1 -exec rm -rf '{}' +
    echo "umount ${M_DEVICE##*/}" >>"$T/done"
    after_umount "${M_DEVICE##*/}"
}
"""


class Server(ThreadingHTTPServer):
    """Serves ``files``; ``faults[path]`` are taken one by one by the GET requests of a path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.requests: list[tuple[str, str, str | None]] = []
        self.tokens: list[tuple[str, str | None]] = []
        self.redirects: dict[str, str] = {}
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def events(self) -> list[str]:
        return [path.split("/")[-2] for method, path, _ in self.requests if "/event/" in path]

    def ranges(self, path: str) -> list[str | None]:
        """The Range of each GET of this path."""
        return [wanted for method, asked, wanted in self.requests if method == "GET" and asked == path]


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on standard error."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.close_connection = True
        wanted = self.headers["Range"]
        self.server.requests.append((self.command, self.path, wanted))
        self.server.tokens.append((self.path, self.headers["Mozpool-Boot-Token"]))
        if self.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path] + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        faults = self.server.faults[self.path]
        fault = faults.pop(0) if faults and self.command == "GET" else ""
        if fault == "drop":
            return
        if fault.isdigit():
            self._send(int(fault), b"", 0)
            return
        content = b"{}" if "/event/" in self.path else self.server.files.get(self.path)
        if content is None:
            self._send(404, b"", 0)
            return
        status, body = 200, content
        if wanted and fault != "no range":
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self._send(416, b"", 0)
                return
            status, body = 206, content[start:]
        length = len(body)
        if fault == "wrong":
            body = bytes(length)
        if fault in ("half", "half, no length", "stall"):
            body = body[: length // 2]
        if fault == "empty":
            body, length = b"", 0
        self._send(status, body, None if "no length" in fault else length)
        if fault == "stall":
            self.wfile.flush()
            self.server.released.wait(60)

    def _send(self, status: int, body: bytes, length: int | None) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


class Board:
    """A board in a directory, whose server is ``server``."""

    def __init__(self, path: Path, server: Server) -> None:
        self.path = path
        self.root = path / "root"
        self.server = server
        for folder in ("dev", "etc", "lib/mozpool", "proc/sys/vm", "root/.ssh", "run/mozpool", "sys", "tmp"):
            (self.root / folder).mkdir(parents=True)
        shutil.copy(BOARD / "mozpool.sh", self.root / "lib/mozpool")
        (path / "stand-ins").write_text(STAND_INS)
        self.write("run/mozpool/device", "panda-1\n")
        self.memory(1000)
        self.arguments()

    def write(self, name: str, text: str) -> None:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def arguments(self, *more: str) -> None:
        """Set the kernel's command line."""
        url = f"mobile-imaging-url={self.server.url}/scripts/x-second-stage.sh"
        self.write("proc/cmdline", " ".join(["quiet", url, "mozpool-disk=/dev/vda", *more]) + "\n")

    def memory(self, mib: int) -> None:
        self.write("proc/meminfo", f"MemTotal: 9999999 kB\nMemAvailable: {mib * 1024} kB\n")

    def boot_config(self, **values: object) -> None:
        self.server.files["/api/device/panda-1/bootconfig/"] = json.dumps(values).encode()

    def shell(self, text: str, name: str = "test.sh", **env: str) -> subprocess.CompletedProcess[str]:
        """Run shell text on the board, with the stand-ins."""
        variables = {
            "PATH": f"{os.environ['PATH']}:/sbin:/usr/sbin",
            "T": str(self.path),
            "MOZPOOL_ROOT": str(self.root),
            "MOZPOOL_FIRST_PAUSE": "0",
            "MOZPOOL_FAILURE_PAUSE": "0",
            "MOZPOOL_TRIES": "3",
            "MTOOLS_SKIP_CHECK": "1",
            **env,
        }
        return subprocess.run(
            ["busybox", "sh", "-c", f'. "$T/stand-ins"; {text}', name],
            env=variables,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def run(self, script: str, before: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """Run one of the scripts as the board would, after more stand-ins."""
        return self.shell(f'{before} . "{BOARD / script}"', script, **env)

    def library(self, text: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run text after mozpool.sh."""
        return self.shell(f'. "$MOZPOOL_ROOT/lib/mozpool/mozpool.sh"; {text}', **env)

    def _lines(self, name: str) -> list[str]:
        file = self.path / name
        return file.read_text().splitlines() if file.exists() else []

    @property
    def done(self) -> list[str]:
        return self._lines("done")

    @property
    def syslog(self) -> list[str]:
        return self._lines("syslog")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def board(tmp_path, server):
    return Board(tmp_path, server)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- All of them ---


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    command = ["shellcheck", "-s", "sh", "-x", "-P", str(BOARD.parent.parent), str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@needs_busybox
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_busybox_understands_it(script):
    done = subprocess.run(["busybox", "sh", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- JSON ---


def read_json(board: Board, text: str | bytes, key: str = "k") -> subprocess.CompletedProcess[str]:
    (board.path / "json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return board.library(f'json_value {key} <"$T/json"')


JSON_VALUES = {
    '{"k": "v"}': "v",
    '{"j":"x","k":"v","l":"y"}': "v",
    ' \n{ "k" : "v" }\n ': "v",
    '{"k": ""}': "",
    '{"k": "first", "k": "last"}': "last",
    '{"k": 12}': "12",
    '{"k": -0.5e+3}': "-0.5e+3",
    '{"k": true}': "true",
    '{"o": {"k": "inner"}, "k": "outer"}': "outer",
    '{"k": "outer", "o": {"k": "inner"}}': "outer",
    '{"l": [{"k": 1}, [], {}, "]"], "k": "v"}': "v",
    r'{"k": "a\"b\\c\/d"}': 'a"b\\c/d',
    r'{"k": "a\tb\u0041\u00e9\u20ac\ud83d\ude00"}': "a\tbAé€😀",
    '{"k": "é€😀"}': "é€😀",
    r'{"\u006b": "v"}': "v",
    '{"k": "}{][,:"}': "}{][,:",
    '{"k": "$(reboot) `reboot` %s"}': "$(reboot) `reboot` %s",
}


@needs_busybox
@pytest.mark.parametrize("text", JSON_VALUES)
def test_json_values_are_read(board, text):
    done = read_json(board, text)
    assert (done.returncode, done.stdout, done.stderr) == (0, JSON_VALUES[text] + "\n", "")


@needs_busybox
@pytest.mark.parametrize("text", ["{}", '{"j": "k"}', '{"o": {"k": "inner"}}', '{"k": null}', '{"kk": 1}'])
def test_a_json_key_that_is_not_there_is_status_1(board, text):
    done = read_json(board, text)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@needs_busybox
@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '"k"',
        "<html>",
        '{"k": "v"',
        '{"k": "v"} x',
        '{"k": "v",}',
        '{"k" "v"}',
        "{k: 1}",
        "{'k': 1}",
        '{"k": tru}',
        '{"k": 01}',
        '{"k": "v}',
        '{"k": "a\nb"}',
        r'{"k": "\x"}',
        r'{"k": "\u12g4"}',
        r'{"k": "\u0000"}',
        r'{"k": "\ud83d"}',
        r'{"k": "\ude00"}',
        '{"k": {}}',
        '{"k": ["v"]}',
        '{"j": ' + "[" * 60 + "]" * 60 + ', "k": 1}',
    ],
)
def test_what_is_no_such_json_is_status_2_and_says_why(board, text):
    done = read_json(board, text)
    assert (done.returncode, done.stdout) == (2, "")
    assert "json" in done.stderr.lower() or "neither a text nor a number" in done.stderr


@needs_busybox
def test_random_json_is_read_as_python_reads_it(board):
    rng = random.Random(1)
    letters = 'ab"\\/{}[]:, \t\n\u00e9\u20ac\U0001f600'
    script, expected = [], []
    for number in range(60):
        value = "".join(rng.choice(letters) for _ in range(rng.randrange(12))) + "."
        other = {"x": [value, {"k": value}, None, 1.5]}
        text = json.dumps(
            {"a": other, "k": value, "z": other}, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1])
        )
        (board.path / f"{number}.json").write_text(text)
        script.append(f'json_value k <"$T/{number}.json" || exit')
        expected.append(value)
    done = board.library("\n".join(script))
    assert (done.returncode, done.stdout, done.stderr) == (0, "".join(f"{value}\n" for value in expected), "")


# --- What is shared ---


@needs_busybox
def test_the_last_of_equal_kernel_arguments_counts_and_none_is_a_failure(board):
    board.arguments("a=1", "aa=2", "a=x=y", "b=")
    done = board.library("kernel_argument a; kernel_argument b; kernel_argument c || echo none; server; partition 2")
    assert done.stdout == f"x=y\n\nnone\n{board.server.url}\n{board.root}/dev/vda2\n"


@needs_busybox
def test_cards_have_a_p_before_the_number_and_are_the_default(board):
    board.write("proc/cmdline", "quiet\n")
    assert board.library("disk; partition 1").stdout == f"{board.root}/dev/mmcblk0\n{board.root}/dev/mmcblk0p1\n"


@needs_busybox
def test_an_event_is_told_again_until_the_server_takes_it(board):
    board.server.faults["/api/device/panda-1/event/maint_mode/"] = ["500", "drop"]
    done = board.library("event maint_mode")
    assert done.returncode == 0
    assert board.server.events == ["maint_mode"] * 3
    assert "500" in done.stderr
    assert board.syslog[-1] == "-p local0.info -t panda-1 test.sh -- event maint_mode"


@needs_busybox
def test_an_event_that_nobody_takes_ends_the_script(board):
    board.server.faults["/api/device/panda-1/event/x/"] = ["500"] * 9
    done = board.library("event x; event y")
    assert done.returncode == 1
    assert board.server.events == ["x"] * 3
    assert "could not tell the server the event x" in done.stderr


@needs_busybox
def test_an_event_of_an_unknown_device_is_not_told_twice(board):
    board.server.faults["/api/device/panda-1/event/x/"] = ["404"]
    assert board.library("event x").returncode == 1
    assert board.server.events == ["x"]


@needs_busybox
@pytest.mark.parametrize("fault", ["half", "stall"])
def test_a_download_goes_on_where_it_broke_off(board, fault):
    content = random.Random(2).randbytes(200_000)
    board.server.files["/f"] = content
    board.server.faults["/f"] = [fault]
    done = board.library(f'fetch {board.server.url}/f "$T/f" {sha256(content)}', MOZPOOL_STALL_LIMIT="1")
    assert done.returncode == 0, done.stderr
    assert (board.path / "f").read_bytes() == content
    first, second = board.server.ranges("/f")
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").rstrip("-")) <= 100_000


@needs_busybox
def test_a_download_starts_again_where_the_server_cannot_go_on(board):
    content = random.Random(2).randbytes(200_000)
    board.server.files["/f"] = content
    board.server.faults["/f"] = ["half", "no range"]
    done = board.library(f'fetch {board.server.url}/f "$T/f" {hashlib.md5(content).hexdigest()}')
    assert done.returncode == 0, done.stderr
    assert (board.path / "f").read_bytes() == content


@needs_busybox
def test_a_download_with_a_wrong_checksum_is_tried_once_more(board):
    board.server.files["/f"] = b"right"
    board.server.faults["/f"] = ["wrong"]
    done = board.library(f'fetch {board.server.url}/f "$T/f" {sha256(b"right")}')
    assert done.returncode == 0, done.stderr
    assert (board.path / "f").read_bytes() == b"right"


@needs_busybox
def test_a_download_whose_checksum_stays_wrong_fails_and_leaves_nothing(board):
    board.server.files["/f"] = b"other"
    done = board.library(f'fetch {board.server.url}/f "$T/f" {sha256(b"right")} || echo "$WHY"')
    assert f"its checksum is {sha256(b'other')} and should be {sha256(b'right')}" in done.stdout
    assert len(board.server.ranges("/f")) == 2
    assert not (board.path / "f").exists()


@needs_busybox
@pytest.mark.parametrize(("faults", "calls"), [(["404"], 1), (["500"] * 9, 3), (["half"] * 9, 3), (["429", "429"], 3)])
def test_what_cannot_be_downloaded_is_given_up(board, faults, calls):
    board.server.files["/f"] = b"content" if "429" in faults else b"c"
    board.server.faults["/f"] = list(faults)
    done = board.library(f'fetch {board.server.url}/f "$T/f" && echo got it')
    assert len(board.server.ranges("/f")) == calls
    assert ("got it" in done.stdout) == ("429" in faults)
    assert (board.path / "f").exists() == ("429" in faults)


@needs_busybox
def test_pauses_grow_and_have_an_end(board):
    done = board.library(
        'sleep() { echo "$1"; }; nothing() { return 1; }; WHY=x; persist nothing',
        MOZPOOL_TRIES="9",
        MOZPOOL_FIRST_PAUSE="1",
    )
    assert done.stdout.split() == ["1", "2", "4", "8", "16", "30", "30", "30"]


@needs_busybox
def test_the_boot_config_is_read_once(board):
    board.boot_config(a="1", b="two words")
    done = board.library("boot_config a; boot_config b; boot_config c || echo $?")
    assert done.stdout == "1\ntwo words\n1\n"
    assert len(board.server.requests) == 1


TOKEN = "-vT3XnE7Yk0b_Wd2hQ9uLp4R"


@needs_busybox
def test_the_token_of_the_boot_goes_to_the_server_and_to_nobody_else(board):
    board.arguments(f"mozpool-token={TOKEN}")
    board.boot_config(k="v")
    board.server.files["/images/x"] = b"x"
    assert board.library('event raw_writing; boot_config k; fetch "$(server)/images/x" "$T/x"').returncode == 0
    board.library(f'fetch http://localhost:{board.server.server_port}/api/device/panda-1/bootconfig/ "$T/x"')
    sent = board.server.tokens
    event, config = "/api/device/panda-1/event/raw_writing/", "/api/device/panda-1/bootconfig/"
    assert sent == [(event, TOKEN), (config, TOKEN), ("/images/x", None), (config, None)]
    assert not any(TOKEN in line for line in board.syslog)


@needs_busybox
def test_the_token_goes_along_to_the_server_that_acts_on_the_board_now(board):
    other = Server()
    thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        path = "/api/device/panda-1/event/raw_writing/"
        board.server.redirects[path] = other.url
        board.arguments(f"mozpool-token={TOKEN}")
        assert board.library("event raw_writing").returncode == 0
        assert other.tokens == [(path, TOKEN)]
    finally:
        other.shutdown()
        thread.join()
        other.server_close()


@needs_busybox
@pytest.mark.parametrize("argument", ["mozpool-token=", "mozpool-token=a;b", "mozpool-token=%TOKEN%", "quiet"])
def test_what_is_no_token_is_not_sent(board, argument):
    board.arguments(argument)
    assert board.library("event raw_writing").returncode == 0
    assert [token for _, token in board.server.tokens] == [None]


@needs_busybox
@pytest.mark.skipif(not _may_unshare(), reason="needs user namespaces")
def test_syslog_lines_carry_host_name_tag_and_facility(board):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(30)
        port = listener.getsockname()[1]
        board.arguments(f"syslog-server=127.0.0.1:{port}")
        # syslogd listens on /dev/log, so /dev must be its own.
        script = f"""
            mount -t tmpfs tmpfs /dev && : >/dev/null || exit 3
            MOZPOOL_ROOT= . {board.root}/lib/mozpool/mozpool.sh
            ROOT= RUN={board.root}/run/mozpool
            kernel_argument() {{ [ "$1" = syslog-server ] && echo 127.0.0.1:{port}; }}
            start_syslog || exit 4
            say "a line - with 'quotes' and %s"
            kill "$(cat /var/run/syslogd.pid)"
        """
        done = subprocess.run(
            ["unshare", "-rm", "busybox", "sh", "-c", script, "x.sh"],
            env={"PATH": os.environ["PATH"], "MOZPOOL_ROOT": str(board.root)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
        line = listener.recv(2000)
    assert line.startswith(b"<134>"), (line, done.stderr)  # local0, info
    assert line.rstrip(b"\n")[len("<134>Nov 24 03:36:04 ") :] == b"panda-1 x.sh: a line - with 'quotes' and %s"


# --- raw ---

DISK = random.Random(3).randbytes(3_000_000)
PACKED = {
    "d.img": DISK,
    "d.img.gz": gzip.compress(DISK, 1),
    "d.img.bz2": bz2.compress(DISK, 1),
    "d.img.xz": lzma.compress(DISK, preset=0),
}


def raw(board: Board, name: str = "d.img.gz", content: bytes | None = None, **config: object) -> Path:
    """Prepare an installation; returns the disk, which has old content."""
    board.server.files[f"/images/{name}"] = PACKED[name] if content is None else content
    board.boot_config(image_url=f"{board.server.url}/images/{name}", **config)
    disk = board.root / "dev/vda"
    disk.write_bytes(b"old!" * 1_000_000)
    return disk


RAW_EVENTS = ["raw_downloading", "raw_writing", "raw_rebooting"]


@needs_busybox
@pytest.mark.parametrize("memory", [1000, 1], ids=["in memory", "streamed"])
@pytest.mark.parametrize("name", PACKED)
def test_raw_writes_the_image_and_boots_anew(board, name, memory):
    disk = raw(board, name, sha256=sha256(PACKED[name]).upper(), size=len(DISK))
    board.memory(memory)
    done = board.run("raw-second-stage.sh")
    assert done.returncode == 0, done.stderr
    content = disk.read_bytes()
    assert content[: len(DISK)] == DISK
    assert len(content) == 4_000_000
    assert board.server.events == RAW_EVENTS
    assert board.done == ["reboot -f"]
    assert ("writing while downloading" in done.stderr) == (memory == 1)


@needs_busybox
def test_raw_refuses_a_wrong_checksum_before_it_writes(board):
    disk = raw(board, sha256=sha256(b"other"))
    done = board.run("raw-second-stage.sh")
    assert done.returncode == 1
    assert "should be " + sha256(b"other") in done.stderr
    assert disk.read_bytes() == b"old!" * 1_000_000
    assert board.server.events == RAW_EVENTS[:1]
    assert board.done == []


@needs_busybox
@pytest.mark.parametrize(
    ("name", "faults", "config"),
    [
        ("d.img.gz", [], {"sha256": sha256(b"other")}),
        ("d.img.gz", ["", "half"], {}),
        ("d.img.gz", ["", "half"], {"sha256": sha256(PACKED["d.img.gz"])}),
        ("d.img.gz", ["no length", "half, no length"], {}),
        ("d.img.gz", ["", "wrong"], {}),
        ("d.img.gz", [], {"size": 2_999_999}),
        ("d.img.bz2", ["no length", "half, no length"], {}),
        ("d.img", ["", "half"], {}),
        ("d.img", ["", "half, no length"], {}),
        ("d.img", ["no length", "half, no length"], {"size": len(DISK)}),
        ("d.img", ["no length", "half, no length"], {"sha256": sha256(DISK)}),
        ("d.img.xz", ["no length", "half, no length"], {"sha256": sha256(PACKED["d.img.xz"])}),
        ("d.img.xz", ["no length", "empty"], {"sha256": sha256(b"")}),
    ],
)
def test_raw_never_reports_success_of_a_stream_that_went_wrong(board, name, faults, config):
    raw(board, name, **config)
    board.memory(1)
    board.server.faults[f"/images/{name}"] = list(faults)  # the first asks for the size
    done = board.run("raw-second-stage.sh")
    assert done.returncode == 1
    assert "failed: " in done.stderr
    assert board.server.events == RAW_EVENTS[:2]
    assert board.done == []


@needs_busybox
def test_raw_unpacks_a_file_without_checksum_before_it_writes(board):
    disk = raw(board, content=PACKED["d.img.gz"][:-100])
    done = board.run("raw-second-stage.sh")
    assert done.returncode == 1
    assert "cannot be unpacked" in done.stderr
    assert disk.read_bytes() == b"old!" * 1_000_000
    assert board.server.events == RAW_EVENTS[:1]


@needs_busybox
@pytest.mark.parametrize(
    ("name", "faults", "config", "why"),
    [
        ("d.img", ["", "half, no length"], {}, "d.img has 1500000 bytes and should have 3000000"),
        ("d.img", [], {"size": 2_999_999}, "d.img has 3000000 bytes and should have 2999999"),
        ("d.img.gz", [], {"size": 2_999_999}, "d.img.gz has 3000000 bytes and should have 2999999"),
    ],
)
def test_raw_without_checksum_compares_the_size_before_it_writes(board, name, faults, config, why):
    disk = raw(board, name, **config)
    board.server.faults[f"/images/{name}"] = list(faults)
    done = board.run("raw-second-stage.sh")
    assert done.returncode == 1
    assert why in done.stderr
    assert disk.read_bytes() == b"old!" * 1_000_000
    assert board.server.events == RAW_EVENTS[:1]


@needs_busybox
def test_raw_writes_no_plain_image_whose_end_nobody_knows(board):
    disk = raw(board, "d.img")
    board.server.faults["/images/d.img"] = ["no length"] * 9
    done = board.run("raw-second-stage.sh")
    assert done.returncode == 1
    assert "how long is " in done.stderr
    assert disk.read_bytes() == b"old!" * 1_000_000
    assert board.server.events == RAW_EVENTS[:1]


@needs_busybox
@pytest.mark.parametrize(
    ("name", "config"),
    [("d.img", {"size": len(DISK)}), ("d.img", {"sha256": sha256(DISK)}), ("d.img.gz", {}), ("d.img.bz2", {})],
)
def test_raw_needs_no_promised_size_where_the_end_is_known_otherwise(board, name, config):
    disk = raw(board, name, **config)
    board.server.faults[f"/images/{name}"] = ["no length"] * 9
    done = board.run("raw-second-stage.sh")
    assert done.returncode == 0, done.stderr
    assert disk.read_bytes()[: len(DISK)] == DISK
    assert board.server.events == RAW_EVENTS


@needs_busybox
def test_the_size_of_a_redirection_is_not_that_of_the_file(board):
    moved = "  HTTP/1.1 302 Found\r\n  Content-Length: 154\r\n  Location: /x\r\n"
    for file, size in {"  content-length: 12\r\n": "12\n", "  Transfer-Encoding: chunked\r\n": ""}.items():
        board.write("run/mozpool/headers", f"{moved}  HTTP/1.1 200 OK\r\n{file}")
        assert board.library("_promised_size").stdout == size


@needs_busybox
@pytest.mark.parametrize("name", ["d.img.zst", "d.IMG.GZ", "d.img.gz.zip", "d.zip", "d.tar", "d.tar.gz", "d", "img"])
def test_raw_refuses_what_it_cannot_unpack_before_it_tells_anything(board, name):
    disk = raw(board, name, PACKED["d.img.gz"], sha256=sha256(PACKED["d.img.gz"]))
    done = board.run("raw-second-stage.sh")
    assert done.returncode == 1
    assert f"/images/{name} is neither .img nor .img.gz, .img.bz2 or .img.xz" in done.stderr
    assert disk.read_bytes() == b"old!" * 1_000_000
    assert board.server.events == []


@needs_busybox
def test_raw_knows_an_image_by_its_name_before_the_question_mark(board):
    disk = raw(board, "d.img.gz")
    board.server.files["/images/d.img.gz?as=d.zip"] = board.server.files.pop("/images/d.img.gz")
    board.boot_config(image_url=f"{board.server.url}/images/d.img.gz?as=d.zip")
    done = board.run("raw-second-stage.sh")
    assert done.returncode == 0, done.stderr
    assert disk.read_bytes()[: len(DISK)] == DISK


@needs_busybox
def test_raw_refuses_xz_without_checksum_as_it_would_not_see_damage(board):
    damaged = bytearray(PACKED["d.img.xz"])
    damaged[1_500_000] ^= 1
    disk = raw(board, "d.img.xz", bytes(damaged), size=len(DISK))
    done = board.run("raw-second-stage.sh")
    assert done.returncode == 1
    assert "no sha256: without it nobody sees that a .img.xz is damaged" in done.stderr
    assert disk.read_bytes() == b"old!" * 1_000_000
    assert board.server.events == []


@needs_busybox
def test_raw_finds_a_disk_that_does_not_keep_what_is_written(board):
    raw(board)
    done = board.run(
        "raw-second-stage.sh", before='sync() { printf x | dd of="$target" bs=1 seek=2999999 conv=notrunc; };'
    )
    assert done.returncode == 1
    assert "does not hold what was written" in done.stderr
    assert board.server.events == RAW_EVENTS[:2]


@needs_busybox
def test_raw_fails_on_a_full_disk(board):
    disk = raw(board)
    disk.unlink()
    disk.symlink_to("/dev/full")
    done = board.run("raw-second-stage.sh")
    assert done.returncode == 1
    assert "could not write" in done.stderr
    assert board.server.events == RAW_EVENTS[:2]


@needs_busybox
@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, "has no image_url"),
        ({"image_url": {}}, "neither a text nor a number"),
        ({"image_url": "http://x/", "sha256": "abc"}, "no SHA-256"),
        ({"image_url": "http://x/", "sha256": "a" * 32}, "no SHA-256"),
        ({"image_url": "http://x/", "size": "1 MB"}, "no number of bytes"),
    ],
)
def test_raw_says_what_is_wrong_with_the_boot_config(board, config, why):
    board.boot_config(**config)
    done = board.run("raw-second-stage.sh")
    assert done.returncode == 1
    assert why in done.stderr
    assert board.server.events == []


@needs_busybox
def test_raw_says_that_an_image_is_not_there(board):
    raw(board)
    del board.server.files["/images/d.img.gz"]
    done = board.run("raw-second-stage.sh")
    assert done.returncode == 1
    assert "404" in done.stderr
    assert board.server.events == RAW_EVENTS[:1]


# --- b2g and android ---

CONTENT = {
    "boot": {"vmlinuz": b"kernel" * 1000, "sub/initrd.img": b"ram" * 1000, "ldlinux.sys": b"not this one"},
    "system": {"build.prop": b"version=1\n", "bin/agent": b"#!/bin/sh\n"},
    "userdata": {"local/file": b"user"},
}


def tarball(part: str, suffix: str) -> bytes:
    packed = io.BytesIO()
    mode = {"tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}[suffix]
    with tarfile.open(fileobj=packed, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in CONTENT[part].items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def partitions(board: Board, suffix: str = "tar.gz", sums: bool = True) -> None:
    """Three partitions, the first with old files and a boot loader; and the tarballs on the server."""
    for number in (1, 2, 3):
        with (board.root / f"dev/vda{number}").open("wb") as file:
            file.truncate(4 << 20)
    boot = board.root / "dev/vda1"
    subprocess.run(["/sbin/mkfs.vfat", str(boot)], check=True, capture_output=True)
    for name in ("ldlinux.sys", "old", "MLO"):
        (board.path / name).write_bytes(f"the old {name}".encode())
        subprocess.run(["mcopy", "-i", str(boot), str(board.path / name), f"::{name}"], check=True)
    lines = []
    for part in CONTENT:
        content = tarball(part, suffix)
        board.server.files[f"/b/{part}.{suffix}"] = content
        lines.append(f"{sha256(content)}  {part}.{suffix}\n")
    if sums:
        board.server.files["/b/SHA256SUMS"] = "".join(lines).encode()


def on_boot(board: Board) -> dict[str, bytes]:
    out = board.path / "out"
    out.mkdir()
    subprocess.run(["mcopy", "-s", "-n", "-i", str(board.root / "dev/vda1"), "::*", str(out)], check=True)
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def in_ext4(board: Board, number: int, path: str) -> bytes:
    image = str(board.root / f"dev/vda{number}")
    return subprocess.run(["/sbin/debugfs", "-R", f"cat {path}", image], capture_output=True, check=True).stdout


@needs_busybox
@needs_disk_tools
@pytest.mark.parametrize(
    ("kind", "key", "suffix", "sums", "memory"),
    [
        ("b2g", "b2gbase", "tar.gz", True, 1000),
        ("b2g", "b2gbase", "tar.xz", True, 1000),
        ("b2g", "b2gbase", "tgz", True, 0),
        ("b2g", "b2gbase", "tgz", False, 1000),
        ("android", "androidbase", "tar.bz2", True, 1000),
        ("android", "b2gbase", "tar.gz", False, 0),
    ],
)
def test_tarballs_are_installed(board, kind, key, suffix, sums, memory):
    partitions(board, suffix, sums)
    board.memory(memory)
    board.boot_config(**{key: f"{board.server.url}/b/"})
    done = board.run(f"{kind}-second-stage.sh")
    assert done.returncode == 0, done.stderr
    assert board.server.events == [f"{kind}_downloading", f"{kind}_extracting", f"{kind}_rebooting"]
    assert on_boot(board) == {
        "ldlinux.sys": b"the old ldlinux.sys",
        "MLO": b"the old MLO",
        "vmlinuz": CONTENT["boot"]["vmlinuz"],
        "sub/initrd.img": CONTENT["boot"]["sub/initrd.img"],
    }
    assert in_ext4(board, 2, "bin/agent") == b"#!/bin/sh\n"
    assert in_ext4(board, 3, "local/file") == b"user"
    assert board.done == [
        *("mount vfat vda1", "umount vda1", "mount vfat vda1 ro", "umount vda1"),
        *("mount ext4 vda2", "umount vda2", "mount ext4 vda2 ro", "umount vda2"),
        *("mount ext4 vda3", "umount vda3", "mount ext4 vda3 ro", "umount vda3"),
        "reboot -f",
    ]
    assert "compared 2 files on " in done.stderr
    assert ("unpacking while downloading" in done.stderr) == (memory == 0)


@needs_busybox
@needs_disk_tools
def test_android_has_a_default_on_the_kernels_command_line(board):
    partitions(board)
    board.boot_config()
    board.arguments(f"mozpool-base={board.server.url}/b")
    assert board.run("android-second-stage.sh").returncode == 0
    assert board.server.events[-1] == "android_rebooting"


@needs_busybox
@needs_disk_tools
@pytest.mark.parametrize(
    ("memory", "path", "content", "events"),
    [
        (1000, "/b/system.tar.gz", b"damaged", 1),
        (0, "/b/system.tar.gz", b"damaged", 2),
        (0, "/b/userdata.tar.gz", tarball("system", "tar.gz"), 2),
        (1000, "/b/userdata.tar.gz", None, 1),
        (1000, "/b/SHA256SUMS", b"abc boot.tar.gz\n", 1),
        (1000, "/b/SHA256SUMS", b"abc other.tar.gz\n", 1),
        (1000, "/b/SHA256SUMS", b"", 1),
        (0, "/b/SHA256SUMS", b"\n", 1),
    ],
)
def test_a_damaged_or_missing_tarball_is_no_success(board, memory, path, content, events):
    partitions(board)
    board.memory(memory)
    board.boot_config(b2gbase=f"{board.server.url}/b")
    if content is None:
        del board.server.files[path]
    else:
        board.server.files[path] = content
    done = board.run("b2g-second-stage.sh")
    assert done.returncode == 1
    assert "failed: " in done.stderr
    assert board.server.events == ["b2g_downloading", "b2g_extracting"][:events]
    assert "reboot -f" not in board.done


@needs_busybox
@needs_disk_tools
@pytest.mark.parametrize("memory", [1000, 0], ids=["in memory", "streamed"])
@pytest.mark.parametrize(
    ("device", "damage", "found"),
    [
        ("vda1", 'mdel -i "$M_DEVICE" ::vmlinuz', "vmlinuz"),
        ("vda2", 'sed -i s/version=1/version=2/ "$M_DEVICE"', "build.prop"),
        ("vda3", '/sbin/debugfs -w -R "rm local/file" "$M_DEVICE"', "local/file"),
        ("vda3", 'dd if=/dev/zero of="$M_DEVICE" bs=1M count=4', ""),
    ],
)
def test_a_partition_that_does_not_keep_what_was_unpacked_is_found(board, memory, device, damage, found):
    partitions(board)
    board.memory(memory)
    board.boot_config(b2gbase=f"{board.server.url}/b")
    # Once: it is unmounted again after the comparison.
    before = f'after_umount() {{ [ "$1 $M_OPTION" != "{device} " ] || {{ {damage}; }} >/dev/null 2>&1; }};'
    done = board.run("b2g-second-stage.sh", before=before)
    assert done.returncode == 1
    assert f"dev/{device} does not hold what was unpacked: " in done.stderr
    assert found in done.stderr.splitlines()[-1]
    assert board.server.events == ["b2g_downloading", "b2g_extracting"]
    assert "reboot -f" not in board.done


@needs_busybox
@needs_disk_tools
@pytest.mark.parametrize(
    ("failing", "why"),
    [
        ('umount() { [ "${M_DEVICE##*/}" != vda2 ]; };', "cannot unmount "),
        ('mount() { [ "$3 $4" != "-o ro" ] || return 1; M_TYPE=$2 M_DEVICE=$3 M_DIR=$4; };', "cannot mount "),
        (
            'tar() { case $* in *--to-command*) cat >/dev/null; return 1 ;; *) command tar "$@" ;; esac; };',
            "does not hold what was unpacked: its files were not all listed",
        ),
    ],
    ids=["umount", "mount again", "half a list"],
)
def test_what_cannot_be_compared_is_no_success(board, failing, why):
    partitions(board)
    board.boot_config(b2gbase=f"{board.server.url}/b")
    done = board.run("b2g-second-stage.sh", before=failing)
    assert done.returncode == 1
    assert why in done.stderr
    assert board.server.events == ["b2g_downloading", "b2g_extracting"]
    assert "reboot -f" not in board.done


@needs_busybox
def test_all_files_of_a_tarball_are_compared_with_what_is_read(board):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in (
            ("./a", b"old"),
            ("./a", b"new"),
            ("d e/-f\\n", b"x" * 100_000),
            ("-", b"dash"),
            ("empty", b""),
            ("l" * 150, b"long"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for kind, name, target in ((tarfile.LNKTYPE, "hard", "d e/-f\\n"), (tarfile.SYMTYPE, "soft", "a")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    (board.path / "x.tar.gz").write_bytes(packed.getvalue())
    into = board.path / "into"
    into.mkdir()
    done = board.library('_unpack "$T/x.tar.gz" x.tar.gz "" "$T/into" && _holds "$T/into" ""')
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(f"./{name}: OK" for name in ("a", "d e/-f\\n", "-", "l" * 150)), (
        done.stderr
    )
    for name in ("a", "d e/-f\\n", "-"):
        kept = (into / name).read_bytes()
        (into / name).write_bytes(bytes(len(kept)))
        assert board.library('_holds "$T/into" ""').returncode == 1
        (into / name).write_bytes(kept)
    assert board.library('_holds "$T/into" ""').returncode == 0
    whole = (board.root / "run/mozpool/files").read_text()
    board.write("run/mozpool/files", whole.removesuffix("whole\n"))
    assert board.library('_holds "$T/into" ""').returncode == 1


@needs_busybox
@needs_disk_tools
@pytest.mark.parametrize("memory", [1000, 0], ids=["in memory", "streamed"])
def test_xz_without_checksums_is_refused_before_anything_is_written(board, memory):
    partitions(board, "tar.xz", sums=False)
    board.memory(memory)
    board.boot_config(b2gbase=f"{board.server.url}/b")
    done = board.run("b2g-second-stage.sh")
    assert done.returncode == 1
    assert "no SHA256SUMS: without it nobody sees that boot.tar.xz is damaged" in done.stderr
    assert board.server.events == ["b2g_downloading"]
    assert board.done == []


@needs_busybox
def test_b2g_without_partitions_or_base_says_so(board):
    board.boot_config()
    assert "no b2gbase" in board.run("b2g-second-stage.sh").stderr
    assert board.server.events == []


# --- self-test ---


def self_test(board: Board, *rows: str) -> None:
    board.arguments(f"selftest-config={board.server.url}/scripts/x.json")
    text = f"mozpool-selftest-1\tvirtual\t{len(rows)}\n" + "".join(row.replace("|", "\t") + "\n" for row in rows)
    board.server.files["/scripts/x.lines"] = text.encode()
    board.write("sys/class/block/vda/size", "65536\n")
    board.write("sys/block/vda/device/cid", "0353445355303447802a4b1e00a5b200\n")
    board.write("proc/partitions", "major minor  #blocks  name\n\n 254 0 32768 vda\n")


PARTITIONS_SHA1 = hashlib.sha1(b"major minor  #blocks  name\n\n 254 0 32768 vda\n").hexdigest()


@needs_busybox
@needs_disk_tools
def test_a_good_board_passes_its_self_test(board):
    partitions(board)
    self_test(
        board,
        "1|1|block_device|the disk|vda|33554432",
        f"1|0|partition_table|the table|{PARTITIONS_SHA1}",
        "2|1|register|the card|vda|cid|0353*",
        f"3|0|boot_file|the loader|MLO|{sha256(b'the old MLO')}",
    )
    done = board.run("self-test-second-stage.sh")
    assert done.returncode == 0, done.stderr
    assert board.server.events == ["self_test_running", "self_test_ok"]
    assert "-p local0.info -t panda-1 selftest.sh[INFO] -- ok: the disk (33554432 bytes)" in board.syslog
    assert "-p local0.info -t panda-1 selftest.sh[INFO] -- ok: the table" in board.syslog
    assert not any("reboot" in line for line in board.done)


@needs_busybox
@needs_disk_tools
@pytest.mark.parametrize(
    "row",
    [
        "2|0|block_device|B|vda|33554433",
        "2|0|block_device|B|vdb|1",
        "2|0|partition_table|B|" + "0" * 40,
        "2|0|register|B|vda|cid|0453*",
        "2|0|register|B|vda|nothing|*",
        "2|0|boot_file|B|MLO|" + "0" * 64,
        "2|0|boot_file|B|none|" + "0" * 64,
        "2|0|what|B|x",
    ],
)
def test_a_failed_test_fails_the_self_test_and_leaves_out_later_priorities(board, row):
    partitions(board)
    self_test(board, "1|0|block_device|A|vda|1", row, "2|0|block_device|C|vda|1", "3|0|block_device|D|vda|1")
    done = board.run("self-test-second-stage.sh", before="usleep() { :; };")
    assert board.server.events == ["self_test_running", "failed_self_test"]
    told = [line.partition("-t panda-1 ")[2] for line in board.syslog]
    assert any(line.startswith("selftest.sh[ERROR] -- failed: B (") for line in told), done.stderr
    assert "selftest.sh[INFO] -- ok: C" in told
    assert "selftest.sh[INFO] -- left out: D" in told


@needs_busybox
@needs_disk_tools
@pytest.mark.parametrize(
    ("row", "late"),
    [
        ("block_device|B|vda|33554432", "sys/class/block/vda"),
        (f"partition_table|B|{PARTITIONS_SHA1}", "proc/partitions"),
        ("register|B|vda|cid|0353*", "sys/block/vda"),
        (f"boot_file|B|MLO|{sha256(b'the old MLO')}", "dev/vda1"),
    ],
)
def test_a_self_test_waits_for_a_card_that_is_found_late(board, row, late):
    partitions(board)
    self_test(board, f"1|0|{row}")
    (board.root / late).rename(board.path / "late")
    if late == "proc/partitions":
        board.write(late, "major minor  #blocks  name\n\n")
    # It is found at the fortieth look, after four seconds.
    before = f"""
        usleep() {{
            echo >>"$T/slept"
            [ "$(wc -l <"$T/slept")" != 40 ] || mv "$T/late" "$T/root/{late}"
        }}
    """
    done = board.run("self-test-second-stage.sh", before=before)
    assert board.server.events == ["self_test_running", "self_test_ok"], done.stderr
    assert (board.path / "slept").read_text() == "\n" * 40


@needs_busybox
def test_a_self_test_waits_ten_seconds_for_a_card_and_not_again_for_each_part_of_it(board):
    self_test(board, "1|0|block_device|A|vdb|1", "1|0|block_device|B|vdb1|1", "1|0|register|C|vdb|cid|*")
    board.run("self-test-second-stage.sh", before='usleep() { echo "$1" >>"$T/slept"; };')
    assert board.server.events == ["self_test_running", "failed_self_test"]
    assert (board.path / "slept").read_text() == "100000\n" * 100


@needs_busybox
@pytest.mark.parametrize(
    "content", [None, b"", b"<html>\n", b"mozpool-selftest-1\tx\t2\n1\t0\tblock_device\tA\tvda\t1\n"]
)
def test_a_self_test_without_whole_description_is_failed(board, content):
    self_test(board)
    if content is None:
        del board.server.files["/scripts/x.lines"]
    else:
        board.server.files["/scripts/x.lines"] = content
    board.run("self-test-second-stage.sh")
    assert board.server.events == ["self_test_running", "failed_self_test"]


@needs_busybox
@pytest.mark.parametrize(
    ("before", "why"),
    [
        ('mkdir "$T/root/run/mozpool/selftest.lines.tests";', "cannot keep the tests"),
        # They are counted, and then not all are kept.
        (
            'kept() { if [ -e "$T/counted" ]; then head -n 1; else : >"$T/counted"; cat; fi; };',
            "1 of 2 tests were read",
        ),
        (
            'kept() { if [ -e "$T/counted" ]; then cat >/dev/null; else : >"$T/counted"; cat; fi; };',
            "0 of 2 tests were read",
        ),
    ],
    ids=["cannot write", "one kept", "none kept"],
)
def test_a_self_test_that_did_not_run_all_tests_is_failed(board, before, why):
    self_test(board, "1|0|block_device|A|vda|1", "1|0|block_device|B|vda|1")
    if "kept" in before:
        before += 'sed() { if [ "$1" = 1d ]; then command sed "$@" | kept; else command sed "$@"; fi; };'
    board.run("self-test-second-stage.sh", before=before)
    assert board.server.events == ["self_test_running", "failed_self_test"]
    assert f"-p local0.info -t panda-1 selftest.sh[ERROR] -- {why}" in board.syslog


# --- maintenance ---


@needs_busybox
@pytest.mark.parametrize("keys", [None, b"", b"# ssh-ed25519 commented out\n"])
def test_maintenance_without_keys_is_not_reported_as_ready(board, keys):
    board.arguments(f"ssh-keys={board.server.url}/keys")
    if keys is not None:
        board.server.files["/keys"] = keys
    done = board.run("maintenance-second-stage.sh")
    assert done.returncode == 1
    assert "no SSH keys" in done.stderr
    assert board.server.events == []


# --- mobile-init.sh ---


def start(board: Board, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Boot a live image whose second stage fails, which brings mobile-init.sh to its end."""
    board.arguments(*arguments)
    (board.root / "run/mozpool/device").unlink()
    board.server.files["/scripts/x-second-stage.sh"] = b'echo "$0 ran" >>"$T/done"; exit 1\n'
    board.write("lib/mozpool/modules", "/lib/modules/a.ko\n/lib/modules/b.ko\n")
    board.write("sys/class/net/lo/address", "00:00:00:00:00:00\n")
    board.write("sys/class/net/eth0/address", "52:54:00:99:00:01\n")
    (board.path / "nslookup").write_text("Server: 10.0.0.1\n\n9.0.0.10.in-addr.arpa\tname = panda-7.example.com\n")
    return board.run("mobile-init.sh", **{"DHCP_NAME": "", **env})


@needs_busybox
def test_the_live_image_tells_that_it_started_and_runs_the_second_stage(board):
    done = start(board, "mozpool-device=panda-5")
    assert board.server.requests == [
        ("GET", "/api/device/panda-5/event/mobile_init_started/", None),
        ("GET", "/scripts/x-second-stage.sh", None),
    ], done.stderr
    assert board.done == [
        f"insmod {board.root}/lib/modules/a.ko",
        f"insmod {board.root}/lib/modules/b.ko",
        "hostname panda-5",
        "syslogd -R 127.0.0.1",
        f"{board.root}/run/mozpool/x-second-stage.sh ran",
        "reboot -f",
    ]


@needs_busybox
@pytest.mark.parametrize(
    ("argument", "dhcp", "name"),
    [
        ("mozpool-device=panda-5", "panda-6", "panda-5"),
        ("x=y", "panda-6.example.com", "panda-6"),
        ("x=y", "", "panda-7"),
    ],
)
def test_the_name_is_the_kernels_argument_else_from_dhcp_else_from_dns(board, argument, dhcp, name):
    start(board, argument, DHCP_NAME=dhcp)
    assert board.server.requests[0][1] == f"/api/device/{name}/event/mobile_init_started/"


@needs_busybox
def test_a_board_without_name_tells_nothing_and_boots_anew(board):
    done = start(board, DHCP_NAME="../x")
    assert "this board has no name" in done.stderr
    assert board.server.requests == []
    assert board.done[-1] == "reboot -f"


@needs_busybox
def test_without_a_second_stage_the_board_boots_anew(board):
    board.server.faults["/scripts/x-second-stage.sh"] = ["404"]
    done = start(board, "mozpool-device=panda-5")
    assert "no second stage" in done.stderr
    assert board.done[-1] == "reboot -f"


@needs_busybox
def test_the_interface_that_the_boot_loader_used_is_tried_first(board):
    for name, mac in {"eth0": "01", "eth1": "0a", "eth2": "03"}.items():
        board.write(f"sys/class/net/{name}/address", f"52:54:00:99:00:{mac}\n")
    board.arguments("BOOTIF=01-52-54-00-99-00-0A")
    text = (BOARD / "mobile-init.sh").read_text().rpartition("\nmain ||")[0]
    (board.path / "functions").write_text(text)
    assert board.shell('. "$T/functions"; interfaces').stdout.split() == ["eth1", "eth0", "eth2"]


@needs_busybox
def test_an_address_from_dhcp_is_set_up(board):
    script = f"""
        ifconfig() {{ echo "ifconfig $*"; }}
        route() {{ [ "$1" = add ] && echo "route $*"; }}
        set -- bound; . "{BOARD / "udhcpc.sh"}"
    """
    given = {"interface": "eth0", "ip": "10.0.0.9", "router": "10.0.0.1 10.0.0.2", "dns": "10.0.0.3", "hostname": "p"}
    done = board.shell(script, **given)
    assert done.stdout.splitlines() == [
        "ifconfig eth0 10.0.0.9 netmask 255.255.255.0 up",
        "route add default gw 10.0.0.1 dev eth0",
    ]
    assert (board.root / "run/mozpool/address").read_text() == "10.0.0.9\n"
    assert (board.root / "run/mozpool/hostname").read_text() == "p\n"
    assert (board.root / "etc/resolv.conf").read_text() == "nameserver 10.0.0.3\n"
