"""The command: one module per subcommand, assembled in main."""
