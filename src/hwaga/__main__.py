"""`python -m hwaga` is the command line."""

from .cli.main import main

main()
