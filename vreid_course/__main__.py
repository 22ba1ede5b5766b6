"""The command line: python -m vreid_course COMMAND ..."""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from vreid_course import backbone, classroom, lessons, study
from vreid_course.data.mars import writable
from vreid_course.drawing.mini_mars import cache_path
from vreid_course.nets import one_line
from vreid_course.scales import course_data, scale
from vreid_course.studies import contrasts
from vreid_course.training import TrainingError, load_checkpoint

EPILOG = """examples
  python -m vreid_course train 01_baseline            train on mini-MARS (or on VREID_DATA)
  python -m vreid_course evaluate 01_baseline         test what was trained
  python -m vreid_course study 01_baseline            the lesson's table, row by row
  python -m vreid_course bench 01_baseline            parameters, operations, milliseconds
  python -m vreid_course release class                assignments for students, without solutions
  python -m vreid_course grade class                  grade class/submitted/STUDENT/LESSON/*.ipynb
  python -m vreid_course.data --help                  draw, check and convert data sets
  VREID_DATA=/data/MARS VREID_SCALE=paper torchrun --nproc_per_node 4 -m vreid_course train 02_cosam
                                                      full MARS on four GPUs

VREID_SCALE (smoke, mini, gpu, paper) chooses sizes; VREID_DATA names a set in MARS layout. What is
measured at scale mini on mini-MARS goes into the tables of data/results, all else into data/runs.
Everything can be stopped and goes on where it stopped when called again."""

CURE = "name another with VREID_CACHE, or with --folder where there is one"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status. Expected errors are one line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        cure = "stop what else uses the GPU, or set VREID_SCALE=mini"
        print(f"error: {one_line(error)}: {cure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint or row", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m vreid_course", description="Train, test and compare the methods of the course.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("train", _train, "train a lesson's network"),
        ("evaluate", _evaluate, "test a trained network: mAP and rank-k"),
        ("study", _study, "measure the rows of a lesson's table that are still missing"),
        ("bench", _bench, "measure a lesson's network: parameters, operations, milliseconds"),
        ("make", _make, "run a lesson's other stages: what its `make` prepares"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("lesson", help="such as 01_baseline: a notebook's name")
        command.set_defaults(run=run)
        if name in ("train", "evaluate"):
            command.add_argument("--seed", type=int, default=0)
            command.add_argument("--folder", type=Path, help="of the checkpoint (default: runs/)")
        if name == "study":
            command.add_argument("--jobs", type=int, help="rows at a time (default: 2, GPU: 1)")
        if name == "train":
            command.add_argument("--steps", type=int, help="default: those of the recipe")
            command.add_argument("--workers", type=int, default=0, help="processes that load data")
    _class_commands(commands)
    _table_commands(commands)
    return parser


def _table_commands(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("contrasts", help="the papers' differences beside ours, a score")
    command.set_defaults(run=lambda options: print(contrasts.write()))
    command = commands.add_parser("backbone", help="make data/weights/KIND_backbone.pt again")
    command.add_argument("kind", nargs="?", default="identity", choices=("identity", "course"))
    command.set_defaults(run=lambda options: print(backbone.make(options.kind)))


def _class_commands(commands: argparse._SubParsersAction) -> None:
    for name, run, text in (
        ("release", _release, "write the student's edition of the lessons (nbgrader)"),
        ("grade", _grade, "run and grade what lies in FOLDER/submitted; writes grades.csv"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("folder", type=Path, help="of the class; see notebooks/README.md")
        command.set_defaults(run=run)
        if name == "release":
            command.add_argument("--lessons", nargs="+", help="such as 01_baseline; default: all")


def _place(name: str) -> Path:
    """A folder for results, another one for each scale and each set."""
    data = os.environ.get("VREID_DATA")
    where = scale().name + (f"_{Path(data).resolve().name}" if data else "")
    return cache_path() / "runs" / f"{name}_{where}"


def _run_folder(options: argparse.Namespace) -> Path:
    return options.folder or _place(f"{options.lesson}_{options.seed}")


def _train(options: argparse.Namespace) -> None:
    at, lesson = scale(), lessons.load(options.lesson)
    split = course_data(at).train
    model = study.new_model(lesson, split, at, options.seed)
    recipe = lesson.recipe(at)
    if options.steps:
        recipe = replace(recipe, steps=options.steps)
    folder = writable(_run_folder(options), CURE)
    if (folder / "last.pt").exists():
        print(f"going on from {folder / 'last.pt'}; to start again, delete it")
    study.fit(model, lesson.loss, recipe, split, at, options.seed, folder, options.workers)
    print(f"trained {recipe.steps} steps: {folder / 'last.pt'}")


def _evaluate(options: argparse.Namespace) -> None:
    at, lesson = scale(), lessons.load(options.lesson)
    mars, path = course_data(at), _run_folder(options) / "last.pt"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: nothing trained yet: run `train {options.lesson}` first")
    state = load_checkpoint(path)["model"]
    model = study.new_model(lesson, mars.train, at, options.seed)
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise ValueError(f"{path}: of other data or another scale: train again") from None
    recipe = lesson.recipe(at)
    print(study.search(study.extract_features(model, lesson.embed, recipe, mars.test, at), mars))


def _study(options: argparse.Namespace) -> None:
    rows, measure = study.find(options.lesson)
    committed = scale().name == "mini" and not os.environ.get("VREID_DATA")
    place = study.RESULTS if committed else writable(_place("study"), CURE)
    jobs = options.jobs or (1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1))
    print(study.run(options.lesson, rows, measure, place, jobs))


def _make(options: argparse.Namespace) -> None:
    lesson = lessons.load(options.lesson)
    if not hasattr(lesson, "make"):
        raise ValueError(f"{options.lesson} has nothing to make: use train")
    print(lesson.make())


def _release(options: argparse.Namespace) -> None:
    for path in classroom.release(options.folder, options.lessons):
        print(path)


def _grade(options: argparse.Namespace) -> None:
    print(classroom.grade(options.folder))


def _bench(options: argparse.Namespace) -> None:
    at, lesson = scale(), lessons.load(options.lesson)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = study.new_model(lesson, course_data(at).train, at, seed=0).to(device)
    clips = torch.zeros(1, at.T, 3, *at.size, device=device)
    for name, value in study.cost(model, clips).items():
        print(f"{name:12} {value:,.2f}")


if __name__ == "__main__":
    sys.exit(main())
