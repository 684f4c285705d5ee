# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""PXE configurations as iPXE scripts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mozpool.bmm.netboot.ipxe import OWN_STORAGE, mac_of, script
from mozpool.errors import BadInput, Unprocessable

MAC = "aabbccddeeff"
SERVER = "10.99.0.1"

LIVE = """\
DEFAULT l
PROMPT 0
LABEL other
 KERNEL other
LABEL l
 LINUX http://10.99.0.1:8099/vmlinuz
 INITRD http://10.99.0.1:8099/initrd.img
 IPAPPEND 2
 APPEND console=ttyS0,115200 quiet panic=5 mobile-imaging-url=http://10.99.0.1/scripts/x.sh
"""


def translated(config: str) -> list[str]:
    lines = script(config, MAC, SERVER).splitlines()
    assert (lines[0], lines[-1]) == ("#!ipxe", "boot")
    return lines[1:-1]


def test_the_default_label_is_translated():
    assert translated(LIVE) == [
        "kernel http://10.99.0.1:8099/vmlinuz console=ttyS0,115200 quiet panic=5 "
        "mobile-imaging-url=http://10.99.0.1/scripts/x.sh BOOTIF=01-aa-bb-cc-dd-ee-ff",
        "initrd http://10.99.0.1:8099/initrd.img",
    ]


def test_keywords_and_labels_are_read_in_upper_and_lower_case_with_tabs_and_comments():
    config = "# a comment\ndefault LIVE\n\nlabel live\n\tkernel\tvmlinuz\n\tappend\ta  b\n"
    assert translated(config) == ["kernel tftp://10.99.0.1/vmlinuz a b"]


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("panda-live/vmlinux", "tftp://10.99.0.1/panda-live/vmlinux"),
        ("/vmlinux", "tftp://10.99.0.1/vmlinux"),
        ("::vmlinux", "tftp://10.99.0.1/vmlinux"),
        ("192.0.2.7::a/vmlinux", "tftp://192.0.2.7/a/vmlinux"),
        ("https://x/v", "https://x/v"),
        ("tftp://x/v", "tftp://x/v"),
        ("a%b", "tftp://10.99.0.1/a%25b"),
    ],
)
def test_files_without_a_url_come_by_tftp(name, url):
    assert translated(f"DEFAULT l\nLABEL l\nLINUX {name}\n") == [f"kernel {url}"]


def test_an_initrd_may_stand_in_append_and_there_may_be_several():
    assert translated("DEFAULT l\nLABEL l\nKERNEL k\nAPPEND a initrd=one,two b\n") == [
        "kernel tftp://10.99.0.1/k a b",
        "initrd tftp://10.99.0.1/one",
        "initrd tftp://10.99.0.1/two",
    ]
    assert translated("DEFAULT l\nLABEL l\nKERNEL k\nINITRD three\nAPPEND initrd=one\n")[1:] == [
        "initrd tftp://10.99.0.1/three"
    ]


def test_what_stands_before_the_labels_holds_where_they_say_nothing():
    config = "DEFAULT {}\nAPPEND common\nIPAPPEND 2\nLABEL a\nKERNEL k\nLABEL b\nKERNEL k\nAPPEND own\nIPAPPEND 0\n"
    assert translated(config.format("a")) == ["kernel tftp://10.99.0.1/k common BOOTIF=01-aa-bb-cc-dd-ee-ff"]
    assert translated(config.format("b")) == ["kernel tftp://10.99.0.1/k own"]
    assert translated("DEFAULT a\nAPPEND common\nLABEL a\nKERNEL k\nAPPEND -\n") == ["kernel tftp://10.99.0.1/k"]


def test_the_network_is_told_as_pxelinux_does():
    config = "DEFAULT l\nLABEL l\nKERNEL k\nSYSAPPEND 3\n"
    assert translated(config) == [
        "kernel tftp://10.99.0.1/k ip=${netX/ip}:10.99.0.1:${netX/gateway}:${netX/netmask} BOOTIF=01-aa-bb-cc-dd-ee-ff"
    ]


@pytest.mark.parametrize("number", ["0", "-1", "0x80"])
def test_localboot_is_the_own_storage(number):
    assert script(f"DEFAULT local\nLABEL local\nLOCALBOOT {number}\n", MAC, SERVER) == OWN_STORAGE


def test_what_people_see_and_labels_that_nobody_chooses_do_not_matter():
    config = (
        "UI menu.c32\nMENU TITLE Hello\nTIMEOUT 1\nSERIAL 0 115200\nF1 help.txt\nDEFAULT l\n"
        "LABEL l\nMENU LABEL ^Live\nTEXT HELP\nKERNEL of a truck\nENDTEXT\nKERNEL k\n"
        "LABEL menu\nKERNEL vesamenu.c32\nLABEL odd\nNEW thing\n"
    )
    assert translated(config) == ["kernel tftp://10.99.0.1/k"]


def test_an_ipxe_script_stays_as_it_is():
    text = "#!ipxe\nchain http://x/${mac}\n"
    assert script(text, MAC, SERVER) == text


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("", "it has no DEFAULT"),
        ("LABEL l\nKERNEL k\n", "it has no DEFAULT"),
        ("DEFAULT x\nLABEL l\nKERNEL k\n", "its DEFAULT is x, but it has no such LABEL"),
        ("DEFAULT l\nLABEL l\nAPPEND a\n", "neither KERNEL nor LINUX"),
        ("DEFAULT l\nLABEL l\nKERNEL memdisk.bin\n", "memdisk.bin is no Linux kernel"),
        ("DEFAULT l\nLABEL l\nKERNEL menu.C32\n", "menu.C32 is no Linux kernel"),
        ("DEFAULT l\nLABEL l\nCOM32 x\n", "COM32 is not known"),
        ("INCLUDE other\nDEFAULT l\nLABEL l\nKERNEL k\n", "INCLUDE is not known"),
        ("DEFAULT l\nLABEL l\nKERNEL k\nIPAPPEND 4\n", "IPAPPEND 4: only 0 to 3 are known"),
        ("DEFAULT l\nLABEL l\nKERNEL k\nAPPEND a=${b}\n", "APPEND contains ${, which iPXE would replace"),
        ("DEFAULT l\nLABEL l\nKERNEL k\nAPPEND a || b\n", "APPEND has the word ||"),
        ("DEFAULT l\nLABEL l\nKERNEL k\nAPPEND a #b\n", "APPEND has the word #b"),
        ("DEFAULT l\nLABEL l\nKERNEL nfs://x/k\n", "'nfs://x/k' is no file name"),
        ("DEFAULT l\nLABEL l\nKERNEL k quiet\n", "'k quiet' is no file name"),
    ],
)
def test_what_can_not_be_translated_says_why(config, reason):
    with pytest.raises(Unprocessable) as caught:
        script(config, MAC, SERVER)
    assert reason in caught.value.message


@given(
    st.lists(st.sampled_from([*LIVE.split(), "\n", "\t", "::", "${x}", "LOCALBOOT", "\r\n", "\0", "é"])).map(" ".join)
)
def test_no_text_breaks_it(config):
    try:
        found = script(config, MAC, SERVER)
    except Unprocessable:
        return
    assert found.startswith("#!ipxe\n")


@pytest.mark.parametrize("text", [MAC, "AA:BB:CC:DD:EE:FF", "aa-bb-cc-dd-ee-ff", "aabb.ccdd.eeff"])
def test_a_mac_address_is_read_in_any_usual_spelling(text):
    assert mac_of(text) == MAC


@pytest.mark.parametrize(
    "text", ["", "aabbccddeef", "aabbccddeefg", "01-aa-bb-cc-dd-ee-ff", "../../etc/passwd", "٣" * 12]
)
def test_what_is_no_mac_address_is_refused(text):
    with pytest.raises(BadInput, match=r"mac: .* is not a MAC address"):
        mac_of(text)
