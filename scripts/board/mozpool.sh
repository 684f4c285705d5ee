#!/bin/sh
# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

# What the scripts of a board share: part of the live image, read by mobile-init.sh and by each second stage.
# Needs busybox and, to install partitions, mkfs.ext4. See docs/boards.md.
#
#   say TEXT…                     tell console and syslog
#   die TEXT…                     the same, as an error; ends the script with status 1
#   event NAME                    tell the server how far this board is
#   fetch URL FILE [SUM]          download; SUM is the file's MD5 or SHA-256 in hex
#   boot_config KEY               print a value of the boot config
#   kernel_argument NAME          print what the kernel's command line says after NAME=
#   disk, partition NUMBER        print the paths of the board's disk and its partitions
#   install_partitions KIND KEY…  install tarballs, for b2g and android
#   restart                       write everything out and boot anew
#
# MOZPOOL_ROOT is put before the paths in /dev, /lib, /proc, /run and /sys: tests keep a board in a directory.

# A pipe has failed when any part of it has. POSIX got this in 2024, and busybox has it.
# shellcheck disable=SC3040
set -o pipefail

ROOT=${MOZPOOL_ROOT:-}
RUN=$ROOT/run/mozpool
SCRIPT=${0##*/}

TRIES=${MOZPOOL_TRIES:-12}               # of one call or download; with the pauses about five minutes
FIRST_PAUSE=${MOZPOOL_FIRST_PAUSE:-1}    # seconds before the second try; they double
LONGEST_PAUSE=30
CALL_LIMIT=30                            # seconds for one call to the server
STALL_LIMIT=${MOZPOOL_STALL_LIMIT:-30}   # seconds in which a download must grow
STREAM_LIMIT=1800                        # seconds for a download that goes straight to the disk
WHY=

mkdir -p "$RUN"

# --- What this board is told, and what it tells ---

# Print the value of NAME=VALUE on the kernel's command line, the last one if there are several; fails without.
kernel_argument() {
    awk -v name="$1=" '
        { for (i = 1; i <= NF; i++) if (index($i, name) == 1) { value = substr($i, length(name) + 1); found = 1 } }
        END { if (found) print value; exit !found }' "$ROOT/proc/cmdline"
}

# The name by which the server knows this board; mobile-init.sh has found it out.
device_name() {
    cat "$RUN/device" 2>/dev/null || echo unknown
}

# ours URL: print wget's option for the token of this boot where the URL is one of the server's API, which then knows
# that this board calls. Others are not told.
ours() {
    case $1 in
        "$(server)"/api/*) ;;
        *) return 0 ;;
    esac
    _token=$(kernel_argument mozpool-token) || return 0
    case $_token in
        "" | *[!A-Za-z0-9_-]*) ;;
        *) echo "--header=Mozpool-Boot-Token:$_token" ;;
    esac
}

# The server: scheme, host and port of the URL that the second stage came from.
server() {
    kernel_argument mobile-imaging-url | sed -n 's|^\(https\{0,1\}://[^/]*\).*|\1|p'
}

# _log LEVEL TEXT…
_log() {
    _level=$1
    shift
    # The console may be a pipe that nobody reads any more; that must not end the script.
    printf '%s: %s\n' "$SCRIPT" "$*" >&2 || :
    # syslogd sends time, this tag and the text: so the tag has to begin with the host name.
    logger -p "local0.$_level" -t "$(device_name) $SCRIPT" -- "$*"
}

say() {
    _log info "$@"
}

die() {
    _log err "failed: $*"
    exit 1
}

# Send what is logged to the server of the kernel argument syslog-server, or to the one this image came from.
start_syslog() {
    _to=$(kernel_argument syslog-server) || _to=$(server | sed 's|^[a-z]*://||; s|:[0-9]*$||')
    if [ -z "$_to" ]; then
        say "no syslog: the kernel's command line names no server"
        return 0
    fi
    syslogd -R "$_to" && _wait_for 20 [ -S "$ROOT/dev/log" ]
}

# _wait_for TENTHS COMMAND…: until the command succeeds; fails after so many tenths of a second.
_wait_for() {
    _left=$1
    shift
    until "$@"; do
        [ "$_left" -gt 0 ] || return 1
        _left=$((_left - 1))
        usleep 100000
    done
}

# --- HTTP ---

# persist COMMAND…: until it returns 0 (done) or 2 (no use in trying again), with growing pauses.
# The command leaves the reason of a failure in WHY.
persist() {
    _pause=$FIRST_PAUSE
    _done=1
    while :; do
        "$@"
        case $? in
            0) return 0 ;;
            2) return 1 ;;
        esac
        [ "$_done" -lt "$TRIES" ] || return 1
        _done=$((_done + 1))
        say "$WHY; again in $_pause s"
        sleep "$_pause"
        _pause=$((_pause * 2))
        [ "$_pause" -le "$LONGEST_PAUSE" ] || _pause=$LONGEST_PAUSE
    done
}

# _judge STATUS URL: what wget's status and its complaints in $RUN/wget mean, as persist wants it.
_judge() {
    [ "$1" -ne 0 ] || return 0
    WHY="$2: $(tail -n 1 "$RUN/wget")"
    case $1 in
        124 | 137 | 143) WHY="$2: no answer in time" ;;
    esac
    case $WHY in
        *"server returned error: HTTP/"*" 408"* | *"server returned error: HTTP/"*" 429"*) return 1 ;;
        *"server returned error: HTTP/"*" 4"[0-9][0-9]* | *"bad address scheme"* | *"not an http or ftp url"*) return 2 ;;
    esac
    return 1
}

# _call URL FILE: one try of a short call.
_call() {
    # The option is one word, or none.
    # shellcheck disable=SC2046
    timeout "$CALL_LIMIT" wget -q $(ours "$1") -O "$2" "$1" 2>"$RUN/wget"
    _judge $? "$1"
}

event() {
    if persist _call "$(server)/api/device/$(device_name)/event/$1/" /dev/null; then
        say "event $1"
    else
        die "could not tell the server the event $1: $WHY"
    fi
}

# _watch PID FILE: end the process when the file has not grown for a while. busybox's wget has no time limit.
_watch() {
    _seen=none
    while kill -0 "$1"; do
        _size=$(stat -c %s "$2" || echo 0)
        if [ "$_size" = "$_seen" ]; then
            kill "$1"
            return
        fi
        _seen=$_size
        sleep "$STALL_LIMIT"
    done
}

# _fetch URL FILE [SUM]: one try, which goes on where the last one stopped.
_fetch() {
    # shellcheck disable=SC2046
    wget -q -c $(ours "$1") -O "$2" "$1" 2>"$RUN/wget" &
    _wget=$!
    _watch "$_wget" "$2" >/dev/null 2>&1 &
    _watcher=$!
    wait "$_wget"
    _status=$?
    kill "$_watcher" 2>/dev/null
    _judge "$_status" "$1"
    _status=$?
    case $WHY in
        *" 416"*)
            # There is nothing after the end of what is here already: it is whole, or of another file.
            if [ "$_status" -eq 2 ]; then
                rm -f "$2"
                return 1
            fi
            ;;
    esac
    [ "$_status" -eq 0 ] || return "$_status"
    [ -n "${3:-}" ] || return 0
    _have=$(checksum "$3" <"$2")
    [ "$_have" = "$3" ] && return 0
    WHY="$1: its checksum is $_have and should be $3"
    rm -f "$2"
    # Something may have gone wrong on the way, but not twice.
    _wrong=$((_wrong + 1))
    return "$_wrong"
}

# checksum LIKE: of standard input; MD5 or SHA-256, whichever is as long as LIKE. Fails when neither is.
checksum() {
    case ${#1} in
        32) md5sum | cut -d ' ' -f 1 ;;
        64) sha256sum | cut -d ' ' -f 1 ;;
        *) return 1 ;;
    esac
}

# Print a checksum in lower case; fails when it is none.
clean_checksum() {
    printf '%s\n' "$1" | tr 'A-F' 'a-f' | grep -xE '[0-9a-f]{32}|[0-9a-f]{64}'
}

# Fails when the file can't be had, and leaves the reason in WHY. The file is then not there.
fetch() {
    rm -f "$2"
    _wrong=0
    persist _fetch "$@" && return 0
    rm -f "$2"
    return 1
}

# _head URL: one try of asking for the headers, which go to $RUN/headers. (This wget sends GET, and hangs up.)
_head() {
    timeout "$CALL_LIMIT" wget -S --spider "$1" 2>"$RUN/wget"
    _status=$?
    cp "$RUN/wget" "$RUN/headers"
    _judge "$_status" "$1"
}

# The size in bytes that the server promises for a URL, after _head; nothing when it doesn't say.
_promised_size() {
    # A redirection has headers of its own before those of the file.
    tr -d '\r' <"$RUN/headers" | awk '
        $1 ~ /^HTTP\// { size = "" }
        tolower($1) == "content-length:" && $2 ~ /^[0-9]+$/ { size = $2 }
        END { if (size != "") print size }'
}

# _fits BYTES: whether so much may be kept in memory, with room for the work to be done on it.
_fits() {
    awk -v bytes="$1" '$1 == "MemAvailable:" { room = $2 * 1024 * 0.6 } END { exit !(bytes <= room) }' "$ROOT/proc/meminfo"
}

# _source PATH_OR_URL: write the file to standard output.
_source() {
    case $1 in
        http://* | https://*)
            timeout "$STREAM_LIMIT" wget -q -O - "$1" && return 0
            say "$1: the download broke off"
            return 1
            ;;
        *) cat "$1" ;;
    esac
}

# _unpacker NAME: print the program that unpacks a file of this name to standard output when it is called with -c; fails
# when there is none. Not zcat: busybox's succeeds on half a file, its gunzip doesn't.
_unpacker() {
    case ${1%%\?*} in
        *.gz | *.tgz) echo gunzip ;;
        *.bz2) echo bunzip2 ;;
        *.xz) echo unxz ;;
        *.img) echo _plain ;;
        *) return 1 ;;
    esac
}

# What _unpacker names for what is not packed.
_plain() {
    cat
}

# --- JSON ---

# json_value KEY: print the value of a key of the JSON object on standard input: texts as they are meant, numbers,
# true and false as they are written. Status 1: there is no such key, or it is null; 2: that is no such JSON (said).
json_value() {
    awk -v key="$1" '
        function bad(what) {
            printf "not the JSON that was expected: %s at character %d\n", what, p > "/dev/stderr"
            exit 2
        }
        function space() {
            while (p <= n && index(" \t\r\n", substr(s, p, 1)) > 0) p++
        }
        function peek() {
            return p <= n ? substr(s, p, 1) : "end"
        }
        function expect(c) {
            if (peek() != c) bad("no " c)
            p++
        }
        function hex4(   i, code, digit) {
            code = 0
            for (i = 0; i < 4; i++) {
                digit = p <= n ? index("0123456789abcdef", tolower(substr(s, p, 1))) : 0
                if (digit == 0) bad("a wrong \\u")
                code = code * 16 + digit - 1
                p++
            }
            return code
        }
        function utf8(code) {
            if (code < 128) return sprintf("%c", code)
            if (code < 2048) return sprintf("%c%c", 192 + int(code / 64), 128 + code % 64)
            if (code < 65536)
                return sprintf("%c%c%c", 224 + int(code / 4096), 128 + int(code / 64) % 64, 128 + code % 64)
            return sprintf("%c%c%c%c", 240 + int(code / 262144), 128 + int(code / 4096) % 64,
                           128 + int(code / 64) % 64, 128 + code % 64)
        }
        function unicode(   code, low) {
            code = hex4()
            if (code == 0) bad("a NUL")
            if (code >= 56320 && code <= 57343) bad("half a character")
            if (code < 55296 || code > 56319) return utf8(code)
            if (substr(s, p, 2) != "\\u") bad("half a character")
            p += 2
            low = hex4()
            if (low < 56320 || low > 57343) bad("half a character")
            return utf8(65536 + (code - 55296) * 1024 + low - 56320)
        }
        function text(   result, c, at) {
            expect("\"")
            result = ""
            while (1) {
                if (p > n) bad("no end of a text")
                c = substr(s, p, 1)
                p++
                if (c == "\"") return result
                if (c < " ") bad("a control character in a text")
                if (c != "\\") { result = result c; continue }
                c = peek()
                p++
                if (c == "u") { result = result unicode(); continue }
                at = index("\"\\/bfnrt", c)
                if (at == 0) bad("a wrong escape")
                result = result substr("\"\\/\b\f\n\r\t", at, 1)
            }
        }
        function value(depth,   c, name, rest) {
            if (depth > 50) bad("too deep a nesting")
            space()
            c = peek()
            if (c == "\"") { kind = "text"; content = text(); return }
            if (c == "{") {
                p++
                space()
                if (peek() == "}") p++
                else while (1) {
                    space()
                    name = text()
                    space()
                    expect(":")
                    value(depth + 1)
                    if (depth == 0 && name == key) { found = kind; result = content }
                    space()
                    if (peek() == "}") { p++; break }
                    expect(",")
                }
                kind = "object"
                return
            }
            if (c == "[") {
                p++
                space()
                if (peek() == "]") p++
                else while (1) {
                    value(depth + 1)
                    space()
                    if (peek() == "]") { p++; break }
                    expect(",")
                }
                kind = "list"
                return
            }
            rest = substr(s, p, 400)
            if (!match(rest, /^(true|false|null|-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][-+]?[0-9]+)?)/)) bad("no value")
            kind = "word"
            content = substr(rest, 1, RLENGTH)
            p += RLENGTH
        }
        { s = s $0 "\n" }
        END {
            n = length(s)
            p = 1
            value(0)
            if (kind != "object") { p = 1; bad("no object") }
            space()
            if (p <= n) bad("more after the end")
            if (found == "" || (found == "word" && result == "null")) exit 1
            if (found == "object" || found == "list") {
                printf "the value of %s is neither a text nor a number\n", key > "/dev/stderr"
                exit 2
            }
            print result
        }'
}

# Print a value of the boot config. Status 1: it has no such key; 2: it can't be had or read (said).
boot_config() {
    if [ ! -f "$RUN/boot-config" ]; then
        if ! fetch "$(server)/api/device/$(device_name)/bootconfig/" "$RUN/boot-config.new"; then
            say "could not read the boot config: $WHY"
            return 2
        fi
        mv "$RUN/boot-config.new" "$RUN/boot-config"
    fi
    json_value "$1" <"$RUN/boot-config" 2>"$RUN/json"
    _status=$?
    [ "$_status" -ne 2 ] || say "boot config: $(cat "$RUN/json")"
    return "$_status"
}

# --- Disks ---

# The board's disk: kernel argument mozpool-disk, else the SD card.
disk() {
    echo "$ROOT$(kernel_argument mozpool-disk || echo /dev/mmcblk0)"
}

# partition NUMBER: /dev/vda has /dev/vda1, and /dev/mmcblk0 has /dev/mmcblk0p1.
partition() {
    _disk=$(disk)
    case $_disk in
        *[0-9]) echo "${_disk}p$1" ;;
        *) echo "$_disk$1" ;;
    esac
}

# need_disk PATH…: wait a while for these, as cards are found late; ends the script without.
need_disk() {
    for _path in "$@"; do
        _wait_for 100 [ -e "$_path" ] || die "there is no $_path"
    done
}

restart() {
    sync
    say "booting anew"
    sync
    reboot -f
}

# --- Installing tarballs: b2g and android ---

PARTS="boot system userdata"
SUFFIXES="tar.gz tgz tar.bz2 tar.xz"

# _find_tarball BASE PART: print the name of the part's tarball and its checksum, if known.
_find_tarball() {
    for _suffix in $SUFFIXES; do
        _name=$2.$_suffix
        # One that is there and empty names nothing.
        if [ -e "$RUN/SHA256SUMS" ]; then
            _sum=$(awk -v name="$_name" '{ sub(/^[*]/, "", $2) } $2 == name { print $1; exit }' "$RUN/SHA256SUMS")
            if [ -n "$_sum" ]; then
                _sum=$(clean_checksum "$_sum" | grep -x '.\{64\}') || die "SHA256SUMS has no SHA-256 for $_name"
                echo "$_name $_sum"
                return 0
            fi
        elif persist _head "$1/$_name"; then
            echo "$_name"
            return 0
        fi
    done
    [ ! -e "$RUN/SHA256SUMS" ] || WHY="SHA256SUMS does not name it"
    die "no $2 tarball in $1: $WHY"
}

# _also FILE COMMAND…: pass standard input on, and let the command read it too; what it prints goes to the file.
_also() {
    _file=$1
    shift
    rm -f "$_file.pipe"
    mkfifo "$_file.pipe" || return 1
    "$@" <"$_file.pipe" >"$_file" &
    tee "$_file.pipe"
    _status=$?
    wait
    return "$_status"
}

# _sum_on_the_way FILE WANTED: pass standard input on; if a SHA-256 is wanted, it goes to the file.
_sum_on_the_way() {
    if [ -n "$2" ]; then
        _also "$1" sha256sum
    else
        cat
    fi
}

# Print the SHA-256 of each file in the tarball on standard input, and a last line when that is all of it. Empty files
# are left out: hard links look like them here.
_sums_of_files() {
    # tar's command knows these variables.
    # shellcheck disable=SC2016
    tar -x -f - --to-command='
        [ "$TAR_SIZE" = 0 ] || printf "%s  %s\n" "$(sha256sum | cut -d " " -f 1)" "$TAR_FILENAME"' &&
        cat >/dev/null && echo whole
}

# _holds DIRECTORY EXCEPT: whether the directory holds all files of the tarball that was unpacked last, but for one.
# Directories are read too.
_holds() {
    # Of a file that is in the tarball twice, the later one counts.
    awk -v except="$2" '
        { whole = $0 == "whole" }
        !whole { name = substr($0, 67); sub(/^([.]\/)+/, "", name); sum[name] = substr($0, 1, 64) }
        END {
            if (!whole) exit 1
            for (name in sum) if (tolower(name) != except) print sum[name] "  ./" name
        }' "$RUN/files" >"$RUN/sums" || { echo "its files were not all listed"; return 1; }
    cd "$1" && find . >/dev/null && { [ ! -s "$RUN/sums" ] || sha256sum -c "$RUN/sums"; }
}

# _unpack SOURCE NAME SUM DIRECTORY [TAR OPTION…]: unpack a tarball from a file or a URL; its checksum is compared
# on the way where it is given, and those of its files go to $RUN/files.
_unpack() {
    _from=$1 _program=$(_unpacker "$2") _wanted=$3 _into=$4
    shift 4
    # What is behind the end of the archive is read too: checksums are there, and belong to it.
    _source "$_from" | _sum_on_the_way "$RUN/sum" "$_wanted" | { "$_program" -c && cat >/dev/null; } |
        _also "$RUN/files" _sums_of_files | { tar -x -C "$_into" -f - "$@" && cat >/dev/null; } || return 1
    [ -n "$_wanted" ] || return 0
    _have=$(cut -d ' ' -f 1 "$RUN/sum")
    [ "$_have" != "$_wanted" ] || return 0
    say "$_from: its checksum is $_have and should be $_wanted"
    return 1
}

# _install_part PART SOURCE NAME SUM
_install_part() {
    _mounted=$RUN/mnt _type=ext4 _kept=
    mkdir -p "$_mounted"
    case $1 in
        boot)
            _type=vfat _kept=ldlinux.sys
            _device=$(partition 1)
            mount -t "$_type" "$_device" "$_mounted" || die "cannot mount $_device"
            # What boots the board stays, unless the tarball brings it too; and ldlinux.sys must not even move.
            find "$_mounted" -mindepth 1 -maxdepth 1 ! -iname ldlinux.sys ! -iname ldlinux.c32 ! -iname syslinux.cfg \
                ! -iname MLO ! -iname 'u-boot.*' ! -iname boot.scr ! -iname uEnv.txt -exec rm -rf '{}' + ||
                die "cannot empty $_device"
            # So a tarball's own ldlinux.sys must not replace it, and busybox's tar can't leave a file out.
            _new=$_mounted/.new
            mkdir "$_new" || die "cannot write to $_device"
            _unpack "$2" "$3" "$4" "$_new" -o || die "cannot unpack $3"
            find "$_new" -maxdepth 1 -iname ldlinux.sys -exec rm -f '{}' ';'
            find "$_new" -mindepth 1 -maxdepth 1 -exec mv -f '{}' "$_mounted" ';'
            rmdir "$_new" || die "cannot fill $_device"
            ;;
        *)
            [ "$1" = system ] && _device=$(partition 2) || _device=$(partition 3)
            mkfs.ext4 -q -F -L "$1" "$_device" || die "cannot make a file system on $_device"
            mount -t "$_type" "$_device" "$_mounted" || die "cannot mount $_device"
            _unpack "$2" "$3" "$4" "$_mounted" || die "cannot unpack $3"
            ;;
    esac
    sync
    umount "$_mounted" || die "cannot unmount $_device"
    # Neither of them tells what could not be written: it is not there when it is read again. Without this, the kernel
    # would answer from its memory.
    echo 3 >"$ROOT/proc/sys/vm/drop_caches"
    mount -t "$_type" -o ro "$_device" "$_mounted" || die "cannot mount $_device again"
    (_holds "$_mounted" "$_kept") >"$RUN/compared" 2>&1 ||
        die "$_device does not hold what was unpacked: $(grep -v ': OK$' "$RUN/compared" | head -n 1)"
    umount "$_mounted" || die "cannot unmount $_device"
    say "compared $(wc -l <"$RUN/sums") files on $_device"
}

# install_partitions KIND KEY…: install boot, system and userdata from the directory that the first of these keys of
# the boot config names, else the kernel argument mozpool-base.
install_partitions() {
    _kind=$1
    shift
    BASE=
    for _key in "$@"; do
        BASE=$(boot_config "$_key") && break
        [ $? -ne 2 ] || die "no boot config"
    done
    [ -n "$BASE" ] || BASE=$(kernel_argument mozpool-base) ||
        die "the boot config has no $1, and there is no kernel argument mozpool-base"
    BASE=${BASE%/}
    event "${_kind}_downloading"
    need_disk "$(partition 1)" "$(partition 2)" "$(partition 3)"

    if ! fetch "$BASE/SHA256SUMS" "$RUN/SHA256SUMS"; then
        case $WHY in
            *" 404"*) say "$BASE has no SHA256SUMS: nothing will be compared" ;;
            *) die "$WHY" ;;
        esac
    fi
    _bytes=0
    for _part in $PARTS; do
        _find_tarball "$BASE" "$_part" >"$RUN/$_part"
        read -r _name _sum <"$RUN/$_part"
        case $_name in
            # unxz compares no checksum but CRC32, and xz makes others.
            *.xz) [ -n "$_sum" ] || die "$BASE has no SHA256SUMS: without it nobody sees that $_name is damaged" ;;
        esac
        persist _head "$BASE/$_name" || die "$WHY"
        _size=$(_promised_size)
        _bytes=$((_bytes + ${_size:-1000000000000}))
    done
    _where=$BASE
    if _fits "$_bytes"; then
        _where=$RUN
        for _part in $PARTS; do
            read -r _name _sum <"$RUN/$_part"
            say "downloading $BASE/$_name"
            fetch "$BASE/$_name" "$RUN/$_name" "$_sum" || die "$WHY"
        done
    else
        say "the tarballs are too large for the memory: unpacking while downloading"
    fi

    event "${_kind}_extracting"
    for _part in $PARTS; do
        read -r _name _sum <"$RUN/$_part"
        # What was downloaded has been compared already.
        [ "$_where" = "$BASE" ] || _sum=
        say "installing $_name on $_part"
        _install_part "$_part" "$_where/$_name" "$_name" "$_sum"
        [ "$_where" = "$BASE" ] || rm -f "$_where/$_name"
    done
    event "${_kind}_rebooting"
    restart
}
