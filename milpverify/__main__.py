"""`python -m milpverify`: the command line."""

from milpverify.cli import main

main()
