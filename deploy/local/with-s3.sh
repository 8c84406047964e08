#!/bin/bash
# with-s3.sh PYTHON ARGS ...: run Python with a local S3 server up, its variables exported, and the bucket vemray-demo there.
set -e
here=$(cd "$(dirname "$0")" && pwd)
"$here/s3-server.sh" up >/dev/null
eval "$("$here/s3-server.sh" env)"
"$1" -c 'import s3fs; fs = s3fs.S3FileSystem(); fs.exists("vemray-demo") or fs.mkdir("vemray-demo")'
exec "$@"
