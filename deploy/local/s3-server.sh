#!/bin/bash
# A real S3 server on this machine's loopback, for the demo and the tests.
#
#   s3-server.sh up            set up and start, or start again what is there; prints the variables to export
#   s3-server.sh init          the same from scratch: what an earlier server held is removed
#   s3-server.sh start|stop    (SIG=KILL s3-server.sh stop: as a crash would)
#   s3-server.sh env           print the variables:  eval "$(deploy/local/s3-server.sh env)"
#
# Which server, in this order: the one AWS_ENDPOINT_URL names (nothing is started), `minio` on the PATH, Ceph's gateway (radosgw,
# ceph-mon, ceph-osd; installed from Debian or Ubuntu when this runs as root and VEMRAY_S3_INSTALL is not 0).
# Variables: VEMRAY_S3_DIR (state, default $TMPDIR/vemray-s3), VEMRAY_S3_PORT (7480), VEMRAY_S3_BYTES (size of Ceph's disk, sparse, 20 GiB).
set -e
D=${VEMRAY_S3_DIR:-${TMPDIR:-/tmp}/vemray-s3}
PORT=${VEMRAY_S3_PORT:-$(cat "$D/port" 2>/dev/null || echo 7480)}
MON=${VEMRAY_S3_MON_PORT:-$((PORT + 1))} # Ceph's monitor listens on this port and the next
BYTES=${VEMRAY_S3_BYTES:-21474836480}
KEY=vemray-local SECRET=vemray-local-secret # of a server that only this machine can reach
PATH=$PATH:/usr/sbin:/sbin
say() { echo "$*" >&2; }

have_ceph() { command -v radosgw >/dev/null && command -v ceph-mon >/dev/null && command -v ceph-osd >/dev/null; }

choose() { # sets SERVER
  if [ -n "$AWS_ENDPOINT_URL" ]; then SERVER=given
  elif command -v minio >/dev/null; then SERVER=minio
  elif have_ceph; then SERVER=ceph
  elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ "${VEMRAY_S3_INSTALL:-1}" != 0 ]; then
    say "installing Ceph's S3 gateway (radosgw ceph-mon ceph-osd, 62 MB) from this system's packages"
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends radosgw ceph-mon ceph-osd) >&2
    SERVER=ceph
  else
    say "no S3 server here. Set AWS_ENDPOINT_URL, or put minio on the PATH, or install radosgw ceph-mon ceph-osd, or use deploy/compose.yaml."
    exit 3
  fi
}

print_env() {
  if [ -n "$AWS_ENDPOINT_URL" ]; then say "using $AWS_ENDPOINT_URL"; return; fi
  echo "export AWS_ENDPOINT_URL=http://127.0.0.1:$PORT AWS_ACCESS_KEY_ID=$KEY AWS_SECRET_ACCESS_KEY=$SECRET AWS_DEFAULT_REGION=us-east-1"
}

answer() { # wait until the server answers
  for _ in $(seq 600); do curl -s -o /dev/null "http://127.0.0.1:$PORT/" && return; sleep 0.1; done
  say "the S3 server does not answer on port $PORT; its logs are in $D/log"; return 1
}

run() { # run NAME COMMAND...: in the background, its pid in $D/NAME.pid
  local name=$1; shift
  "$@" </dev/null >"$D/log/$name.out" 2>&1 & echo $! >"$D/$name.pid"
}

stop() {
  local name pid
  for name in minio rgw osd mon; do
    pid=$(cat "$D/$name.pid" 2>/dev/null) || continue
    grep -qaE "minio|radosgw|ceph" "/proc/$pid/cmdline" 2>/dev/null && kill "-${SIG:-TERM}" "$pid" 2>/dev/null || true
    for _ in $(seq 100); do grep -q '^State:.[^Z]' "/proc/$pid/status" 2>/dev/null || break; sleep 0.1; done
    rm -f "$D/$name.pid"
  done
}

# ---- MinIO
minio_start() {
  export MINIO_ROOT_USER=$KEY MINIO_ROOT_PASSWORD=$SECRET MINIO_BROWSER=off
  run minio minio server "$D/data" --address "127.0.0.1:$PORT" --quiet
}

# ---- Ceph: one monitor, one disk in a file, the gateway; no manager, no systemd
ceph_conf() {
  cat <<X
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$MON,v1:127.0.0.1:$((MON + 1))]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = $D/keyring
auth allow insecure global id reclaim = false
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail warn = 5
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
paxos propose interval = 0.05
paxos min wait = 0.01
run dir = $D/run
log file = $D/log/\$name.log
admin socket = $D/run/\$name.asok
pid file = $D/run/\$name.pid
log to stderr = false
debug ms = 0/0
debug osd = 0/0
debug bluestore = 0/0
debug bluefs = 0/0
debug rocksdb = 0/0
debug rgw = 0/0
debug mon = 0/0
debug paxos = 0/0
[mon]
mon data = $D/mon
[osd]
osd data = $D/osd0
osd objectstore = bluestore
bluestore block size = $BYTES
osd memory target = 1073741824
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:$PORT tcp_nodelay=1
rgw gc obj min wait = 60
rgw gc processor period = 60
rgw gc processor max time = 60
X
}

ceph_init() {
  local osd pool user waiting="" fsid
  mkdir -p "$D/mon" "$D/osd0" "$D/run"
  ceph_conf >"$D/ceph.conf"
  export CEPH_ARGS="-c $D/ceph.conf"
  fsid=$(sed -n 's/^fsid = //p' "$D/ceph.conf") osd=$(cat /proc/sys/kernel/random/uuid)
  ceph-authtool --create-keyring "$D/keyring" --gen-key -n mon. --cap mon 'allow *' >/dev/null
  for user in client.admin client.rgw osd.0; do
    ceph-authtool "$D/keyring" --gen-key -n $user --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' >/dev/null
  done
  monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$MON,v1:127.0.0.1:$((MON + 1))]" "$D/monmap" >/dev/null
  ceph-mon --mkfs -i a --monmap "$D/monmap" --keyring "$D/keyring"
  run mon ceph-mon -i a $SU -f
  timeout 60 ceph osd new "$osd" >/dev/null
  ceph-osd -i 0 --mkfs --osd-uuid "$osd" $SU >"$D/log/osd-mkfs.out" 2>&1
  run osd ceph-osd -i 0 $SU -f
  for pool in .rgw.root default.rgw.{log,control,meta,buckets.index,buckets.data,buckets.non-ec}; do
    (ceph osd pool create $pool 8 8 replicated && ceph osd pool application enable $pool rgw) >>"$D/log/pools.out" 2>&1 & waiting="$waiting $!"
  done
  wait $waiting
  radosgw-admin -n client.rgw user create --uid=vemray --display-name=vemray --access-key=$KEY --secret-key=$SECRET >/dev/null 2>"$D/log/user.err"
  run rgw radosgw -n client.rgw -f
}

ceph_start() {
  export CEPH_ARGS="-c $D/ceph.conf"
  run mon ceph-mon -i a $SU -f
  run osd ceph-osd -i 0 $SU -f
  run rgw radosgw -n client.rgw -f
}

[ "$(id -u)" = 0 ] && SU="--setuser root --setgroup root"
case "$1" in
init)
  choose
  if [ $SERVER != given ]; then
    stop; rm -rf "$D"; mkdir -p "$D/log" "$D/data"; echo "$PORT" >"$D/port"; echo $SERVER >"$D/server"
    if [ $SERVER = minio ]; then minio_start; else ceph_init; fi
    answer
  fi
  print_env ;;
start)
  [ -f "$D/server" ] || { say "nothing to start in $D: run $0 init"; exit 1; }
  "$(cat "$D/server")_start"; answer ;;
up)
  if [ -n "$AWS_ENDPOINT_URL" ]; then print_env
  elif [ ! -f "$D/server" ]; then exec "$0" init
  else curl -s -o /dev/null "http://127.0.0.1:$PORT/" || "$0" start; print_env; fi ;;
stop) stop ;;
env) print_env ;;
*) sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
