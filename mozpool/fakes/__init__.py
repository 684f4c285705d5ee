# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Simulated hardware that speaks the real bytes over loopback: relay boards, boards that boot, agents, pings.

It ships with the product: ``[testing] run_fakes = true`` runs a :class:`mozpool.fakes.rack.Rack` inside the daemon,
``python -m mozpool.fakes`` runs one in a process of its own. The services that a pool talks with are here, too:
an inventory, and LambdaTest's cloud with the Taskcluster that it works for (:class:`mozpool.fakes.cloud.FakeCloud`).
"""
