#!/bin/bash
# demo.sh up|down BIN ASSETS : the whole platform on this host, used as a developer would use it.
set -euo pipefail

action=$1 bin=$(cd "$2" && pwd) assets=$3
root=$(cd "$(dirname "$0")/.." && pwd)
state=$assets/demo
port=${PORT:-8080}
base=${BASE_DOMAIN:-mogok.localhost}
email=demo@example.com
export MOGOK_PASSWORD=${MOGOK_PASSWORD:-correct-horse-battery}
export MOGOK_API=http://api.$base:$port
export XDG_CONFIG_HOME=$state/developer
export GIT_AUTHOR_NAME=Demo GIT_AUTHOR_EMAIL=$email GIT_COMMITTER_NAME=Demo GIT_COMMITTER_EMAIL=$email
PATH=$bin:$PATH

options=(--state-dir "$state" --image-store "$assets/store" --gem-index "$assets/gem-index"
  --listen "127.0.0.1:$port" --base-domain "$base")

if [ "$action" = down ]; then
  exec mogok-onehost down "${options[@]}"
fi

timings=()
# step NAME COMMAND... : runs it, shows it, and keeps how long it took
step() {
  local name=$1 begin
  shift
  begin=$(date +%s%N)
  "$@"
  timings+=("$(printf '%-28s %8d ms' "$name" "$(( ($(date +%s%N) - begin) / 1000000 ))")")
}

start_platform() {
  if curl -fsS -o /dev/null "$MOGOK_API/v1/platform" 2>/dev/null; then
    echo "the platform runs already"
    return
  fi
  mkdir -p "$state"
  chmod 711 "$assets" "$state"
  setsid nohup mogok-onehost run "${options[@]}" > "$state/onehost.log" 2>&1 < /dev/null &
  for _ in $(seq 300); do
    curl -fsS -o /dev/null "$MOGOK_API/v1/platform" 2>/dev/null && return
    sleep 0.2
  done
  echo "the platform did not get ready; its log ends:" >&2
  tail -n 30 "$state/onehost.log" >&2
  return 1
}

account() {
  mogok login "$email" >/dev/null 2>&1 || mogok signup "$email"
  mogok-control-plane plan --state-dir "$state/control-plane" "$email" paid
}

commit() {
  [ -d .git ] || git init --quiet --initial-branch=master
  git add .
  git commit --quiet --allow-empty --message 'first commit'
}

# deploy FIXTURE APP : the developer's commands, one by one
deploy() {
  local fixture=$1 app=$2 dir=$state/work/$2
  mkdir -p "$dir"
  cp -r "$root/tests/fixtures/$fixture/." "$dir"
  cd "$dir"
  echo "--- $app ($fixture)"
  step "$app: git commit" commit
  mogok --app "$app" info >/dev/null 2>&1 || step "$app: mogok create" mogok create "$app"
  step "$app: git push" git push --quiet mogok master
  step "$app: mogok build" mogok build
  step "$app: mogok start" mogok start
  step "$app: first page" fetch "$app"
}

fetch() {
  curl -fsS --max-time 30 "http://$1.$base:$port/" | head -n 12
  echo
}

step "platform start" start_platform
step "account" account
deploy rails fugafuga
deploy sinatra hogehoge

echo
echo "how long each step took"
printf '  %s\n' "${timings[@]}"
echo
echo "Rails    http://fugafuga.$base:$port/"
echo "Sinatra  http://hogehoge.$base:$port/"
echo "API      $MOGOK_API/v1/platform"
echo "log      $state/onehost.log"
echo "stop     make down"
