"""Command line of the data sets: draw mini-MARS, check, subset and convert."""

import argparse
import os
import sys
from pathlib import Path

from vreid_course.data import tools
from vreid_course.data.mars import MarsError

EXAMPLES = """examples:
  python -m vreid_course.data draw --out data/mini_mars_1000 --train-ids 1000 --seed 1
  python -m vreid_course.data draw --out data/no_occluders --dial occlusion=0
  python -m vreid_course.data check /data/MARS --frames
  python -m vreid_course.data subset /data/MARS /data/MARS_50 --ids 50
  python -m vreid_course.data convert /data/i-LIDS-VID /data/ilids_as_mars

The lessons read the set that VREID_DATA names, else mini-MARS, which is drawn on first use:
  VREID_DATA=/data/MARS_50 jupyter lab notebooks/00_tour.ipynb
"""


def dial(text: str) -> tuple[str, float]:
    """NAME=VALUE of a difficulty dial; VALUE is in 0..1."""
    name, _, value = text.partition("=")
    try:
        if 0 <= float(value) <= 1:
            return name, float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE with VALUE in 0..1")


def natural(text: str) -> int:
    """A whole number, 1 or more."""
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")


def parser() -> argparse.ArgumentParser:
    """The four commands and their arguments."""
    top = argparse.ArgumentParser(
        prog="python -m vreid_course.data",
        description="Data sets for video person re-identification, all in the layout of MARS.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    draw = commands.add_parser("draw", help="draw a mini-MARS: artificial people with known truth")
    draw.add_argument("--out", type=Path, required=True, help="new folder for the set")
    draw.add_argument("--train-ids", "--ids", type=natural, default=60, help="people to train on")
    draw.add_argument("--test-ids", type=natural, default=40, help="other people to test on")
    draw.add_argument("--seed", type=int, default=0, help="same seed, same set")
    draw.add_argument("--height", type=natural, default=128, help="frame height; width is half")
    draw.add_argument("--workers", type=natural, default=os.cpu_count(), help="processes")
    draw.add_argument(
        *("--dial", "-d"), type=dial, action="append", default=[], metavar="NAME=VALUE",
        help="set one difficulty between 0 (off) and 1; may be repeated",
    )  # fmt: skip
    draw.add_argument("--long", type=int, default=0, metavar="N", help="N tracklets of hundreds")

    check = commands.add_parser("check", help="print the counts of a set, or its first faults")
    check.add_argument("dir", type=Path, help="holds bbox_train, bbox_test and info")
    check.add_argument("--frames", action="store_true", help="open every picture too (minutes)")

    subset = commands.add_parser("subset", help="cut a smaller set out of a full one")
    subset.add_argument("src", type=Path, help="a set in MARS layout")
    subset.add_argument("out", type=Path, help="new folder for the smaller set")
    subset.add_argument("--ids", type=natural, required=True, help="people of train, and of test")
    subset.add_argument("--seed", type=int, default=0, help="which people: same seed, same people")

    convert = commands.add_parser("convert", help="bring iLIDS-VID or PRID-2011 into MARS layout")
    convert.add_argument("src", type=Path, help="the unpacked iLIDS-VID or PRID-2011 folder")
    convert.add_argument("out", type=Path, help="new folder for the set")
    convert.add_argument("--seed", type=int, default=0, help="which half is trained on")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or 1 after one line that says what is wrong."""
    options = vars(parser().parse_args(argv))
    command = options.pop("command")
    try:
        if command == "check":
            return int(bool(tools.check(options["dir"], options["frames"])))
        if command == "draw":
            from vreid_course.data.mini_mars import draw  # slow to import

            draw(**options | {"dial": dict(options["dial"])})
        else:
            getattr(tools, command)(**options)
    except (MarsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: nothing was left behind that could pass for a whole set", file=sys.stderr)
        return 130
    print(f"{options['out']} is ready: set VREID_DATA to it to use it in the lessons")
    return 0


if __name__ == "__main__":
    sys.exit(main())
