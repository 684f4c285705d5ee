# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Equal boot configs, whatever their spelling."""

import pytest

from mozpool.db.bootconfig import boot_config_hash


def test_it_compares_what_a_boot_config_says():
    assert boot_config_hash('{"a": 1, "b": "ü"}') == boot_config_hash('{"b":"\\u00fc","a":1}')
    assert boot_config_hash('{"a": 1}') != boot_config_hash('{"a": 2}')


@pytest.mark.parametrize("text", [None, "", " ", "{}", "{ }", "null", "[]", '"x"', "7", "{", "not JSON", "[" * 100_000])
def test_it_takes_what_is_no_object_for_an_empty_one(text: str | None):
    assert boot_config_hash(text) == boot_config_hash("{}")


def test_it_has_room_in_its_column():
    assert len(boot_config_hash('{"b2gbase": "http://example.com/"}')) == 40
