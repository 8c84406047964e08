#!/bin/bash
# Run a command with a local S3 server up and its variables exported: with-s3.sh COMMAND ...    The bucket vemray-demo is there.
set -e
here=$(cd "$(dirname "$0")" && pwd)
"$here/s3-server.sh" up >/dev/null
eval "$("$here/s3-server.sh" env)"
"$here/s3-server.sh" bucket vemray-demo
exec "$@"
