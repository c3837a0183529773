#!/usr/bin/env bash
# A day of an honest host, with real tools: packages, builds, backups, cron, cloud tools and logins. Takes a directory to
# work in, with a home, and the address of a server that answers any request. A tool that this machine lacks is skipped,
# and named.
set -uo pipefail
work=$1 server=$2
export HOME=$work/home
cd "$work" || exit 1

did=0
have() {
    for tool in "$@"; do
        command -v "$tool" >/dev/null && continue
        echo "skipped: no $tool"
        return 1
    done
}
# What a step does is its own affair; that it was done counts.
step() {
    did=$((did + 1))
    "$@" >/dev/null 2>&1 </dev/null
}

# A home as people have them.
mkdir -p "$HOME"/{.aws,.ssh,.kube,.docker,.config/gh,.gnupg} src bin backup
chmod 700 "$HOME/.ssh" "$HOME/.gnupg"
printf '[default]\naws_access_key_id = AKIAFAKEBENIGN000001\naws_secret_access_key = FAKE/benign/secret/000000000000000000001\n' >"$HOME/.aws/credentials"
printf 'machine files.example login day password FAKE-benign-netrc-0001\n' >"$HOME/.netrc"
printf '{"auths":{"registry.example":{"auth":"ZmFrZTpGQUtFLWJlbmlnbi1kb2NrZXItMDAwMQ=="}}}\n' >"$HOME/.docker/config.json"
printf '//registry.npmjs.org/:_authToken=npm_FAKEbenign00000000000000000000000001\n' >"$HOME/.npmrc"
printf 'github.com:\n    oauth_token: ghp_FAKEbenign000000000000000000000000001\n' >"$HOME/.config/gh/hosts.yml"
printf 'apiVersion: v1\nkind: Config\nusers: [ { name: day, user: { token: FAKE-benign-kube-token-0001 } } ]\nclusters: [ { name: c, cluster: { server: "http://%s" } } ]\ncontexts: [ { name: x, context: { cluster: c, user: day } } ]\ncurrent-context: x\n' "$server" >"$HOME/.kube/config"
chmod 600 "$HOME"/.netrc "$HOME"/.npmrc

# Packages.
have apt-get && step apt-get --simulate install hello && step apt-get --print-uris download bash
have dpkg && step dpkg --list && step dpkg --verify bash
have python3 && step python3 -m venv venv && step venv/bin/python -m pip list && step venv/bin/python -c 'import ssl, json, urllib.request'
have npm && step npm config list && step npm init -y

# Builds: compilers, a configure script that runs what it has just compiled, make, and tests of what was built.
if have gcc make; then
    printf 'int main(void){return 0;}\n' >src/conftest.c
    for _ in 1 2 3; do
        step gcc -o src/conftest src/conftest.c && step src/conftest && rm -f src/conftest
    done
    printf 'all: prog\nprog: conftest.c\n\tgcc -o prog conftest.c\ntest: all\n\t./prog\n' >src/Makefile
    step env GITHUB_TOKEN=ghp_FAKEbenign000000000000000000000000002 make -C src test
fi
# A continuous integration job: a token in the environment of everything, and a helper below /tmp.
printf '#!/bin/sh\necho built\n' >bin/tool && chmod +x bin/tool
step env CI_JOB_TOKEN=glcbt-FAKEbenign0000000001 GITHUB_TOKEN=ghp_FAKEbenign000000000000000000000000002 bash -c "$work/bin/tool; git --version; python3 -c 'import os; os.environ'"

# Version control.
if have git; then
    step git init -q repo
    step git -C repo -c user.name=day -c user.email=day@example commit --allow-empty -m day
    step git clone -q repo copy
    step git -C repo config credential.helper store
    printf 'https://day:FAKE-benign-git-0001@git.example\n' >"$HOME/.git-credentials"
    step git -C repo credential fill <<<$'protocol=https\nhost=git.example\n'
fi

# Keys and certificates.
have ssh-keygen && step ssh-keygen -q -t ed25519 -N '' -f "$HOME/.ssh/id_ed25519" && step ssh-keygen -y -f "$HOME/.ssh/id_ed25519" && step ssh-keygen -l -f "$HOME/.ssh/id_ed25519"
if have openssl; then
    step openssl req -x509 -newkey rsa:2048 -nodes -keyout day.key -out day.pem -days 1 -subj /CN=day
    step openssl pkcs12 -export -inkey day.key -in day.pem -out day.p12 -passout pass:FAKE
    step openssl rsa -in day.key -check -noout
fi

# Backups read everything.
have tar && step tar -cf backup/home.tar "$HOME" && step tar -cf backup/etc.tar --ignore-failed-read /etc/passwd /etc/shadow /etc/ssh /etc/ssl
have cp && step cp -a "$HOME" backup/home
have find grep && step grep -rl day "$HOME" && step find "$HOME" -type f -exec sha256sum {} +

# Cron: what the system runs each night.
for job in /etc/cron.daily/*; do
    case ${job##*/} in
    dpkg | logrotate | passwd) [ -x "$job" ] && step "$job" ;;
    esac
done
step bash -c 'for p in /proc/[0-9]*; do cat "$p/stat" "$p/status"; done'
have ps && step ps auxww && step ps -eo pid,comm,args
have top && step top -b -n 1
have pgrep && step pgrep -a bash

# Tools of clouds and services, each with its own credential to its own place.
if have curl; then
    to=(--connect-to "::${server%:*}:${server##*:}" --max-time 5 --insecure)
    step curl -sS "${to[@]}" --netrc https://files.example/
    step env AWS_ACCESS_KEY_ID=AKIAFAKEBENIGN000001 AWS_SECRET_ACCESS_KEY=FAKE/benign/secret/000000000000000000001 bash -c \
        "curl -sS ${to[*]} -H 'Authorization: AWS4-HMAC-SHA256 Credential=AKIAFAKEBENIGN000001/20261123/eu-central-1/s3/aws4_request, SignedHeaders=host, Signature=00' https://s3.eu-central-1.amazonaws.com/"
    step bash -c "token=\$(sed -n 's/.*oauth_token: //p' '$HOME/.config/gh/hosts.yml'); curl -sS ${to[*]} -H \"Authorization: token \$token\" https://api.github.com/user"
    step bash -c "key=\$(cat '$HOME/.aws/credentials'); curl -sS ${to[*]} https://deb.example/ https://metrics.example/"
fi
have kubectl && step kubectl --request-timeout=2s get pods
have psql && step env PGPASSWORD=FAKE-benign-pg-0001 PGCONNECT_TIMEOUT=1 psql -h 127.0.0.1 -p 1 -U day -c 'select 1'

# Logins: a person at a terminal, in their own home, and one who becomes another.
if have script; then
    step script -qec "cat '$HOME/.netrc'; ssh-keygen -l -f '$HOME/.ssh/id_ed25519'; ls -la '$HOME'" /dev/null
    have su && step script -qec "su -s /bin/sh -c 'id' nobody" /dev/null
fi
have sudo && step sudo -n id
have chage && step chage -l root
have getent && step getent shadow root
echo "$did steps"
