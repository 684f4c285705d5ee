#!/bin/bash
# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

# After the job ("post"): prints which task the worker did, which leads from the cloud's page of the job to Taskcluster.

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/lambdatest/common.sh
. "$here/common.sh"

file=$WORK/generic-worker-metadata.json
if [ -f "$file" ]; then
    echo "generic-worker-metadata.json contents:"
    cat "$file"
    echo
else
    say "there is no generic-worker-metadata.json: the worker has done no task"
fi
