#!/bin/sh
# Starts the nginx of nginx.conf with the name servers and the address families of this machine. The service, the pod and
# compose.yaml run it.
set -eu
servers=$(sed -n 's/^nameserver[[:space:]]*\([0-9.]*\)[[:space:]]*$/\1/p; s/^nameserver[[:space:]]*\([0-9a-fA-F:]*\)[[:space:]]*$/[\1]/p' \
    /etc/resolv.conf | tr '\n' ' ')
echo "resolver ${servers:-127.0.0.53};" > /run/model-cache/resolver.conf
# Without IPv6, nginx would not start with this line.
listen=
grep -q . /proc/net/if_inet6 2> /dev/null && listen='s/^ *listen \([0-9]*\);$/listen [::]:\1;/p'
sed -n "$listen" /etc/nginx/model-cache.conf > /run/model-cache/listen.conf
exec /usr/sbin/nginx -c /etc/nginx/model-cache.conf -e stderr
