"""The processes of one server: control, front-ends and engines."""
