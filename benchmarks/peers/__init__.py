"""Other servers, measured beside ours."""
