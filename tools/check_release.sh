#!/usr/bin/env bash
# Builds wheel and sdist, checks them, and uses both in empty environments away from the checkout:
# tools/check_release.sh TOOLS PYTHON..., where TOOLS is a Python with build, twine and pytest.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools=$PWD/$1
shift
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
unset PYTHONPATH

"$tools" -m pytest -q tests/test_packaging.py -m slow -k holds_every_module
"$tools" -m build --outdir "$scratch/dist" . >"$scratch/build.log" || { cat "$scratch/build.log"; exit 1; }
"$tools" -m twine check --strict "$scratch"/dist/*

for python in "$@"; do
    environment=$scratch/environment
    "$python" -m venv "$environment"
    for distribution in "$scratch"/dist/*; do
        printf '\n== %s in an empty environment of %s\n' "${distribution##*/}" "$("$python" --version)"
        "$environment/bin/python" -m pip install --quiet --no-compile "$distribution"
        (
            PATH=$environment/bin:$PATH
            cd "$(mktemp -d -p "$scratch")"
            python -c 'import pyro_ext, sys; sys.exit(not pyro_ext.__file__.startswith(sys.prefix))'
            pyro-ext --help >/dev/null
            pyro-ext list >/dev/null
            pyro-ext doctor --no-compile
            pyro-ext new study
            [[ $distribution == *.whl ]] || exit 0 # the same files, which one run of them is enough for
            python -m pip install --quiet --no-compile 'pyro-ext[plots]' pytest
            cd study
            python -m pytest -q
            PYRO_EXT_SMOKE=1 pyro-ext reproduce page.py
        )
        "$environment/bin/python" -m pip uninstall --quiet --yes pyro-ext # and keep what it needs
    done
    rm -rf "$environment"
done
