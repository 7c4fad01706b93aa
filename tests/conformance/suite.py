"""All checks that a running server can be put to, in the order in which they run."""

from tests.conformance import http_checks, image_checks, load_checks

CHECKS = (*load_checks.CHECKS, *image_checks.CHECKS, *http_checks.CHECKS)
