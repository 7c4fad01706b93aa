import json
import subprocess
import sys


def test_a_request_that_leaves_at_exit_0_passes_few_files_and_types() -> None:
    command = [sys.executable, "-m", "benchmarks.request_path"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    counts = json.loads(printed.splitlines()[-1])
    assert counts["files"] <= 15 and counts["types"] <= 7, counts
    assert counts["functions"] > 50, "the tracer saw the whole way"
