#!/bin/sh
# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

# Second stage: is this board what its hardware type says? Kernel argument selftest-config: URL of the description,
# as NAME.lines (made by selftest-lines, see there for the format) or as NAME.json with a NAME.lines beside it.
#
# Tests run by priority, the lowest number first. After a failure, those of later priorities are left out: there is
# no use in comparing files on a card that is not there. The board stays in the live image, whatever comes out.

# shellcheck source=scripts/board/mozpool.sh
. "${MOZPOOL_ROOT:-}/lib/mozpool/mozpool.sh"

# Each line says how bad it is, as Mozpool's self-tests always did.
NAME=selftest.sh
SCRIPT="${NAME}[INFO]"
TAB=$(printf '\t')

complain() {
    SCRIPT="${NAME}[ERROR]"
    say "$@"
    SCRIPT="${NAME}[INFO]"
}

finish() {
    say "result: $1"
    SCRIPT=$NAME
    event "$1"
    exit 0
}

# await COMMAND…: until it succeeds, as cards are found late. What has not come in ten seconds will not come, nor will
# what depends on it: the first that is missing is waited for, and after it nothing else.
PATIENCE=100
await() {
    _wait_for "$PATIENCE" "$@" && return 0
    PATIENCE=0
    return 1
}

# Each test leaves what it saw in SEEN and returns whether that is right.

# Is there a block device, of at least so many bytes?
test_block_device() {
    SEEN="no /dev/$1"
    await [ -e "$ROOT/sys/class/block/$1/size" ] || return 1
    _has=$(($(cat "$ROOT/sys/class/block/$1/size") * 512))
    SEEN="$_has bytes"
    [ "$_has" -ge "$2" ]
}

# The kernel's list of disks and partitions, by its hash. It grows when a card is found.
test_partition_table() {
    await partitions_are "$1"
}

# It is called by await.
# shellcheck disable=SC2317
partitions_are() {
    SEEN=$(sha1sum <"$ROOT/proc/partitions" | cut -d ' ' -f 1)
    [ "$SEEN" = "$1" ]
}

# A register of the disk's card, as a pattern of the shell.
test_register() {
    SEEN="no such register"
    await [ -r "$ROOT/sys/block/$1/device/$2" ] || return 1
    SEEN=$(cat "$ROOT/sys/block/$1/device/$2")
    # It is meant to be a pattern.
    # shellcheck disable=SC2254
    case $SEEN in
        $3) return 0 ;;
        *) return 1 ;;
    esac
}

# A file on the boot partition, by its hash.
test_boot_file() {
    SEEN="no $(partition 1)"
    await [ -e "$(partition 1)" ] || return 1
    SEEN="cannot mount $(partition 1)"
    mkdir -p "$RUN/mnt"
    mount -t vfat -o ro "$(partition 1)" "$RUN/mnt" || return 1
    SEEN="no such file"
    [ ! -f "$RUN/mnt/$1" ] || SEEN=$(sha256sum <"$RUN/mnt/$1" | cut -d ' ' -f 1)
    umount "$RUN/mnt"
    [ "$SEEN" = "$2" ]
}

event self_test_running
url=$(kernel_argument selftest-config) || { complain "the kernel argument selftest-config is missing"; finish failed_self_test; }
case $url in
    *.json) url=${url%.json}.lines ;;
esac
lines=$RUN/selftest.lines
fetch "$url" "$lines" || { complain "no description: $WHY"; finish failed_self_test; }
IFS=$TAB read -r format hardware count <"$lines"
if [ "$format" != mozpool-selftest-1 ] || [ "$(sed 1d "$lines" | wc -l)" != "$count" ]; then
    complain "$url is no whole description"
    finish failed_self_test
fi
say "testing for $hardware"

failed=
seen=0
sed 1d "$lines" >"$lines.tests" || { complain "cannot keep the tests"; finish failed_self_test; }
while IFS=$TAB read -r priority verbose kind name first second third; do
    seen=$((seen + 1))
    if [ -n "$failed" ] && [ "$priority" -gt "$failed" ]; then
        say "left out: $name"
        continue
    fi
    case $kind in
        block_device) test_block_device "$first" "$second" ;;
        partition_table) test_partition_table "$first" ;;
        register) test_register "$first" "$second" "$third" ;;
        boot_file) test_boot_file "$first" "$second" ;;
        *) SEEN="this live image does not know $kind" && false ;;
    esac
    result=$?
    if [ "$result" -ne 0 ]; then
        complain "failed: $name ($SEEN)"
        failed=$priority
    elif [ "$verbose" = 1 ]; then
        say "ok: $name ($SEEN)"
    else
        say "ok: $name"
    fi
done <"$lines.tests"

if [ "$seen" != "$count" ]; then
    complain "$seen of $count tests were read"
    finish failed_self_test
fi
[ -z "$failed" ] || finish failed_self_test
finish self_test_ok
