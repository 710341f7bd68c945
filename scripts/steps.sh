# shellcheck shell=bash
# What scripts/run and scripts/test share: words, minutes by stage, system packages. Sourced, never run.

say() { printf '%s\n' "$*"; }
head_line() { printf '\n== %s\n' "$*"; }
die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# --- minutes by stage ---------------------------------------------------------------------------------------------

STAGES=()
stage_name=''
stage_from=0

stage() {
  stage_name=$1
  stage_from=$(date +%s)
  head_line "$stage_name"
}

# minutes_since SECONDS_AT_START -> "1.3"
minutes_since() {
  local tenths=$(((($(date +%s) - $1) * 10 + 30) / 60))
  printf '%d.%d' $((tenths / 10)) $((tenths % 10))
}

# stage_end [WORD]: closes the stage that `stage` opened.
stage_end() {
  local minutes
  minutes=$(minutes_since "$stage_from")
  STAGES+=("$(printf '%7s min  %-34s %s' "$minutes" "$stage_name" "${1:-ok}")")
  printf -- '-- %s: %s, %s min\n' "$stage_name" "${1:-ok}" "$minutes"
}

stages_table() {
  printf '\nMinutes by stage\n'
  printf '%s\n' "${STAGES[@]}"
}

# --- system packages ----------------------------------------------------------------------------------------------

PACKAGES=()
REASONS=()

# lacks PACKAGE WHY: remembers it for install_packages.
lacks() {
  PACKAGES+=("$1")
  REASONS+=("$(printf '  %-18s %s' "$1" "$2")")
}

have() { command -v "$1" >/dev/null 2>&1; }

have_libclang_dev() {
  [[ -n "${LIBCLANG_PATH:-}" ]] && return 0
  have dpkg-query || return 1
  dpkg-query -W -f '${db:Status-Status}\n' 'libclang-dev' 'libclang-[0-9]*-dev' 2>/dev/null | grep -qx installed
}

# What compiling llama.cpp and its Rust bindings takes. `make` and `curl` come with most machines.
need_build_packages() {
  have cmake || lacks cmake "configures the build of llama.cpp, the engine's core"
  have make || lacks make "runs that build"
  have g++ || lacks g++ "compiles llama.cpp, SQLite and the crypto library"
  have_libclang_dev || lacks libclang-dev "lets bindgen read llama.cpp's headers"
  have curl || lacks curl "asks the server whether it is ready, as a client would"
}

# install_packages ASSUME_YES: says what is missing and why, asks on a terminal, installs with service starts off.
install_packages() {
  ((${#PACKAGES[@]})) || return 0
  say "This machine lacks ${#PACKAGES[@]} system package(s):"
  printf '%s\n' "${REASONS[@]}"
  have apt-get || die "there is no apt-get here. Install the packages above with your system's package manager, then start again."
  local root=()
  if [[ $(id -u) -ne 0 ]]; then
    have sudo || die "not root, and there is no sudo. As root: apt-get install -y --no-install-recommends ${PACKAGES[*]}"
    root=(sudo)
  fi
  say "They are installed with: ${root[*]:+${root[*]} }apt-get install -y --no-install-recommends ${PACKAGES[*]}"
  say "(no service is started by that)"
  if [[ $1 != yes && -t 0 ]]; then
    local answer
    read -r -p 'Go on? [Y/n] ' answer
    [[ -z $answer || $answer == [yYjJ]* ]] || die "nothing was installed. Install them by hand, or start again with --yes."
  fi
  # Packages may start services when they are installed; this file tells them not to. One that is there already is
  # the machine's own rule and stays.
  local policy=/usr/sbin/policy-rc.d made=no done=0
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
    "${root[@]}" chmod 755 "$policy"
    made=yes
  fi
  "${root[@]}" apt-get update &&
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
      apt-get install -y --no-install-recommends "${PACKAGES[@]}" || done=$?
  [[ $made == no ]] || "${root[@]}" rm -f "$policy"
  ((done == 0)) || die "apt-get failed (see above). Mend that, or install by hand: ${PACKAGES[*]}"
}

# --- cargo --------------------------------------------------------------------------------------------------------

need_cargo() {
  if have cargo && have rustc; then return 0; fi
  die "cargo is missing. Install Rust from https://rustup.rs, then start again."
}

# build_pkcs11 PROFILE: guan-pkcs11, beside the other programs. It loads modules with dlopen, so it is built by itself and
# without the `+crt-static` of .cargo/config.toml, which RUSTFLAGS replaces; nothing else is built anew for it.
build_pkcs11() {
  local cpu=''
  [[ $(uname -m) != x86_64 ]] || cpu='-C target-cpu=x86-64-v3'
  RUSTFLAGS=$cpu cargo build --locked --profile "$1" -p pkcs11 --features modules
}

# built PROFILE_FOLDER -> where cargo puts this machine's binaries
built() {
  local triple
  triple=$(rustc -vV | sed -n 's/^host: //p')
  printf '%s/%s/%s' "${CARGO_TARGET_DIR:-$ROOT/target}" "$triple" "$1"
}
