# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The launcher: watches Taskcluster's queues, and asks the pool for a phone for each job that is to be started."""
