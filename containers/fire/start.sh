#!/bin/bash
# Starts the server within the chroot of FIRE: start.sh LOGFILE. Exported images keep no ENV, so all is said here.
set -eu

log=${1:?expected the path of the log file, for instance /tmp/share/log/cinestream.log}
mkdir -p "$(dirname "$log")"

# the image file is nearly full; what is written goes to the folder that FIRE shares
if [ -d /tmp/share ]; then export TMPDIR=/tmp/share HOME=/tmp/share; fi
export PATH="$PATH:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" PYTHONUNBUFFERED=1
ldconfig || true

# FIRE looks for a process called python3, and waits for this script to end
python3 -m gadgets --verbose serve --host 0.0.0.0 --port 9002 --alias openrecon=cg_sense >"$log" 2>&1 &
