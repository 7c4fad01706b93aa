"""Minutes of mixed traffic with injected faults: nothing may grow, get lost or come twice."""
