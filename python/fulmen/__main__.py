"""The command `fulmen` of the Python package, also `python -m fulmen`."""
import argparse
import json
import sys

import fulmen


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="fulmen", description="What Fulmen can do on this machine, and making it ready.")
    parser.add_argument("--version", action="version", version=f"fulmen {fulmen.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("info", help="versions, devices, compiler, cache and ops, as JSON")
    for name, text in (("supports", "exit 0 where an op runs on a target, else 1 and what is missing"),
                       ("explain", "kernel and tile that would run, as JSON")):
        command = commands.add_parser(name, help=text)
        command.add_argument("op", choices=[op for op in fulmen.OPS if op != "attention"])
        command.add_argument("--target", default="cpu", help="cpu, cuda or a GPU class such as sm_90a (default: cpu)")
        command.add_argument("--dtype", default="bf16", help="f32, f16, bf16 (default: bf16)")
    command = commands.add_parser("prepare", help="fill the kernel cache for a GPU class; no GPU is needed")
    command.add_argument("--target", required=True, help="sm_80, sm_86, sm_89, sm_90a, ...")
    command.add_argument("--cache", help="directory (default: the one that `fulmen info` names)")
    command.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    command = commands.add_parser("bench", help="time ops beside torch, FlashInfer and flash-attn, whichever is installed")
    from fulmen import bench
    bench.add_arguments(command)
    args = parser.parse_args(arguments)
    try:
        if args.command == "info":
            print(json.dumps(fulmen.info(), indent=2))
        elif args.command == "supports":
            missing = fulmen.supports(args.target, args.op, args.dtype)
            print(missing or f"{args.op} {args.dtype} runs on {args.target}")
            return 1 if missing else 0
        elif args.command == "explain":
            print(json.dumps(fulmen.explain(args.target, args.op, args.dtype), indent=2))
        elif args.command == "prepare":
            fulmen.prepare(args.target, progress=not args.quiet, cache_dir=args.cache)
        else:
            return bench.run(args)
    except fulmen.FulmenError as error:
        print(f"fulmen: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
