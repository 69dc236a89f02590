"""The command `milpverify`, and `python -m milpverify`: the process of the command line from its first line to its last."""

from __future__ import annotations

import atexit

from milpverify.outside.ending import ending


def program() -> None:
    """Be the command line: as `cli.main`, but the process ends at once, for to take apart all that torch built takes 0.2 to 0.4 s."""
    ending.begin()  # before what takes time to load: Ctrl-C ends the process in order from here on
    from milpverify import cli

    atexit.register(lambda: ending.leave(ending.status))  # before all others, so that it runs after them
    try:
        cli.main()
    except SystemExit as end:
        ending.status = int(end.code or 0)
        raise


if __name__ == "__main__":
    program()
