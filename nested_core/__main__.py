"""`python -m nested_core inspect FILE`: what an encoder or subject file holds."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .checkpoint import describe
from .errors import NestedAttentionError

_WRONG_FILE = 2  # argparse's exit code for wrong arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 2 where a file cannot be read, with the reason on stderr."""
    file: str = _parser().parse_args(arguments).file
    try:
        print(_plain(os.path.basename(file), sys.stdout.encoding))
        for line in describe(file):
            print(_plain(f"  {line}", sys.stdout.encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; Python would complain when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (NestedAttentionError, OSError) as error:
        sys.stdout.flush()
        print(_plain(f"error: {error}", sys.stderr.encoding), file=sys.stderr)
        return _WRONG_FILE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nested_core", description="Files of Nested Attention."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser(
        "inspect",
        help="print what an encoder or subject file holds",
        description="Prints what an encoder or subject file holds, how each key of a foreign "
        "encoder was read, and what is missing. Exit code 2 if the file cannot be loaded.",
    )
    inspect.add_argument(
        "file", metavar="FILE", help="a .safetensors file; pickle files are not opened"
    )
    return parser


def _plain(text: str, encoding: str | None) -> str:
    """One line. Names come from foreign files: what a terminal would obey becomes an escape."""
    encoding = encoding or "utf-8"
    escaped = (letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return "".join(escaped).encode(encoding, "backslashreplace").decode(encoding)


if __name__ == "__main__":
    sys.exit(main())
