#!/bin/sh
# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

# Second stage: a disk image, written as it is. Boot config: image_url (of a .img, .img.gz, .img.xz or .img.bz2),
# sha256 (of the file that is downloaded; a .img.xz needs it), size (in bytes, of the disk image once unpacked; optional).
#
# What fits in memory is downloaded and compared before anything is written. What doesn't is written while it is
# downloaded. Either way the disk is read again and compared with what was written.

# shellcheck source=scripts/board/mozpool.sh
. "${MOZPOOL_ROOT:-}/lib/mozpool/mozpool.sh"

# wanted KEY: print an optional value of the boot config.
wanted() {
    boot_config "$1"
    [ $? -ne 2 ]
}

image=$(wanted image_url) || die "no boot config"
sha256=$(wanted sha256) || die "no boot config"
size=$(wanted size) || die "no boot config"
[ -n "$image" ] || die "the boot config has no image_url"
if [ -n "$sha256" ]; then
    sha256=$(clean_checksum "$sha256" | grep -x '.\{64\}') || die "the boot config's sha256 is no SHA-256"
else
    say "the boot config has no sha256: the download will not be compared"
fi
case $size in
    *[!0-9]*) die "the boot config's size is no number of bytes" ;;
esac
case ${image%%\?*} in
    *.img | *.img.gz | *.img.bz2) ;;
    # unxz compares no checksum but CRC32, and xz makes others.
    *.img.xz) [ -n "$sha256" ] || die "the boot config has no sha256: without it nobody sees that a .img.xz is damaged" ;;
    # What is packed in another way would be written packed.
    *) die "$image is neither .img nor .img.gz, .img.bz2 or .img.xz" ;;
esac
unpack=$(_unpacker "$image") || die "nothing here unpacks $image"

# check_size BYTES: of the disk image, once unpacked.
check_size() {
    [ -z "$size" ] || [ "$1" -eq "$size" ] || die "$image has $1 bytes and should have $size"
}

event raw_downloading
target=$(disk)
need_disk "$target"
persist _head "$image" || die "$WHY"
promised=$(_promised_size)
if [ "$unpack" = _plain ]; then
    # Such a file looks whole wherever it ends.
    [ -z "$promised" ] || check_size "$promised"
    size=${size:-$promised}
    [ -n "$size$sha256" ] ||
        die "how long is $image? The server does not tell, and the boot config has neither sha256 nor size"
fi
if [ -n "$promised" ] && _fits "$promised"; then
    say "downloading $image ($promised bytes)"
    source=$RUN/image
    fetch "$image" "$source" "$sha256" || die "$WHY"
    if [ -z "$sha256" ]; then
        # This shows before anything is written that the file is whole.
        found=$("$unpack" -c <"$source" | wc -c) || die "$image cannot be unpacked"
        check_size "$found"
    fi
    sha256= # has been compared
else
    say "$image is too large for the memory: writing while downloading"
    source=$image
fi

event raw_writing
_source "$source" | _sum_on_the_way "$RUN/packed" "$sha256" | "$unpack" -c |
    _also "$RUN/plain" sha256sum | _also "$RUN/bytes" wc -c |
    dd of="$target" bs=1M iflag=fullblock conv=notrunc,fsync 2>"$RUN/dd" ||
    die "could not write $image to $target: $(tail -n 1 "$RUN/dd")"
rm -f "$RUN/image"
written=$(awk '{ print $1 }' "$RUN/bytes")
[ "$written" -gt 0 ] || die "$image is empty"
if [ -n "$sha256" ]; then
    found=$(cut -d ' ' -f 1 "$RUN/packed")
    [ "$found" = "$sha256" ] || die "$image: its checksum is $found and should be $sha256"
fi
check_size "$written"

sync
# Or the kernel would answer from its memory.
echo 3 >"$ROOT/proc/sys/vm/drop_caches"
found=$(dd if="$target" bs=1M iflag=fullblock,count_bytes count="$written" 2>"$RUN/dd" | sha256sum)
[ "$found" = "$(cat "$RUN/plain")" ] || die "$target does not hold what was written to it"
say "wrote and compared $written bytes on $target"
event raw_rebooting
restart
