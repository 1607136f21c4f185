#!/bin/sh
# headers.sh FOLDER: ONNX Runtime's C and C++ headers, from Debian 13's libonnxruntime-dev, into
# FOLDER, on any Debian. Installs nothing and needs no root. They are of ONNX Runtime 1.21, which
# suits every library from 1.21 on. On Debian 13 itself: apt-get install libonnxruntime-dev.
set -eu
[ $# = 1 ] || { echo "usage: headers.sh FOLDER" >&2; exit 2; }
command -v apt-get dpkg-deb >/dev/null || {
  echo "headers.sh needs Debian's apt-get and dpkg-deb" >&2
  exit 1
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial" "$1"
# apt, with the mirror and the keys this machine uses, for another release and in folders of its own.
. /etc/os-release
cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
  sed -n "s/^deb \(.*\) $VERSION_CODENAME main.*/deb \1 trixie main/p" >"$work/trixie.list"
for file in /etc/apt/sources.list.d/*.sources; do
  [ -f "$file" ] || continue
  # The paragraph of the release itself; those of updates and security name other suites.
  awk -v RS= -v suite="$VERSION_CODENAME" -v out="$work/trixie.sources" '
    $0 ~ "(^|\n)Suites: *" suite "[ \n]" {
      gsub(/(^|\n)#[^\n]*/, ""); gsub(/Suites:[^\n]*/, "Suites: trixie"); print >out; exit
    }' "$file"
done
list="$work/trixie.list"
[ ! -s "$work/trixie.sources" ] || list="$work/trixie.sources"
apt() {
  apt-get -q -o Dir::Etc::sourcelist="$list" -o Dir::Etc::sourceparts=- \
    -o Dir::State::lists="$work/lists" -o Dir::Cache="$work" -o APT::Sandbox::User=root "$@" \
    >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
}
apt update
(cd "$work" && apt download libonnxruntime-dev)
dpkg-deb -x "$work"/libonnxruntime-dev_*.deb "$work/unpacked"
cp "$work"/unpacked/usr/include/onnxruntime/onnxruntime_*.h "$1"
ls "$1/onnxruntime_c_api.h" "$1/onnxruntime_cxx_api.h"
