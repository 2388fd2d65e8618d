#!/bin/bash
# Makes the chroot image of FIRE from a Docker image: make_chroot.sh IMAGE FILE [FREE_MIB]. Wants root, docker, mke2fs.
set -euo pipefail

image=${1:?expected the name of a Docker image, for instance cinestream-fire:0.1.0}
output=${2:?expected the file to write, for instance cinestream.img}
free=${3:-256}
if [ "$(id -u)" != 0 ]; then
    echo "make_chroot.sh: run it as root; the files of the image belong to root, and it needs device nodes" >&2
    exit 1
fi
if [ -e "$output" ]; then
    echo "make_chroot.sh: $output exists; choose another file" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
container=$(docker create "$image")
docker export --output "$work/root.tar" "$container"
docker rm "$container" >/dev/null
mkdir "$work/root"
tar --extract --numeric-owner --file "$work/root.tar" --directory "$work/root"
rm "$work/root.tar"

mkdir -p "$work"/root/dev "$work"/root/proc "$work"/root/tmp/share/{code,dependency,log,saved_data}
chmod 1777 "$work/root/tmp"
for node in "null 1 3" "zero 1 5" "random 1 8" "urandom 1 9"; do
    read -r name major minor <<<"$node"
    [ -e "$work/root/dev/$name" ] || mknod --mode 666 "$work/root/dev/$name" c "$major" "$minor"
done

# ext3 spends some of the room on itself
kib=$(du --summarize --block-size=1K "$work/root" | cut -f 1)
mke2fs -q -t ext3 -d "$work/root" "$output" "$((kib * 115 / 100 + free * 1024))K"
e2fsck -f -n "$output" >/dev/null
echo "chroot of $image in $output, $((free)) MiB free"
