#!/usr/bin/env bash
# Prints the path of a real schema registry with Confluent's API, and fetches it first when it is not
# there: Apicurio Registry, from Maven Central, into ~/.cache/apicurio-registry. Needs Java 17 to run.
#
#   integration/registry.sh
#
# REGISTRY_VERSION (2.6.13.Final) is another version, REGISTRY_CACHE another cache.
set -euo pipefail

version=${REGISTRY_VERSION:-2.6.13.Final}
cache=${REGISTRY_CACHE:-$HOME/.cache/apicurio-registry}
folder=$cache/$version
jar=$folder/apicurio-registry-app-$version-runner.jar

if [ ! -e "$jar" ]; then
  command -v mvn >/dev/null || { echo "mvn is missing, and so is $jar: install maven" >&2; exit 1; }
  mkdir -p "$cache"
  exec 9>"$cache/.lock"; flock 9 # two tests starting at once fetch only once
  if [ ! -e "$jar" ]; then
    tmp=$(mktemp -d "$cache/.fetch.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    # Strict: a file that does not have the published checksum is refused.
    (cd "$tmp" && mvn -B -q -ntp -C org.apache.maven.plugins:maven-dependency-plugin:3.6.0:copy \
      -Dartifact="io.apicurio:apicurio-registry-app:$version:tar.gz:all" -DoutputDirectory="$tmp") >&2
    mkdir "$tmp/app"
    tar -xzf "$tmp"/*.tar.gz -C "$tmp/app"
    rm -rf "$folder"; mv "$tmp/app" "$folder"
  fi
fi
echo "$jar"
