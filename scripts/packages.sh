# Packages of the distribution, where we may install them. To be sourced; `explain <why not>` is its user's, and ends the script.

# Refresh apt's lists, and define `install`.
may_install() { # <what, and how much to download>
  command -v apt-get >/dev/null || explain "no apt-get"
  if [ "$(id -u)" = 0 ]; then
    as_root=""
  elif sudo -n true 2>/dev/null; then
    as_root="sudo -n"
  else
    explain "no administrator's rights"
  fi
  printf '\033[1m%s\033[0m\n' "Installing $1 from the distribution (about $2 to download)"
  export DEBIAN_FRONTEND=noninteractive
  $as_root apt-get update -q >/dev/null 2>&1 || explain "apt-get failed"
}

install() { $as_root apt-get install -y -q --no-install-recommends "$@" >/dev/null 2>&1; }
