"""Pictures of tracklets and ranked lists: uint8 arrays (H, W, 3), shown in a notebook."""

from collections.abc import Callable, Sequence
from io import BytesIO

import ipywidgets
import numpy as np
from IPython.display import Image as IPythonImage
from IPython.display import display
from matplotlib.axes import Axes
from PIL import Image, ImageDraw

from vreid_course.data.mars import Split
from vreid_course.metrics import bootstrap, ranked

# Okabe and Ito's colours, which colour-blind readers tell apart; wrong answers also get a cross.
RIGHT, WRONG, QUERY = (0, 158, 115), (213, 94, 0), (0, 114, 178)


def strip(frames: np.ndarray, count: int = 10, gap: int = 2) -> np.ndarray:
    """Put `count` evenly spread frames of (T, H, W, 3) uint8 side by side, with white gaps."""
    some = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    return row([frames[i] for i in some], gap)


def row(frames: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Put frames (H, W, 3) uint8 of one height side by side."""
    padded = [np.pad(f, ((0, 0), (0, gap), (0, 0)), constant_values=255) for f in frames]
    return np.concatenate(padded, 1)[:, :-gap] if gap else np.concatenate(padded, 1)


def framed(frame: np.ndarray, colour: tuple[int, int, int], cross: bool = False) -> np.ndarray:
    """Draw a border around a frame (H, W, 3) uint8, and a small cross in its upper corner."""
    image = Image.fromarray(frame)
    draw, h = ImageDraw.Draw(image), frame.shape[0]
    width = max(2, h // 32)
    draw.rectangle((0, 0, image.width - 1, h - 1), outline=colour, width=width)
    if cross:
        a, b = width + 1, width + h // 10
        draw.rectangle((a - 1, a - 1, b + 1, b + 1), fill=(255, 255, 255))
        draw.line((a, a, b, b), fill=colour, width=width)
        draw.line((a, b, b, a), fill=colour, width=width)
    return np.asarray(image)


def ranking(query: np.ndarray, found: Sequence[np.ndarray], right: Sequence[bool]) -> np.ndarray:
    """Draw a query frame and the ranked answers: green border right, orange with cross wrong."""
    marked = [
        framed(f, RIGHT if good else WRONG, not good) for f, good in zip(found, right, strict=True)
    ]
    gap = np.full((query.shape[0], query.shape[0] // 8, 3), 255, np.uint8)
    return row([framed(query, QUERY), gap, *marked])


def answers(features: np.ndarray, split: Split, q: int, top: int = 8) -> np.ndarray:
    """Draw the query in row q of a split and its first `top` answers, one frame of each.

    features: (N, D), one row a tracklet of the split. See `metrics.ranked` for what is left out.
    """
    rows = ranked(features, split.pids, split.camids, q)[:top]
    faces = [split.frames(i, [split.lengths[i] // 2])[0] for i in (q, *rows)]
    return ranking(faces[0], faces[1:], split.pids[rows] == split.pids[q])


def stack(pictures: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    """Put pictures (H, W, 3) uint8 below each other, filled up with white to the widest."""
    wide = max(p.shape[1] for p in pictures)
    padded = [
        np.pad(p, ((0, gap), (0, wide - p.shape[1]), (0, 0)), constant_values=255) for p in pictures
    ]
    return np.concatenate(padded)[:-gap] if gap else np.concatenate(padded)


def picture(image: np.ndarray, title: str = "") -> None:
    """Show a picture (H, W, 3) uint8 below its title, in 48 colours: notebooks stay small."""
    if title:
        print(title)
    stream = BytesIO()
    whole, some = Image.fromarray(image), Image.fromarray(image[::3, ::3])
    colours = some.quantize(48, Image.Quantize.MAXCOVERAGE, kmeans=1)  # a small red bag stays red
    few = whole.quantize(palette=colours, dither=Image.Dither.NONE)
    few.save(stream, "PNG", optimize=True)
    display(IPythonImage(stream.getvalue()))


def captioned(image: np.ndarray, words: str) -> np.ndarray:
    """A picture (H, W, 3) uint8 with a line of text below."""
    line = Image.new("RGB", (image.shape[1], 16), "white")
    ImageDraw.Draw(line).text((4, 1), words, fill="black", font_size=12)
    return stack([image, np.asarray(line)])


def png(image: np.ndarray) -> bytes:
    """Encode a picture (H, W, 3) uint8 for an ipywidgets.Image."""
    stream = BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def explore(
    draw: Callable[[int], np.ndarray], count: int, name: str, play: bool = False, start: int = 0
) -> ipywidgets.VBox:
    """Return a slider 0..count-1 over the pictures draw(i); `play` adds a button that runs it."""
    slider = ipywidgets.IntSlider(start, 0, count - 1, description=name)
    first = draw(start)
    size = ipywidgets.Layout(width=f"{first.shape[1]}px", align_self="flex-start")
    image = ipywidgets.Image(value=png(first), format="png", layout=size)
    slider.observe(lambda change: setattr(image, "value", png(draw(change["new"]))), "value")
    controls = [slider]
    if play:
        button = ipywidgets.Play(min=0, max=count - 1, interval=100)
        ipywidgets.jslink((button, "value"), (slider, "value"))
        controls.insert(0, button)
    return ipywidgets.VBox([ipywidgets.HBox(controls), image])


def bars(axes: Axes, named: dict[str, np.ndarray], people: np.ndarray) -> None:
    """Draw a bar of mAP for each name, with the interval over people as a line.

    named: AP (Q,) in 0..1 of the same queries, nan where one is left out; people: see `bootstrap`.
    """
    for y, ap in enumerate(named.values()):
        mean, low, high = (100 * x for x in bootstrap(ap, people=people))
        axes.barh(y, mean, 0.62, color="#56B4E9")
        axes.plot([low, high], [y, y], color="black", lw=1.2)
        axes.text(high + 1.5, y, f"{mean:.0f}", va="center", fontsize=9)
    axes.set(yticks=range(len(named)), yticklabels=[*named], xlabel="mAP (%)", xlim=(0, 100))
    axes.invert_yaxis()
