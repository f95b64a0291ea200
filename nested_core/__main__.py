"""`python -m nested_core`: what an encoder or subject file holds, and encoders in the native format."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .checkpoint import (
    SETTINGS,
    Choices,
    describe,
    encoder_hash,
    load_encoder,
    parse_choices,
    save_encoder,
    source_files,
)
from .errors import CheckpointError, NestedAttentionError

_WRONG_FILE = 2  # argparse's exit code for wrong arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 2 where a file cannot be read or written, with the reason on stderr."""
    given = _parser().parse_args(arguments)
    try:
        for line in _lines(given):
            print(_plain(line, sys.stdout.encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; Python would complain when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (NestedAttentionError, OSError) as error:
        sys.stdout.flush()
        print(_plain(f"error: {error}", sys.stderr.encoding), file=sys.stderr)
        return _WRONG_FILE
    return 0


def _lines(given: argparse.Namespace) -> Iterator[str]:
    choices = parse_choices(given.set)
    if given.command == "convert":
        yield convert(Path(given.file), Path(given.output), choices, given.force)
        return
    yield os.path.basename(given.file)
    for line in describe(given.file, choices):
        yield f"  {line}"


def convert(file: Path, output: Path, choices: Choices, force: bool) -> str:
    """Writes the encoder of any readable file in the native format; a line that says so.

    Raises:
        CheckpointError: the encoder cannot be read or written, `output` is no .safetensors file,
            is part of what is read, or exists and is not to be replaced.
    """
    if output.suffix.lower() != ".safetensors":
        raise CheckpointError(
            f"{output.name}: expected a name that ends in .safetensors; loaders look for that."
        )
    if output.exists():
        if any(part.exists() and part.samefile(output) for part in source_files(file)):
            raise CheckpointError(f"{output.name}: is the file that is read. Choose another name.")
        if not force:
            raise CheckpointError(
                f"{output.name}: exists already. Choose another name, or replace it with --force."
            )
    encoder = load_encoder(file, choices)
    save_encoder(encoder, output)
    return f"wrote {output.name}: {len(encoder.site_dims)} sites, sha256 {encoder_hash(encoder)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nested_core", description="Files of Nested Attention."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    inspect = commands.add_parser(
        "inspect",
        help="print what an encoder or subject file holds",
        description="Prints what an encoder or subject file holds, how each key of a foreign "
        "encoder was read, what was set aside, assumed or chosen, and what is missing. Exit code 2 "
        "if the file cannot be loaded.",
    )
    converter = commands.add_parser(
        "convert",
        help="write an encoder in the native format",
        description="Writes the encoder of any file that Load Encoder reads, such as a whole "
        "training state, in the native format. Exit code 2 if that fails.",
    )
    for command in (inspect, converter):
        command.add_argument(
            "file",
            metavar="FILE",
            help="a .safetensors file, one of its shards or their index; pickle files are not opened",
        )
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help=f"choose what the file cannot tell: {', '.join(SETTINGS)}",
        )
    converter.add_argument("output", metavar="OUT", help="the .safetensors file to write")
    converter.add_argument("--force", action="store_true", help="replace OUT where it exists")
    return parser


def _plain(text: str, encoding: str | None) -> str:
    """One line. Names come from foreign files: what a terminal would obey becomes an escape."""
    encoding = encoding or "utf-8"
    escaped = (letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return "".join(escaped).encode(encoding, "backslashreplace").decode(encoding)


if __name__ == "__main__":
    sys.exit(main())
