#!/bin/sh
# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

# Called by udhcpc with what the DHCP server said in variables: sets the interface up, and keeps name and router.

RUN=${MOZPOOL_ROOT:-}/run/mozpool

# udhcpc sets these.
: "${interface:=}" "${ip:=}" "${subnet:=255.255.255.0}" "${router:=}" "${dns:=}" "${domain:=}" "${hostname:=}"

case $1 in
    deconfig)
        ifconfig "$interface" 0.0.0.0 up
        ;;
    bound | renew)
        ifconfig "$interface" "$ip" netmask "$subnet" up
        if [ -n "$router" ]; then
            while route del default dev "$interface" 2>/dev/null; do :; done
            # The first of several.
            route add default gw "${router%% *}" dev "$interface"
        fi
        for server in $dns; do echo "nameserver $server"; done >"${MOZPOOL_ROOT:-}/etc/resolv.conf"
        [ -z "$domain" ] || echo "search $domain" >>"${MOZPOOL_ROOT:-}/etc/resolv.conf"
        printf '%s\n' "$ip" >"$RUN/address"
        printf '%s\n' "$hostname" >"$RUN/hostname"
        ;;
esac
