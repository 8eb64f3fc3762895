#!/bin/sh
# boot-models.sh [COMMAND...]: has the models that this machine needs on disk, verified, and then becomes COMMAND.
#
#   MACHINE_MODELS_NEEDED       ids with commas between, such as flux-dev,sdxl-base; what they need comes along
#   CATALOG_URL                 such as http://catalog:3000
#   MODELS_DIR                  the folder that save paths are below, such as /workspace/ComfyUI/models
#   HF_TOKEN, CIVITAI_TOKEN     for models that need a token; HF_ENDPOINT names another hub, as for the hub's client
#   MACHINE_MODELS_STRICT=1     COMMAND does not start while a model is missing
#   MACHINE_MODELS_WAIT=60      seconds to wait for the catalog
#   MACHINE_MODELS_TRIES=3      times that a download is begun or gone on with
#   MACHINE_MODELS_PARALLEL=4   files at a time
#   MACHINE_MODELS_CONNECTIONS=4  connections a file
#   MACHINE_MODELS_LINKS=1      folders below MODELS_DIR may be links to places outside of it
#
# Whatever fails is a warning and does not stop the rest. Without COMMAND the exit status is 0 if all is there, else 1.
# Needs aria2c, curl, awk and coreutils.
#
# A token reaches curl's standard input, once, and nothing else: aria2c would send it on to wherever it is redirected,
# so curl follows the redirects, and aria2c gets the address at their end. Only a file that the provider itself serves
# is fetched by curl. Tracing would print tokens, and exporting hand them on, so both are off.
set +ax
set -u
tab=$(printf '\t')

say() { printf 'boot-models: %s\n' "$*" >&2; }

# Seconds, and as many again at most: machines that boot together should not come back together.
# In the background, for a signal is looked at only between two programs.
pause() {
    sleep $(($1 + $(od -An -N2 -tu2 /dev/urandom) % ($1 + 1))) >/dev/null 2>&1 &
    wait $!
}

# A setting that must be a number, else its default.
number() {
    case $2 in
        '' | 0 | *[!0-9]*) [ -z "$2" ] || say "$1 must be a number above 0: it is taken as $3"; echo "$3" ;;
        *) echo "$2" ;;
    esac
}

# A token without the white space around it, as the hub's client reads it; nothing if it could not be in a header.
token() {
    cleaned=$(printf '%s' "$2" | tr -d '[:space:]')
    case $cleaned in
        *[!A-Za-z0-9._~+/=-]*) say "$1 is ignored: it has characters that no token has" ;;
        *) printf '%s' "$cleaned" ;;
    esac
}

# scheme://host:port of an address, without the default port; nothing if anything stands there but a plain host.
origin() {
    printf '%s\n' "$1" | awk '
        match($0, /^[Hh][Tt][Tt][Pp][Ss]?:\/\/([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(\/|$)/) {
            origin = tolower(substr($0, 1, RLENGTH)); sub(/\/$/, "", origin)
            sub(origin ~ /^https/ ? ":443$" : ":80$", "", origin); print origin
        }'
}

# Sets secret to the token that may go to this address.
secret_for() {
    secret=
    case $(origin "$1") in
        '') ;;
        https://huggingface.co | "$hf_origin") secret=$hf_token ;;
        https://civitai.com) secret=$civitai_token ;;
    esac
}

# The address and the token as a configuration for curl, which is on its standard input and not on its command line.
request() {
    printf 'url = "%s"\n' "$1"
    [ -z "$2" ] || printf 'header = "Authorization: Bearer %s"\n' "$2"
}

# curl without the user's own settings, which could make it follow redirects or talk.
curl_() { curl -q -s -g --proto '=http,https' --connect-timeout 10 -K - "$@"; }

# An address that means the same to this script, to curl and to aria2c.
is_address() {
    case $1 in
        http://?* | https://?*) case $1 in *[!!-~]* | *[\"\\]*) return 1 ;; esac ;;
        *) return 1 ;;
    esac
}

# Asks the catalog; the answer is in $work/answer. 0 an answer, 1 try again, 2 no use.
ask() {
    status=$(request "${CATALOG_URL%/}/api/models/batch?format=aria2" '' | curl_ --max-time 30 \
        --data-binary "@$work/ask" -H 'content-type: application/json' -o "$work/answer" -w '%{http_code}')
    complete=$?
    case $status in
        200)
            if [ $complete -ne 0 ]; then problem='its answer broke off' && return 1; fi
            case $(head -n 1 "$work/answer") in '# model-catalog: '*) return 0 ;; esac
            problem='the answer is no list of models' && return 2 ;;
        000) problem='no answer' && return 1 ;;
        400 | 404 | 405 | 413) problem="status $status: $(head -c 300 "$work/answer" | tr -d '[:cntrl:]')" && return 2 ;;
        *) problem="status $status" && return 1 ;;
    esac
}

# Models of the answer as lines of fields, `-` where there is none; what is not there goes to $work/missing. A catalog
# is trusted with which files a machine has, not with where else they could go: paths are looked at once more.
read_answer() {
    awk -v OFS='\t' -v missing="$work/missing" '
        function flush() {
            if (id == "") return
            if (unwritten != "") print id, unwritten >>missing
            else if (url !~ /^https?:\/\/[!-~]+$/ || url ~ /["\\]/) print id, "its address is not plain http or https" >>missing
            else if (dir == "" || out == "" || out ~ /\// || ("/" dir "/" out "/") ~ /\/\.\.\/|\\/ || dir ~ /^\// ||
                out == "." || dir ~ /^(\.\/)*\.boot-models(\/|$)/)
                print id, "its save path is not below the models folder" >>missing
            else print ++n, auth, bytes, sum, url, (dir == "." ? out : dir "/" out), id
            id = ""
        }
        /[[:cntrl:]]/ { next }
        /^# not found: / { print substr($0, 14), "the catalog does not have it" >>missing }
        /^# missing dependency: / { print substr($0, 23), "the catalog does not have it" >>missing }
        /^# id: / { flush(); id = substr($0, 7); url = dir = out = unwritten = ""; auth = "false"; bytes = sum = "-" }
        /^# size: [0-9.]+ GB$/ { bytes = sprintf("%.0f", $3 * 1e9) }
        /^# auth_required: true$/ { auth = "true" }
        /^# cannot be written: / { unwritten = substr($0, 22) }
        /^[^# ]/ { url = $0 }
        /^  dir=/ { dir = substr($0, 7) }
        /^  out=/ { out = substr($0, 7) }
        /^  checksum=(md5|sha-1|sha-224|sha-256|sha-384|sha-512|adler32)=[0-9a-f]+$/ { sum = substr($0, 12) }
        END { flush() }' "$work/answer"
}

# Whether file $1 has checksum $2; 2 if nobody can say.
has_checksum() {
    case $2 in
        sha-*) tool=sha$(printf '%s' "${2#sha-}" | cut -d= -f1)sum ;;
        md5=*) tool=md5sum ;;
        *) return 2 ;;
    esac
    command -v "$tool" >/dev/null || return 2
    [ "$("$tool" <"$1" | cut -d' ' -f1)" = "${2#*=}" ]
}

# Whether $1 bytes can be what a catalog that rounds, or counts in 2^30, says is $2.
plausible() {
    if [ "$2" = - ]; then return 0; fi
    near=$(($2 / 10 + 10000000))
    [ $(($1 - $2)) -le $near ] && [ $(($2 - $1)) -le $near ]
}

# The folder of path $1, made if need be; fails where it would not be below the models folder.
make_folder() {
    parent=. && case $1 in */*) parent=${1%/*} ;; esac
    existing=$parent
    until [ -e "./$existing" ] || [ -L "./$existing" ]; do
        case $existing in */*) existing=${existing%/*} ;; *) existing=. ;; esac
    done
    real=$(cd -P "./$existing" 2>/dev/null && pwd -P) || return 1
    case $real/ in "${root%/}"/*) ;; *) [ "${MACHINE_MODELS_LINKS-}" = 1 ] || return 1 ;; esac
    mkdir -p "./$parent" 2>/dev/null
}

# Follows the redirects of address $1 by asking for one byte at each. Sets final, total (bytes or -) and secret, the
# token that the last one was asked with; or problem. 1: worth another try, 2: not.
resolve() {
    final=$1 hops=0 total=-
    while is_address "$final"; do
        secret='' && if [ "$auth" = true ]; then secret_for "$final"; fi
        # A server that knows no ranges sends everything; dd hangs up on it.
        request "$final" "$secret" | curl_ --max-time 60 -r 0-0 -D "$work/head.$n" -o - \
            -w '%{stderr}%{http_code} %{redirect_url}\n' 2>"$work/meta.$n" | dd bs=1 count=1 of=/dev/null 2>/dev/null
        status=000 location='' && read -r status location <"$work/meta.$n"
        case $status in
            200 | 206)
                total=$(tr -d '\r' <"$work/head.$n" | awk -v status="$status" 'tolower($1) ~ /^content-(range|length):$/ {
                    if (status == 206 && tolower($1) == "content-range:" && sub(/.*\//, "")) total = $0
                    if (status == 200 && tolower($1) == "content-length:") total = $2 }
                    END { print total ~ /^[0-9]+$/ ? total : "-" }')
                return 0 ;;
            301 | 302 | 303 | 307 | 308)
                hops=$((hops + 1)) && final=$location
                if [ $hops -gt 10 ]; then problem='it is redirected without end' && return 2; fi ;;
            401 | 403)
                problem="status $status"
                if [ -n "$secret" ]; then problem="$problem: the token does not do"
                elif [ "$auth" = true ]; then problem="$problem: it needs a token"; fi
                return 2 ;;
            000) problem='its server does not answer' && return 1 ;;
            408 | 425 | 429 | 5??) problem="status $status" && return 1 ;;
            *) problem="status $status" && return 2 ;;
        esac
    done
    problem='it is redirected to an odd address'
    return 2
}

# What is to be done for one model, as one line in $work/plan.$n: there, failed REASON, retry REASON, or
# aria2/curl KEY TOTAL ADDRESS.
plan() {
    known=1
    if ! make_folder "$path"; then echo 'failed its folder can not be made below the models folder' && return; fi
    if [ -d "./$path" ]; then echo 'failed its save path is a folder' && return; fi
    if [ -f "./$path" ]; then
        has_checksum "./$path" "$sum"
        known=$?
        if [ "$known" -eq 0 ]; then echo there && return; fi
    fi
    resolve "$url"
    resolved=$?
    if [ -f "./$path" ] && [ "$known" -eq 2 ]; then
        # A file gets its name when it is whole, so where its server is silent the size in the catalog will do.
        size=$(wc -c <"./$path")
        if [ "$total" != - ]; then [ "$size" -eq "$total" ]; else plausible "$size" "$bytes"; fi && echo there && return
    fi
    case $resolved in
        1) echo "retry $problem" && return ;;
        2) echo "failed $problem" && return ;;
    esac
    if [ "$sum" = - ] && [ "$total" != - ] && ! plausible "$total" "$bytes"; then
        echo "failed its server has $total bytes, the catalog says $bytes" && return
    fi
    key=$(printf '%s\n' "$url" "$path" "$sum" | sha256sum | cut -c1-24)
    if [ -n "$secret" ]; then echo "curl $key $total $final"; else echo "aria2 $key $total $final"; fi
}

# Runs $1 for every line of file $2, so many at a time.
each() {
    running=0
    while IFS=$tab read -r n auth bytes sum url path id; do
        "$1" &
        running=$((running + 1))
        if [ $running -ge "$parallel" ]; then wait && running=0; fi
    done <"$2"
    wait
}

record() { printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$@"; }

planned() { plan >"$work/plan.$n"; }

# Whether the disk has room for what is left of a file.
has_room() {
    size=$bytes && if [ "$size" = - ] || { [ "$total" != - ] && [ "$total" -gt "$size" ]; }; then size=$total; fi
    [ "$size" != - ] || return 0
    have=0 && if [ -f "$1" ]; then have=$(($(du -k "$1" | cut -f1) * 1024)); fi
    left=$((size - have))
    if [ $left -gt "$free" ]; then problem="it needs $left bytes, and $free are free" && return 1; fi
    if [ $left -gt 0 ]; then free=$((free - left)); fi
}

# Hands out what the plans say: to $work/aria2.in and $work/curl, or to the lists of what is done or hopeless.
hand_out() {
    free=$(df -Pk . | awk 'NR == 2 { printf "%.0f", $4 * 1024 }')
    : >"$work/aria2.in" && : >"$work/curl" && : >"$work/left"
    while IFS=$tab read -r n auth bytes sum url path id; do
        what='' && read -r what key rest <"$work/plan.$n"
        total=${rest%% *} address=${rest#* } part=.boot-models/$key.$what
        case $what in
            there) echo "$n" >>"$work/there" && continue ;;
            failed | retry) problem="$key $rest" ;;
            aria2 | curl)
                # Without its control file, what aria2 left may have holes.
                if [ "$what" = aria2 ] && [ ! -e "$part.aria2" ]; then rm -f "$part"; fi
                if [ -e "$part" ]; then : >"$work/resumed.$n"; fi
                has_room "$part" || what=failed ;;
            *) what=retry problem='its plan is missing' ;;
        esac
        if [ "$what" = failed ]; then printf '%s\t%s\n' "$id" "$problem" >>"$work/missing" && continue; fi
        record "$n" "$auth" "$bytes" "$sum" "$url" "$path" "$id" >>"$work/left"
        case $what in
            retry) echo "$problem" >"$work/why.$n" ;;
            curl) record "$n" "$auth" "$total" "$sum" "$address" "$part" "$id" >>"$work/curl" ;;
            aria2)
                printf '%s\n  gid=%06x0000000001\n  dir=.boot-models\n  out=%s\n' "$address" "$n" "${part##*/}"
                [ "$sum" = - ] || printf '  checksum=%s\n' "$sum" ;;
        esac >>"$work/aria2.in"
    done <"$1"
}

# Fetches one file from its provider itself; a redirect is not followed.
fetch_with_token() {
    secret_for "$url"
    request "$url" "$secret" | curl_ -f -C - -o "$path" --speed-limit 1 --speed-time 30
    # The server can't go on in the middle.
    if [ $? -eq 33 ]; then rm -f "$path"; fi
}

fetch() {
    fetchers=
    if [ -s "$work/aria2.in" ]; then
        aria2c --no-conf --no-netrc --input-file="$work/aria2.in" --max-concurrent-downloads="$parallel" \
            --max-connection-per-server="$connections" --split="$connections" --min-split-size=16M \
            --always-resume=false --allow-overwrite=true --auto-file-renaming=false --file-allocation=none \
            --auto-save-interval=10 --follow-torrent=false --follow-metalink=false --max-tries=3 --retry-wait=1 \
            --connect-timeout=10 --timeout=30 --enable-color=false --summary-interval=0 --console-log-level=error \
            --download-result=full --stop-with-process=$$ >"$work/aria2.log" 2>&1 &
        fetchers=$!
    fi
    each fetch_with_token "$work/curl" &
    fetchers="$fetchers $!"
    wait
}

# Gives a whole file its name. Across filesystems mv copies, so the name comes last.
keep() {
    if mv -f "$1" "./$path.part" && mv -f "./$path.part" "./$path"; then return 0; fi
    problem='it can not be moved to its save path' && return 1
}

# Whether the file of a plan has come whole; what is not what the catalog says does not stay. 1: worth another try,
# 2: not.
arrived() {
    read -r what key total address <"$work/plan.$n"
    part=.boot-models/$key.$what
    problem='the download broke off'
    case $what in
        aria2)
            if grep -q "^$(printf '%06x' "$n")|OK" "$work/aria2.log"; then keep "$part" && return; return 2; fi
            grep -qF "Checksum error detected. file=.boot-models/$key.aria2" "$work/aria2.log" || return 1 ;;
        curl)
            [ -f "$part" ] || return 1
            has_checksum "$part" "$sum"
            known=$? size=$(wc -c <"$part")
            if [ "$total" != - ] && [ "$size" -lt "$total" ]; then return 1; fi
            if [ $known -eq 0 ] || { [ $known -eq 2 ] && [ "$size" = "$total" ]; }; then keep "$part" && return; return 2; fi ;;
        *) problem=$(cat "$work/why.$n") && return 1 ;;
    esac
    problem='its checksum is not the one in the catalog'
    rm -f "$part" "$part.aria2"
    # What it went on from may have been of another file.
    if [ -e "$work/resumed.$n" ]; then rm "$work/resumed.$n" && return 1; fi
    return 2
}

# One round: plan, fetch, look what has come. What has not stays in $work/todo.
try() {
    each planned "$work/todo"
    hand_out "$work/todo"
    fetch
    : >"$work/todo"
    while IFS=$tab read -r n auth bytes sum url path id; do
        arrived
        came=$?
        if [ $came -eq 0 ]; then
            echo "$n" >>"$work/fetched"
        elif [ $came -eq 1 ] && [ "$1" -lt "$tries" ]; then
            record "$n" "$auth" "$bytes" "$sum" "$url" "$path" "$id" >>"$work/todo"
        else
            printf '%s\t%s\n' "$id" "$problem" >>"$work/missing"
        fi
    done <"$work/left"
}

lines() { if [ -f "$1" ]; then wc -l <"$1" | tr -d ' '; else echo 0; fi; }

# Everything up to COMMAND. Runs in a shell of its own, so COMMAND finds its environment and folder as they were.
get_models() {
    # From here on no program has a token in its environment.
    unset hf hf_token civitai civitai_token secret
    hf=${HF_TOKEN-} civitai=${CIVITAI_TOKEN-}
    unset HF_TOKEN CIVITAI_TOKEN
    export LC_ALL=C
    work=$(mktemp -d) || return 1
    fetchers=
    trap 'rm -rf "$work"' EXIT
    trap 'kill $fetchers 2>/dev/null; exit 143' TERM
    hf_token=$(token HF_TOKEN "$hf") civitai_token=$(token CIVITAI_TOKEN "$civitai")
    hf_origin=$(origin "${HF_ENDPOINT:-https://huggingface.co}")
    [ -n "$hf_origin" ] || say 'HF_ENDPOINT is ignored: it is no plain http or https address'
    tries=$(number MACHINE_MODELS_TRIES "${MACHINE_MODELS_TRIES-}" 3)
    wait_for=$(number MACHINE_MODELS_WAIT "${MACHINE_MODELS_WAIT-}" 60)
    parallel=$(number MACHINE_MODELS_PARALLEL "${MACHINE_MODELS_PARALLEL-}" 4)
    connections=$(number MACHINE_MODELS_CONNECTIONS "${MACHINE_MODELS_CONNECTIONS-}" 4)

    for program in curl aria2c awk sha256sum; do
        if ! command -v "$program" >/dev/null; then say "$program is not installed" && return 1; fi
    done
    if ! is_address "${CATALOG_URL-}"; then say 'CATALOG_URL must be an http or https address' && return 1; fi
    if [ -z "${MODELS_DIR-}" ]; then say 'MODELS_DIR must be a folder' && return 1; fi
    if ! { mkdir -p "$MODELS_DIR" && cd "$MODELS_DIR" && mkdir -p .boot-models; }; then
        say "$MODELS_DIR can not be made" && return 1
    fi
    root=$(pwd -P)
    # Machines may share a volume, and one machine may boot twice.
    if command -v flock >/dev/null && exec 9>.boot-models/lock; then
        flock -n 9 || { say 'waiting for another boot in this folder' && flock 9 & wait $!; }
    fi
    find .boot-models -type f -mtime +7 ! -name lock -exec rm -f {} +

    printf '%s' "$MACHINE_MODELS_NEEDED" | tr '\n' , | awk -v RS=, '
        { gsub(/^[[:space:]]+|[[:space:]]+$/, ""); gsub(/[[:cntrl:]]/, ""); gsub(/[\\"]/, "\\\\&") }
        $0 != "" { ids = ids (ids == "" ? "" : ",") "\"" $0 "\"" }
        END { print "{\"model_ids\":[" ids "],\"resolve_dependencies\":true}" }' >"$work/ask"
    if grep -qF '":[],' "$work/ask"; then return 0; fi
    until=$(($(date +%s) + wait_for)) delay=1
    until ask; do
        if [ $? -eq 2 ] || [ "$(date +%s)" -ge "$until" ]; then say "the catalog can not be asked: $problem" && return 1; fi
        pause $delay
        if [ $delay -lt 8 ]; then delay=$((delay * 2)); fi
    done

    : >"$work/missing"
    read_answer >"$work/models"
    # Of several models with one path the first has it; the others are there with it if they are the same file.
    awk -F '\t' -v missing="$work/missing" '
        !($6 in first) { first[$6] = $4 FS $5; print; next }
        first[$6] != $4 FS $5 { print $7 FS "another model has the save path " $6 >>missing }' "$work/models" >"$work/todo"
    count=$(lines "$work/todo") round=1
    while :; do
        try $round
        [ -s "$work/todo" ] || break
        pause $((round * 2))
        round=$((round + 1))
    done
    while IFS=$tab read -r id problem; do say "missing: $id: $problem"; done <"$work/missing"
    say "$count models: $(lines "$work/fetched") fetched, $(lines "$work/there") were there, $(lines "$work/missing") missing"
    [ ! -s "$work/missing" ]
}

status=0
if [ -n "${MACHINE_MODELS_NEEDED-}" ]; then
    get_models &
    child=$!
    trap 'kill $child 2>/dev/null; exit 143' TERM INT HUP
    wait $child
    status=$?
    trap - TERM INT HUP
fi
if [ $# -eq 0 ]; then exit $status; fi
if [ $status -ne 0 ] && [ "${MACHINE_MODELS_STRICT-}" = 1 ]; then
    say "MACHINE_MODELS_STRICT is set: $1 is not started"
    exit 1
fi
exec "$@"
