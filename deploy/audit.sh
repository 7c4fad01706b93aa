#!/bin/sh
# Checks the pinned dependencies against the index of known vulnerabilities; status 1 if one is
# known. Where the tool or the index cannot be reached, it says so in one sentence and ends well.
set -eu
cd "$(dirname "$0")/.."
tool=build/audit
advisories=https://api.osv.dev/v1/query
question='{"package": {"name": "pip", "ecosystem": "PyPI"}, "version": "26.0"}'
if ! curl -sf -m 10 -o /dev/null -d "$question" "$advisories"; then
    echo "skipped: the index of vulnerabilities ($advisories) cannot be reached from here"
    exit 0
fi
if ! [ -x "$tool/bin/pip-audit" ]; then
    "${PYTHON:-python3}" -m venv "$tool"
    if ! "$tool/bin/python" -m pip --disable-pip-version-check install -q pip-audit; then
        echo "skipped: pip-audit cannot be installed from this package index"
        exit 0
    fi
fi
exec "$tool/bin/pip-audit" --requirement constraints.txt --no-deps --vulnerability-service osv
