# Sourced by start.sh and test.sh: makes .venv and installs the requirements file named as first argument,
# unless exactly that file is already installed there.
requirements=$1
python=${PYTHON:-}
if [ ! -x .venv/bin/python ]; then
    for candidate in ${python:-python3.13 python3.12 python3.11 python3 python}; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
        python=
    done
    if [ -z "$python" ]; then
        echo "snug: Snug needs Python 3.11 or newer, and none was found. Install it, or name it: PYTHON=/path/to/python $0" >&2
        exit 1
    fi
    echo "Setting up .venv with $("$python" --version) (once; it downloads a few gigabytes where PyTorch comes with CUDA)"
    if ! "$python" -m venv .venv; then
        rm -rf .venv
        echo "snug: The virtual environment could not be made. On Debian and Ubuntu: apt install python3-venv" >&2
        exit 1
    fi
fi
stamp=.venv/installed-$requirements
if ! cat requirements.txt "$requirements" | cmp -s - "$stamp"; then
    echo "Installing $requirements into .venv"
    quiet=(--quiet --quiet)
    [ -t 1 ] && quiet=() # a person looks on: show progress
    # PyTorch first: the packages after it are then satisfied with the build that is there.
    .venv/bin/python -m pip install "${quiet[@]}" --disable-pip-version-check "$(grep '^torch==' requirements.txt)" &&
        .venv/bin/python -m pip install "${quiet[@]}" --disable-pip-version-check -r "$requirements" || {
        echo "snug: Installing failed; the lines above say why. Without network, set up .venv on a machine that has one." >&2
        exit 1
    }
    cat requirements.txt "$requirements" >"$stamp"
fi
