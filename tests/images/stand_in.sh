#!/bin/sh
# Prepare a Debian machine without a Docker engine for `make image-test`: install buildah and podman,
# and build a substitute for the base image from Debian's packages, tagged with the base's name.
set -eu
BASE=docker.io/library/python:3.11-slim-bookworm

for tool in buildah podman runc debootstrap; do
    command -v $tool > /dev/null && continue
    apt-get update -q
    apt-get install -qy --no-install-recommends $tool
done
buildah inspect --type image "$BASE" > /dev/null 2>&1 && exit 0

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates \
    bookworm "$folder" > "$folder.log"
ln -sf python3 "$folder/usr/bin/python"
rm -rf "$folder"/var/cache/apt/archives/*.deb "$folder.log"
container=$(buildah from scratch)
buildah copy -q "$container" "$folder" /
buildah config --cmd python3 \
    --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
buildah commit -q --format docker "$container" "$BASE"
buildah rm "$container" > /dev/null
