#!/bin/sh
# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

# Second stage: wait for a person, who logs in by SSH as root. Keys are part of the live image (build-live-image
# --keys); the kernel argument ssh-keys=URL brings more. There are no passwords.

# shellcheck source=scripts/board/mozpool.sh
. "${MOZPOOL_ROOT:-}/lib/mozpool/mozpool.sh"

keys=$ROOT/root/.ssh/authorized_keys
port=${MOZPOOL_SSH_PORT:-22}

if url=$(kernel_argument ssh-keys); then
    if fetch "$url" "$RUN/keys"; then
        # The file before may have no line end.
        { echo; cat "$RUN/keys"; } >>"$keys"
    else
        say "no keys from there: $WHY"
    fi
fi
grep -qE '^[^#]*(ssh-|ecdsa-|sk-)' "$keys" 2>/dev/null || die "there are no SSH keys, so nobody could log in"
{ chmod 700 "$ROOT/root/.ssh" && chmod 600 "$keys"; } || die "cannot protect $keys"

host_key=$RUN/host-key
[ -f "$host_key" ] || dropbearkey -t ed25519 -f "$host_key" >/dev/null 2>&1 || die "cannot make a host key"
# -s: no passwords. What it says goes to syslog.
dropbear -r "$host_key" -s -p "$port" -P "$RUN/dropbear.pid" || die "the SSH server does not start"

speaks_ssh() {
    [ "$(nc -w 2 127.0.0.1 "$port" </dev/null | head -c 4)" = SSH- ]
}
_wait_for 50 speaks_ssh || die "the SSH server does not answer"
say "waiting for SSH; host key $(dropbearkey -y -f "$host_key" | awk '/^Fingerprint/ { print $2 }')"
event maint_mode
