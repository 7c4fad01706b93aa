"""Compare live traffic with calibration."""
