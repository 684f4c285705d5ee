#!/bin/bash
# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

# After the job ("post"): reboots the phone and waits until it is up, so that the next one gets a fresh phone.

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/lambdatest/common.sh
. "$here/common.sh"

rm -f "$WORK/worker-runner.yml" "$WORK/generic-worker.yml"

serial=$(the_phone)
boot() {
    timeout 10 adb -s "$serial" shell cat /proc/sys/kernel/random/boot_id 2>/dev/null | tr -d '\r' || true
}

before=$(boot)
say "rebooting $serial"
timeout 30 adb -s "$serial" reboot

end=$((SECONDS + ${BOOT_LIMIT:-180}))
while [ "$SECONDS" -lt "$end" ]; do
    now=$(boot)
    if [ -n "$now" ] && [ "$now" != "$before" ]; then
        up=$(timeout 10 adb -s "$serial" shell getprop sys.boot_completed 2>/dev/null | tr -d '\r' || true)
        if [ "$up" = 1 ]; then
            say "$serial has rebooted"
            exit 0
        fi
    fi
    sleep "${BOOT_PAUSE:-2}"
done
say "$serial is not back after ${BOOT_LIMIT:-180} s" >&2
exit 1
