"""`python -m milpverify`: the command line."""

from milpverify.cli import program

program()
