#!/bin/sh
# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

# The first process of the live image: network, the board's name, then the second stage that the server names.
# See docs/boards.md for the kernel's arguments.

export PATH=/sbin:/bin:/usr/sbin:/usr/bin
ROOT=${MOZPOOL_ROOT:-}

mount -t proc proc "$ROOT/proc"
mount -t sysfs sysfs "$ROOT/sys"
mount -t devtmpfs devtmpfs "$ROOT/dev"
mkdir -p "$ROOT/dev/pts"
mount -t devpts devpts "$ROOT/dev/pts"
# Downloads are kept here. _fits in mozpool.sh minds the memory; the tmpfs must not be smaller than that.
mount -t tmpfs -o size=90% tmpfs "$ROOT/run"
[ ! -e "$ROOT/dev/console" ] || exec <>"$ROOT/dev/console" >&0 2>&1

# shellcheck source=scripts/board/mozpool.sh
. "$ROOT/lib/mozpool/mozpool.sh"
SCRIPT=mobile-init.sh
FAILURE_PAUSE=${MOZPOOL_FAILURE_PAUSE:-60} # seconds for a person to read the console

# A failure is told, and the board boots anew after a while: from its own disk if the server has removed its network
# boot by then, else from the network again. The server's time limits do the rest.
give_up() {
    say "booting anew in $FAILURE_PAUSE s"
    sleep "$FAILURE_PAUSE"
    restart
}

load_modules() {
    while read -r file; do
        insmod "$ROOT$file" || say "module $file was not loaded"
    done <"$ROOT/lib/mozpool/modules"
}

# The interfaces to try: the one that the boot loader came by (BOOTIF=01-aa-bb-cc-dd-ee-ff), or else all.
interfaces() {
    bootif=$(kernel_argument BOOTIF) || bootif=
    mac=$(echo "${bootif#*-}" | tr 'A-F-' 'a-f:')
    for path in "$ROOT"/sys/class/net/*; do
        [ "$(cat "$path/address")" != "$mac" ] || echo "${path##*/}"
    done
    for path in "$ROOT"/sys/class/net/*; do
        name=${path##*/}
        [ "$name" = lo ] || [ "$(cat "$path/address")" = "$mac" ] || echo "$name"
    done
}

# Until an interface has an address; udhcpc stays and renews it.
start_network() {
    ip link set lo up
    while :; do
        for name in $(interfaces); do
            ip link set "$name" up
            udhcpc -i "$name" -n -t 10 -T 2 -s "$ROOT/lib/mozpool/udhcpc.sh" -p "$RUN/udhcpc.$name.pid" \
                >"$RUN/udhcpc.log" 2>&1 && return 0
            say "no address by $name: $(tail -n 1 "$RUN/udhcpc.log")"
        done
        sleep "$FIRST_PAUSE"
    done
}

# The kernel's argument, else what the DHCP server says, else what the name server says; the first label of it.
find_name() {
    name=$(kernel_argument mozpool-device) || name=$(cat "$RUN/hostname")
    if [ -z "$name" ]; then
        name=$(nslookup "$(cat "$RUN/address")" 2>/dev/null | sed -n 's/.*name = \([^ ]*\).*/\1/p' | head -n 1)
    fi
    name=${name%%.*}
    case $name in
        "" | *[!A-Za-z0-9_-]*) return 1 ;;
    esac
    echo "$name"
}

run_second_stage() {
    url=$(kernel_argument mobile-imaging-url) || { say "failed: the kernel argument mobile-imaging-url is missing"; return 1; }
    file=${url%%\?*}
    file=$RUN/${file##*/}
    fetch "$url" "$file" || { say "failed: no second stage: $WHY"; return 1; }
    say "running ${file##*/}"
    sh "$file"
}

main() {
    load_modules
    start_network
    if ! find_name >"$RUN/device.new"; then
        say "failed: this board has no name: no mozpool-device, and neither DHCP nor DNS tell one"
        return 1
    fi
    mv "$RUN/device.new" "$RUN/device"
    hostname "$(device_name)"
    start_syslog || say "syslog does not start"
    say "$(device_name) has address $(cat "$RUN/address")"
    # event ends what it runs in when the server can't be told; the first process must not end.
    (event mobile_init_started) || return 1
    run_second_stage
}

main || give_up
# The first process never ends, and it collects what others leave behind.
while :; do
    sleep 60
done
