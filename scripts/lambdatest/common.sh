# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

# What the steps of a job share. To be sourced by bash.
# shellcheck shell=bash

WORK=${WORK:-$HOME/taskcluster}
export WORK

say() {
    echo "mozpool: $*"
}

# Ends the step unless all these variables have a value. Values are never printed.
need() {
    local name
    for name in "$@"; do
        if [ -z "${!name:-}" ]; then
            say "$name is not set" >&2
            exit 1
        fi
    done
}

# Prints the serials of the phones that are connected and answer.
phones() {
    adb devices | sed -n 's/^\([^[:space:]]\{1,\}\)[[:space:]]\{1,\}device$/\1/p'
}

# Prints the serial of the only phone, for which it waits; anything else than one ends the step.
the_phone() {
    local end=$((SECONDS + ${PHONE_LIMIT:-60})) found
    while found=$(phones); [ "$(grep -c . <<< "$found")" -ne 1 ]; do
        if [ "$SECONDS" -ge "$end" ]; then
            say "exactly one phone was expected, found: ${found//$'\n'/ }" >&2
            exit 1
        fi
        sleep 1
    done
    echo "$found"
}
