"""The command line: arguments, sentences and exit statuses around the rooms below. Nothing imports this room."""
