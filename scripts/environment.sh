# Sourced by the other scripts: a Python, a virtual environment from the lock, and the system's own services.
# It never uses sudo to install behind a person's back when sudo would ask for a password: it prints the command.

fail() { echo "$(basename "$0"): $*" >&2; exit 2; }

choose_python() {
  local candidate
  for candidate in ${HOLDFAST_PYTHON:-} python3.13 python3.12 python3.11 python3; do
    if command -v "$candidate" >/dev/null 2>&1 &&
       "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$candidate"; return
    fi
  done
  echo "$(basename "$0"): needs Python 3.11, 3.12 or 3.13 with venv. Run: apt-get install -y python3 python3-venv" \
       "(or name one: HOLDFAST_PYTHON=/path/to/python3.12 $0)" >&2
  exit 2
}

# Makes .venv from the hashed lock of this Python's version; does nothing when the lock has not changed.
make_environment() {
  local python version lock stamp
  python=$(choose_python) || exit 2
  version=$("$python" -c 'import sys; print("%d%d" % sys.version_info[:2])')
  lock="scripts/locks/dev-py$version.txt"
  # What the environment depends on: the lock, and pyproject.toml up to the tools' settings.
  stamp="$({ cat "$lock"; sed '/^\[tool\.mypy\]/,$d' pyproject.toml; } | sha256sum | cut -d' ' -f1) $PWD"
  if [ "$(cat .venv/holdfast-lock 2>/dev/null)" != "$stamp" ]; then
    echo "setting up .venv from $lock (about a minute the first time)" >&2
    rm -rf .venv
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r "$lock" >&2 ||
      fail "could not install $lock: see pip's words above"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . >&2 ||
      fail "could not install this project into .venv: see pip's words above"
    echo "$stamp" > .venv/holdfast-lock
  fi
  export PATH="$PWD/.venv/bin:$PATH" VIRTUAL_ENV="$PWD/.venv"
}

# The predecessor of LiteRT and the numpy that it needs, in a folder of their own beside what the tests run with: two packages of
# their lock, 5 s. Nothing on a Python that has no such wheels.
make_legacy_tflite() {
  local lock=scripts/locks/agent-tflite-legacy-py311.txt folder=.venv/tflite-legacy stamp
  .venv/bin/python -c 'import platform, sys; sys.exit(sys.version_info[:2] != (3, 11) or platform.machine() != "x86_64")' || return 0
  stamp=$(sha256sum "$lock" | cut -d' ' -f1)
  [ "$(cat "$folder/holdfast-lock" 2>/dev/null)" = "$stamp" ] && return
  rm -rf "$folder"
  awk '/^[a-z]/ { wanted = /^(numpy|tflite-runtime)==/ } wanted' "$lock" > .venv/tflite-legacy.txt
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
    --no-compile --target "$folder" -r .venv/tflite-legacy.txt >&2 || fail "could not install $lock: see pip's words above"
  echo "$stamp" > "$folder/holdfast-lock"
}

# need_program PROGRAM PACKAGE: installs PACKAGE with apt-get when PROGRAM is missing and we may; else says the exact command.
need_program() {
  local program=$1 package=$2 as_root=()
  # Debian keeps servers where not every PATH looks.
  local elsewhere; elsewhere=$(printf ':%s' /usr/sbin /sbin /usr/lib/postgresql/*/bin)
  PATH="$PATH$elsewhere" command -v "$program" >/dev/null 2>&1 && return
  command -v apt-get >/dev/null 2>&1 || fail "$program is missing. Install the package that brings it (Debian: $package)."
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then as_root=(sudo -n)
    else fail "$program is missing. Run: sudo apt-get install -y --no-install-recommends $package"; fi
  fi
  echo "installing $package for $program" >&2
  # A service that the package would start is kept from starting: we only ever run a broker of our own.
  local policy=/usr/sbin/policy-rc.d made=""
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"; made=yes
  fi
  local result=0
  { "${as_root[@]}" apt-get install -y --no-install-recommends "$package" >/dev/null 2>&1 ||
    { "${as_root[@]}" apt-get update >/dev/null && "${as_root[@]}" apt-get install -y --no-install-recommends "$package" >/dev/null; }; } >&2 || result=$?
  [ -n "$made" ] && "${as_root[@]}" rm -f "$policy"
  [ "$result" -eq 0 ] || fail "could not install $package. Run: sudo apt-get install -y --no-install-recommends $package"
}
