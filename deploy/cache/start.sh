#!/bin/sh
# Starts the nginx of nginx.conf with the name servers of this machine. The service, the pod and compose.yaml run it.
set -eu
servers=$(sed -n 's/^nameserver[[:space:]]*\([0-9.]*\)[[:space:]]*$/\1/p; s/^nameserver[[:space:]]*\([0-9a-fA-F:]*\)[[:space:]]*$/[\1]/p' \
    /etc/resolv.conf | tr '\n' ' ')
echo "resolver ${servers:-127.0.0.53};" > /run/model-cache/resolver.conf
exec /usr/sbin/nginx -c /etc/nginx/model-cache.conf -e stderr
