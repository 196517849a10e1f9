#!/usr/bin/env bash
# Write requirements.lock from the environment as it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
{
  sed -n '/^#/p' requirements.lock
  .venv/bin/pip freeze --all --exclude-editable | grep -viE '^(pip|cmapkd)( |=)'
} >requirements.lock.new
mv requirements.lock.new requirements.lock
