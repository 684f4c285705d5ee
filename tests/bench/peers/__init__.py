# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What people would use instead of Mozpool, measured in the same run: each installed in an environment of its own."""

from __future__ import annotations

from tests.bench.peers import ironic, labgrid
from tests.bench.peers.peer import NoPeer, Peer

PEERS: tuple[Peer, ...] = (labgrid.LABGRID, ironic.IRONIC)

__all__ = ["PEERS", "NoPeer", "Peer"]
