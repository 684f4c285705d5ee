# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""All fuzzers: importing this fills :data:`tests.fuzz.engine.FUZZERS`."""

from tests.fuzz import boards, clouds, files, hardware, inventories, servers

__all__ = ["boards", "clouds", "files", "hardware", "inventories", "servers"]
