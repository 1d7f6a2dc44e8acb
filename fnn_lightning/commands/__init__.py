"""The command line: its entry, its subcommands, and their options."""
