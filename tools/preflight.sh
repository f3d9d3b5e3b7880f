#!/bin/sh
# Says what this machine lacks before anything is installed, with the one command that adds it. Usage: preflight.sh PYTHON
set -u
python=$1
if [ -z "$python" ]; then
    echo "Covey needs Python 3.11, 3.12 or 3.13, and there is none on this machine."
    echo "On Debian or Ubuntu:  sudo apt-get install -y python3 python3-venv python3-dev"
    exit 1
fi

sudo=""
[ "$(id -u)" = 0 ] || sudo="sudo "
missing=""
need() { # need PACKAGE COMMAND...
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
header() { # a C header that the compiler finds
    echo "#include <$1>" | ${CC:-cc} -E - >/dev/null 2>&1
}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')

# libp2p's fastecdsa is always compiled: a C compiler, GMP and Python's own headers.
need gcc command -v "${CC:-cc}"
if command -v "${CC:-cc}" >/dev/null 2>&1; then
    need libc6-dev header stdlib.h
    need libgmp-dev header gmp.h
else
    missing="$missing libc6-dev libgmp-dev"
fi
need "python3-dev" test -f "$include/Python.h"
need "python3-venv" "$python" -c 'import venv, ensurepip'
if [ "$version" = 3.13 ]; then
    # plyvel has wheels for 3.11 and 3.12 only.
    need g++ command -v "${CXX:-g++}"
    if command -v "${CC:-cc}" >/dev/null 2>&1; then need libleveldb-dev header leveldb/c.h; else missing="$missing libleveldb-dev"; fi
fi

if [ -n "$missing" ]; then
    echo "This machine lacks what Covey's libraries are built with (Python $version):$missing"
    echo "On Debian or Ubuntu:  ${sudo}apt-get update && ${sudo}apt-get install -y$missing"
    exit 1
fi
