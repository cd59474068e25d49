#!/bin/sh
# A packhorse worker in POSIX shell with curl: one job at a time. docs/workers-over-http.md says why it does what it does.
#   PACKHORSE_SERVER=http://127.0.0.1:8080 PACKHORSE_TOKEN=… ./worker.sh handlers/
# handlers/ has a program for each job type, named as the type. It reads the payload, JSON, from its input; what it prints
# is the result, as text; exit 0: done, 65: no attempt will help, 75: try again later, any other: failed, with the end of
# its error output. Where there is `setsid`, what a handler started is killed with it.
set -eu
[ -d "${1:-}" ] || { echo 'usage: worker.sh DIRECTORY, which has a program for each job type' >&2 && exit 2; }
server=${PACKHORSE_SERVER:-http://127.0.0.1:8080} handlers=${1%/} lease=${LEASE:-30} queues=${QUEUES:-default}
umask 077
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
# In a file, so that no list of processes shows the token.
printf 'Content-Type: application/json\n' >"$tmp/headers"
[ -z "${PACKHORSE_TOKEN:-}" ] || printf 'Authorization: Bearer %s\n' "$PACKHORSE_TOKEN" >>"$tmp/headers"
setsid=$(command -v setsid || true)
newline='
'

call() { # METHOD PATH BODY: writes the answer. 0: done; 1: refused, sending it again will not help; 2: try again
    reply=$(printf %s "$3" | curl -sS --max-time "$lease" -X "$1" -H "@$tmp/headers" --data-binary @- -w '\n%{http_code}' \
        "$server/api/v1/$2") || return 2
    case ${reply##*"$newline"} in
        2??) printf %s "${reply%"$newline"*}" ;;
        4[0-2]?) printf '%s\n' "$reply" >&2 && return 1 ;;
        *) printf '%s\n' "$reply" >&2 && return 2 ;;
    esac
}

quoted() { # input as a JSON string without its quotes: valid UTF-8, the last 4,000 bytes, no control characters
    tail -c 4000 | iconv -f UTF-8 -t UTF-8 -c 2>/dev/null | tr '\r' ' ' | tr -d '\000-\010\013\014\016-\037\177' |
        sed 's/\\/\\\\/g; s/"/\\"/g; s/	/\\t/g' | awk '{ printf "%s%s", sep, $0; sep = "\\n" }'
}

list() { # WORDS: as a JSON array of strings; names have no characters that would need an escape
    sep='['
    for word in "$@"; do printf '%s"%s"' "$sep" "$word" && sep=,; done
    printf ']'
}

beat() { # keeps the lease. 0: the job is ours; 1: it is lost; 2: nobody answers; 3: it is to be cancelled
    pulse=$(call POST heartbeats "{$about,\"worker\":\"$worker\",\"progress\":[{\"id\":\"$id\",\"token\":\"$token\"}]}") || return 2
    case $pulse in
        *'"lost":[{'*) return 1 ;;
        *'"cancel":["'*) return 3 ;;
    esac
}

settle() { # OUTCOME [FIELDS]: until the server knows. `stale` is as good: then the job is not ours any more
    end="\"outcome\":\"$1\"${2:-}"
    while :; do
        status=0
        call POST settlements "{\"settlements\":[{\"id\":\"$id\",\"token\":\"$token\",$end}]}" >/dev/null || status=$?
        [ $status != 0 ] || return 0
        # Refused: say that instead, or the job would run again and again to the same end.
        [ $status != 1 ] || end='"outcome":"failed","permanent":true,"error":{"kind":"Refused","message":"see the worker"}'
        sleep 1
    done
}

watch() { # PROCESS: beats while it runs, and when it has to stop kills it, with the reason in $tmp/why
    spent=0 silent=0 stopped='' why=''
    while [ -z "$why" ]; do
        sleep 1
        spent=$((spent + 1)) silent=$((silent + 1)) status=0
        mkdir "$tmp/beating" 2>/dev/null || return 0 # the handler has ended
        beat 2>/dev/null || status=$?
        rmdir "$tmp/beating"
        case $status in
            0) silent=0 ;;
            1) why=lost ;;
            3) why=cancelled ;;
        esac
        [ $silent -lt "$lease" ] || why=lost # nobody answered for a whole lease: by now it may run elsewhere
        [ "$timeout_ms" = 0 ] || [ $((spent * 1000)) -lt "$timeout_ms" ] || why=timeout
        if [ -z "$stopped" ] && [ -e "$tmp/stopping" ]; then stopped=$spent; fi
        [ -z "$stopped" ] || [ $((spent - stopped)) -lt 20 ] || why=released
    done
    printf '%s\n' "$why" >"$tmp/why"
    kill -s KILL -- "${setsid:+-}$1" 2>/dev/null # dash takes no `--` after `-KILL`. test_a_run_is_stopped_at_its_time_out
}

run() { # runs the job and ends it
    # Renew before the start, as much of the lease may be gone; what nobody says is ours does not start.
    beat || { settle released && return; }
    rm -f "$tmp/why"
    $setsid "$handlers/$type" <"$tmp/payload" >"$tmp/out" 2>"$tmp/err" &
    handler=$!
    watch $handler &
    watcher=$!
    while :; do # a signal to this shell ends the wait, not the handler
        status=0
        wait $handler 2>/dev/null || status=$? # some shells say there that it was killed
        if [ $status -le 128 ] || ! kill -0 $handler 2>/dev/null; then break; fi
    done
    # A heartbeat on its way is let arrive: after we retired it would list us again.
    until mkdir "$tmp/beating" 2>/dev/null || ! kill -0 $watcher 2>/dev/null; do sleep 1; done
    kill -KILL $watcher 2>/dev/null || true # a shell that has only just begun may miss any other signal
    wait $watcher 2>/dev/null || true
    rmdir "$tmp/beating" 2>/dev/null || true
    why=$(cat "$tmp/why" 2>/dev/null || true)
    case ${why:-$status} in
        lost) ;;
        cancelled | released) settle "$why" ;;
        timeout) settle failed ',"error":{"kind":"TimedOut","message":"still running at its time-out"}' ;;
        0) settle succeeded ",\"result\":\"$(quoted <"$tmp/out")\"" ;;
        65) settle failed ",\"permanent\":true,\"error\":{\"kind\":\"Exit65\",\"message\":\"$(quoted <"$tmp/err")\"}" ;;
        75) settle retry ",\"error\":{\"kind\":\"Exit75\",\"message\":\"$(quoted <"$tmp/err")\"}" ;;
        *) settle failed ",\"error\":{\"kind\":\"Exit$status\",\"message\":\"$(quoted <"$tmp/err")\"}" ;;
    esac
}

types=$(cd "$handlers" && for name in *; do if [ -x "$name" ] && [ -f "$name" ]; then printf '%s\n' "$name"; fi; done)
# shellcheck disable=SC2046,SC2086 # words are meant
about="\"lease\":$lease,\"queues\":$(list $(printf %s "$queues" | tr , ' ')),\"types\":$(list $types),\"concurrency\":1,\"pid\":$$"
new_worker() { # an id is never used again: what the one before held is not ours
    worker=sh-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
}
new_worker
stopping='' claim=''
trap 'stopping=1; : >"$tmp/stopping"; kill -KILL $claim 2>/dev/null || true' TERM INT
while [ -z "$stopping" ]; do
    curl -fsS --max-time "$lease" -H "@$tmp/headers" --data-binary "{$about,\"worker\":\"$worker\",\"wait\":10}" \
        -o "$tmp/claimed" "$server/api/v1/claims" &
    claim=$! status=0
    wait $claim || status=$?
    claim=''
    if [ $status != 0 ]; then # refused, no answer, or a signal: a server that is hung up on claims nothing more
        # An answer that got lost may have had a job in it. We run none, so that is all this id can hold: give it back.
        held=$(call POST heartbeats "{$about,\"worker\":\"$worker\"}" | sed -n 's/.*"held":{"\([^"]*\)":"\([^"]*\)".*/\1 \2/p')
        id=${held% *} token=${held#* }
        [ -z "$held" ] || settle released
        call DELETE "workers/$worker" '' >/dev/null || true
        new_worker
        [ -n "$stopping" ] || sleep 1
        continue
    fi
    # No JSON parser is needed: the fields always come in this order, and what somebody chose freely comes after them.
    start='^{"worker":"[^"]*","lease_ms":[0-9]*,"waited_ms":[0-9]*,"jobs":\[{"id":"\([^"]*\)","token":"\([^"]*\)","type":"\([^"]*\)"'
    more=',"queue":"[^"]*","attempt":[0-9]*,"max_attempts":[0-9]*,"timeout_ms":\([0-9]*\),.*'
    sed -n "s/$start$more/\\1 \\2 \\3 \\4/p" "$tmp/claimed" >"$tmp/job"
    [ -s "$tmp/job" ] || continue
    read -r id token type timeout_ms <"$tmp/job" || true # there is no end of line
    # From the first "payload" to the last "meta": inside of a text their quotes would be escaped.
    awk '{ text = text $0 } END {
        text = substr(text, index(text, ",\"payload\":") + 11)
        while (at = index(text, ",\"meta\":{")) {
            payload = payload mark substr(text, 1, at - 1)
            mark = ",\"meta\":{"
            text = substr(text, at + length(mark))
        }
        print payload }' "$tmp/claimed" >"$tmp/payload"
    if [ -z "$stopping" ]; then run; else settle released; fi
done
call DELETE "workers/$worker" '' >/dev/null || true
