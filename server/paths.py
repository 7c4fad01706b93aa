"""The paths of routes that take samples: front-ends answer them, and bodies may be large."""

PREDICT = "/predict"
PREDICT_STREAM = "/predict/stream"
SAMPLE_PATHS = frozenset({PREDICT, PREDICT_STREAM})
