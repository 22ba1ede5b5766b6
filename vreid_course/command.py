"""What the command lines share: mistakes are one line, numbers have a lower end, ~ is a home."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line."""

    def error(self, message: str) -> None:
        self.exit(2, f"error: {message}: see {self.prog} --help\n")


def at_least(low: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number of at least `low`."""

    def number(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} on")
        return int(text)

    return number


def finite(low: float = -math.inf) -> Callable[[str], float]:
    """The type of an argument that is a number, neither nan nor infinite, of at least `low`."""

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)) or value < low:
            more = f" from {low:g} on" if low > -math.inf else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not a number{more}")
        return value

    return number


def path(text: str) -> Path:
    """The type of an argument that names a file or a folder."""
    return Path(text).expanduser()
