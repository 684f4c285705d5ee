#!/bin/bash
# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

# The job itself ("testRunnerCommand"): Taskcluster's worker, which does one task on the phone and ends.

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/lambdatest/common.sh
. "$here/common.sh"

cd "$WORK"
# What the task starts must not find the worker's credentials in its environment.
unset TASKCLUSTER_CLIENT_ID TASKCLUSTER_ACCESS_TOKEN LT_USERNAME LT_ACCESS_KEY
export PATH=$WORK:$PATH

say "the worker starts"
status=0
./start-worker worker-runner.yml || status=$?
rm -f worker-runner.yml generic-worker.yml
say "the worker has ended with status $status"
exit "$status"
