"""Command line of the data sets: draw mini-MARS, check, subset, convert, cut out of videos."""

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from vreid_course.command import Parser, at_least, finite, path
from vreid_course.drawing.mini_mars import STREET, MiniMars, draw
from vreid_course.drawing.tracklets import DIALS
from vreid_course.files import cache_path

from . import tools
from .convert import convert
from .mars import MarsError

WORLDS = {"mini": MiniMars(), "street": STREET}
EXAMPLES = """examples:
  python -m vreid_course.data draw --out data/thousand --train-ids 1000 --seed 1
  python -m vreid_course.data draw --out data/in_the_open --dial occlusion=0 --dial crowd=0
  python -m vreid_course.data draw --world street
  python -m vreid_course.data check /data/MARS --frames
  python -m vreid_course.data subset /data/MARS /data/MARS_50 --ids 50
  python -m vreid_course.data convert /data/i-LIDS-VID /data/ilids_as_mars
  python -m vreid_course.data from-video street.mp4 --boxes boxes.txt --out data/street
  python -m vreid_course.data from-video --out data/two \\
      --camera 1 a.mp4 a.txt --camera 2 b.mp4 b.txt
  python -m vreid_course search data/two --out answers

The lessons read the set that VREID_DATA names, else a mini-MARS that is drawn on first use:
  VREID_DATA=/data/MARS_50 jupyter lab notebooks/00_tour.ipynb
"""


def dial(text: str) -> tuple[str, float]:
    """A name and a number out of NAME=VALUE."""
    name, _, value = text.partition("=")
    return name, float(value)


def sides(text: str) -> tuple[int, int]:
    """Width and height out of WIDTHxHEIGHT."""
    width, height = map(at_least(1), text.lower().split("x"))
    return width, height


def parser() -> argparse.ArgumentParser:
    """The five commands and their arguments."""
    top = Parser(
        prog="python -m vreid_course.data",
        description="Data sets for video person re-identification, all in the layout of MARS.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    new = commands.add_parser("draw", help="draw a mini-MARS: artificial people with known truth")
    _draw_arguments(new)

    _set_commands(commands)

    video = commands.add_parser("from-video", help="cut the people out of videos of your own")
    _video_arguments(video)
    return top


def _set_commands(commands: argparse._SubParsersAction) -> None:
    check = commands.add_parser("check", help="print the counts of a set, or its first faults")
    check.add_argument("dir", type=path, help="holds bbox_train, bbox_test and info")
    check.add_argument("--frames", action="store_true", help="open every picture too (minutes)")

    subset = commands.add_parser("subset", help="cut a smaller set out of a full one")
    subset.add_argument("src", type=path, help="a set in MARS layout")
    subset.add_argument("out", type=path, help="new folder for the smaller set")
    subset.add_argument(
        "--ids", type=at_least(1), required=True, help="people to train on, and to test on"
    )
    subset.add_argument("--seed", type=at_least(0), default=0, help="which people (0)")

    other = commands.add_parser(
        "convert", help="bring iLIDS-VID, PRID-2011 or LS-VID into MARS layout"
    )
    other.add_argument("src", type=path, help="the unpacked folder of that set")
    other.add_argument("out", type=path, help="new folder for the set")
    other.add_argument(
        "--seed", type=at_least(0), default=0, help="which half to train on (0); not LS-VID"
    )


def _video_arguments(video: argparse.ArgumentParser) -> None:
    video.description = "A set to be searched, from one camera to the other: see lesson 09."
    text = "a file that OpenCV can read, such as MP4 or AVI, or a folder of pictures: camera 1"
    video.add_argument("video", type=path, nargs="?", help=text)
    text = "MOTChallenge text: frame,id,left,top,width,height a line; id -1: linked by overlap;"
    text += " without it a person detector looks"
    video.add_argument("--boxes", type=path, metavar="FILE", help=text)
    text = "a camera's number, its video and its boxes; as often as there are cameras"
    video.add_argument("--camera", nargs="+", action="append", metavar=("N", "VIDEO"), help=text)
    text = (
        "the picture that the boxes were made for, if it is not the video's own; for all cameras,"
    )
    text += " or once for each"
    video.add_argument("--boxes-size", type=sides, nargs="+", metavar="WxH", help=text)
    video.add_argument("--out", type=path, required=True, help="new folder for the set")
    video.add_argument(
        "--shortest", type=at_least(1), default=1, help="fewest boxes of a track (1)"
    )
    text = "leave out boxes of a smaller confidence (detector: 0.5)"
    video.add_argument("--least", type=finite(), help=text)
    text = "a table camera,track,person: who is who, so that a search can be scored"
    video.add_argument("--identities", type=path, metavar="FILE", help=text)


def _shots(video: Path | None, boxes: Path | None, camera: list | None, boxes_size: list | None):
    """The cameras that the arguments of from-video name."""
    from .video import Shot

    given = [["1", video, *([boxes] if boxes else [])]] if video else []
    given += camera or []
    if not given or (camera and (video or boxes)):
        raise MarsError("from-video: name a video and its --boxes, or --camera N VIDEO BOXES")
    sizes = boxes_size or [None]
    sizes = sizes * len(given) if len(sizes) == 1 else sizes
    if len(sizes) != len(given):
        raise MarsError(f"--boxes-size: {len(sizes)} sizes for {len(given)} cameras: one, or each")
    shots = []
    for words, size in zip(given, sizes, strict=True):
        number = str(words[0])
        if not 2 <= len(words) <= 3 or not number.isdecimal():
            shown = " ".join(map(str, words))
            raise MarsError(f"--camera {shown}: give its number, its video and its boxes")
        files = [path(str(word)) for word in words[1:]]
        shots.append(Shot(int(number), *files, *([None] * (2 - len(files))), size))
    return shots


def _draw_arguments(new: argparse.ArgumentParser) -> None:
    text = "mini: as in the lessons; street: the proving ground, on which much goes wrong (mini)"
    new.add_argument("--world", choices=WORLDS, default="mini", help=text)
    text = "new folder for the set (default: where the lessons look for it)"
    new.add_argument("--out", type=path, help=text)
    for name, low, text in (
        ("train-ids", 0, "people to train on (60; street: 300, and 50 to choose by)"),
        ("test-ids", 1, "other people to test on (40; street: 150)"),
        ("seed", 0, "same seed, same set (0)"),
        ("height", 1, "rows of a frame, 128 or 256 (128)"),
        ("long", 0, "test people with 200-900 frames (0)"),
    ):
        names = [f"--{name}", *(["--ids"] if name == "train-ids" else [])]
        new.add_argument(*names, type=at_least(low), help=text)
    new.add_argument(
        "--workers", type=at_least(1), help="processes that draw (one per core, at most 8)"
    )
    text = f"difficulty from 0 (off) to 1; may be repeated; one of {', '.join(DIALS)}"
    new.add_argument("--dial", type=dial, action="append", metavar="NAME=VALUE", help=text)


def _draw(world: str, out: Path | None, workers: int | None, dial: list | None, **given) -> Path:
    """Draw a world, changed by what is given; returns its folder."""
    start = WORLDS[world]
    given = {name: value for name, value in given.items() if value is not None}
    config = replace(start, dials=start.dials | dict(dial or ()), **given)
    return draw(config, out or cache_path() / config.name, workers)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns 0, or 1 after one line that says what is wrong."""
    options = vars(parser().parse_args(argv))
    command = options.pop("command")
    try:
        if command == "check":
            return int(bool(tools.check(options["dir"], options["frames"])))
        if command == "draw":
            out = _draw(**options)
        elif command == "from-video":
            from .video import from_video  # OpenCV: no other command needs it

            given = [options.pop(x) for x in ("video", "boxes", "camera", "boxes_size")]
            out = options["out"]
            print(from_video(_shots(*given), **options))
        else:
            out = options["out"]
            {"subset": tools.subset, "convert": convert}[command](**options)
    except (MarsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped, and nothing passes for a whole set: run it again", file=sys.stderr)
        return 1
    shown = shlex.quote(str(Path(out).resolve())).encode("utf-8", "backslashreplace").decode()
    print(f"ready; VREID_DATA={shown} makes the lessons use it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
