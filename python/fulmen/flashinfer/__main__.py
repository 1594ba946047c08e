"""python -m fulmen.flashinfer run -- COMMAND: runs it so that `import flashinfer` gives fulmen.flashinfer there.

A small folder goes first on PYTHONPATH, so that processes which COMMAND starts see it too."""
import argparse
import os
import pathlib
import sys


def main():
    parser = argparse.ArgumentParser(prog="python -m fulmen.flashinfer", description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="run a command with fulmen.flashinfer as flashinfer")
    run.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND and its arguments")
    command = parser.parse_args().command
    command = command[1:] if command[:1] == ["--"] else command
    if not command:
        parser.error("run: expected -- COMMAND, found nothing")
    here = pathlib.Path(__file__).resolve().parent
    path = [str(here / "_path"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"run: {command[0]}: {error.strerror}")


main()
