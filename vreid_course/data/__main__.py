"""Command line of the data sets: draw mini-MARS, check, subset, convert, cut out of a video."""

import argparse
import shlex
import sys
from pathlib import Path

from vreid_course.drawing.mini_mars import MiniMars, draw
from vreid_course.drawing.tracklets import DIALS

from . import tools
from .mars import MarsError

EXAMPLES = """examples:
  python -m vreid_course.data draw --out data/thousand --train-ids 1000 --seed 1
  python -m vreid_course.data draw --out data/in_the_open --dial occlusion=0 --dial crowd=0
  python -m vreid_course.data check /data/MARS --frames
  python -m vreid_course.data subset /data/MARS /data/MARS_50 --ids 50
  python -m vreid_course.data convert /data/i-LIDS-VID /data/ilids_as_mars
  python -m vreid_course.data from-video street.mp4 --boxes boxes.txt --out data/street

The lessons read the set that VREID_DATA names, else a mini-MARS that is drawn on first use:
  VREID_DATA=/data/MARS_50 jupyter lab notebooks/00_tour.ipynb
"""


def dial(text: str) -> tuple[str, float]:
    """A name and a number out of NAME=VALUE."""
    name, _, value = text.partition("=")
    return name, float(value)


def sides(text: str) -> tuple[int, int]:
    """Width and height out of WIDTHxHEIGHT."""
    width, height = map(int, text.lower().split("x"))
    if min(width, height) < 1:
        raise ValueError(text)
    return width, height


def parser() -> argparse.ArgumentParser:
    """The five commands and their arguments."""
    top = argparse.ArgumentParser(
        prog="python -m vreid_course.data",
        description="Data sets for video person re-identification, all in the layout of MARS.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    new = commands.add_parser("draw", help="draw a mini-MARS: artificial people with known truth")
    _draw_arguments(new)

    check = commands.add_parser("check", help="print the counts of a set, or its first faults")
    check.add_argument("dir", type=Path, help="holds bbox_train, bbox_test and info")
    check.add_argument("--frames", action="store_true", help="open every picture too (minutes)")

    subset = commands.add_parser("subset", help="cut a smaller set out of a full one")
    subset.add_argument("src", type=Path, help="a set in MARS layout")
    subset.add_argument("out", type=Path, help="new folder for the smaller set")
    subset.add_argument("--ids", type=int, required=True, help="people to train on, and to test on")
    subset.add_argument("--seed", type=int, default=0, help="which people (0)")

    convert = commands.add_parser("convert", help="bring iLIDS-VID or PRID-2011 into MARS layout")
    convert.add_argument("src", type=Path, help="the unpacked iLIDS-VID or PRID-2011 folder")
    convert.add_argument("out", type=Path, help="new folder for the set")
    convert.add_argument("--seed", type=int, default=0, help="which half to train on (0)")

    video = commands.add_parser("from-video", help="cut the people out of a video of your own")
    _video_arguments(video)
    return top


def _video_arguments(video: argparse.ArgumentParser) -> None:
    video.description = "A set to be searched: test part only, camera 1. See lesson 09."
    video.add_argument("video", type=Path, help="a file that OpenCV can read, such as MP4 or AVI")
    text = "MOTChallenge text: frame,id,left,top,width,height a line; id -1: linked by overlap"
    video.add_argument("--boxes", type=Path, required=True, metavar="FILE", help=text)
    text = "the picture that the boxes were made for, if it is not the video's own"
    video.add_argument("--boxes-size", type=sides, metavar="WxH", help=text)
    video.add_argument("--out", type=Path, required=True, help="new folder for the set")
    video.add_argument("--shortest", type=int, default=1, help="fewest boxes of a track (1)")


def _draw_arguments(new: argparse.ArgumentParser) -> None:
    new.add_argument("--out", type=Path, required=True, help="new folder for the set")
    new.add_argument("--train-ids", "--ids", type=int, default=60, help="people to train on (60)")
    new.add_argument("--test-ids", type=int, default=40, help="other people to test on (40)")
    new.add_argument("--seed", type=int, default=0, help="same seed, same set (0)")
    new.add_argument("--height", type=int, default=128, help="rows of a frame, 128 or 256 (128)")
    new.add_argument("--long", type=int, default=0, help="test people with 200-900 frames (0)")
    new.add_argument("--workers", type=int, help="processes that draw (one per core, at most 8)")
    text = f"difficulty from 0 (off) to 1; may be repeated; one of {', '.join(DIALS)}"
    new.add_argument("--dial", type=dial, action="append", metavar="NAME=VALUE", help=text)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns 0, or 1 after one line that says what is wrong."""
    options = vars(parser().parse_args(argv))
    command = options.pop("command")
    try:
        if command == "check":
            return int(bool(tools.check(options["dir"], options["frames"])))
        if command == "draw":
            out, workers = options.pop("out"), options.pop("workers")
            draw(MiniMars(dials=dict(options.pop("dial") or ()), **options), out, workers)
        elif command == "from-video":
            from .video import from_video  # OpenCV: no other command needs it

            out = options["out"]
            print(from_video(**options))
        else:
            out = options["out"]
            {"subset": tools.subset, "convert": tools.convert}[command](**options)
    except (MarsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped, and nothing passes for a whole set: run it again", file=sys.stderr)
        return 1
    print(f"{out} is ready; VREID_DATA={shlex.quote(str(out))} makes the lessons use it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
