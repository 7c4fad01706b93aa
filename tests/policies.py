"""The policies as parameters of tests."""

import pytest

from scheduler.policies import POLICIES

# Scores are trained to fit this one, which takes longer than all others together.
ALL_BUT_EENET_QUICK = [
    pytest.param(kind, marks=pytest.mark.slow) if kind == "eenet" else kind for kind in POLICIES
]
