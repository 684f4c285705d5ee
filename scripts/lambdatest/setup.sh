#!/bin/bash
# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

# The first step of a job ("pre" in hyperexecute.yaml), on the host that the phone hangs on: checks that exactly one
# phone is there, fetches Taskcluster's worker, and writes what the worker and the task's wrapper read.

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/lambdatest/common.sh
. "$here/common.sh"

need TASKCLUSTER_CLIENT_ID TASKCLUSTER_ACCESS_TOKEN TC_WORKER_TYPE

version=${WORKER_VERSION:-87.0.0}
source=https://github.com/taskcluster/taskcluster/releases/download/v$version

mkdir -p "$WORK"
cd "$WORK"
rm -f generic-worker-metadata.json

serial=$(the_phone)
say "the phone is $serial"

# name of the program here, and of the file among the release's
fetch() {
    if [ -x "$1" ] && [ "$(cat "$1.version" 2>/dev/null)" = "$version" ]; then
        return
    fi
    say "fetching $2 $version"
    curl --fail --silent --show-error --location --retry 3 --max-time 120 --output "$1.new" "$source/$2"
    chmod 755 "$1.new"
    mv -f "$1.new" "$1"
    echo "$version" > "$1.version"
}

fetch generic-worker generic-worker-insecure-linux-amd64
fetch start-worker start-worker-linux-amd64
fetch livelog livelog-linux-amd64
fetch taskcluster-proxy taskcluster-proxy-linux-amd64

[ -e signing.key ] || ./generic-worker new-ed25519-keypair --file signing.key > /dev/null

# Tasks begin with this program: it tells them about the phone, and their log about the job.
cp "$here/script.py" script.py
chmod 755 script.py

(
    umask 077
    SERIAL=$serial python3 "$here/write-config.py" "$WORK"
)

adb -s "$serial" shell svc power stayon true
say "set up"
