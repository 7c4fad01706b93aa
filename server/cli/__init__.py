"""The `eenet` command: one file per subcommand."""
