"""Draw one tracklet of mini-MARS: a walking person, seen by a camera, with all that goes wrong."""

from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, uniform_filter1d

from .figures import Person, draw_person, stream
from .render import draw_figure
from .scene import (
    OCCLUDERS,
    Camera,
    backdrop,
    camera,
    panorama,
    respond,
    shadow,
    thing,
)  # fmt: skip

#: How strong each factor is by default; every one can be set from 0 (absent) to 1.
DIALS = {
    "camera": 0.5,  # colour, brightness, blur, noise and JPEG quality differ between cameras
    "view": 1.0,  # how far the directions of view differ; 0: everybody is seen from the front
    "background": 1.0,  # contrast of the background; 0: even grey
    "occlusion": 0.5,  # share of tracklets in which something passes in front
    "crowd": 0.5,  # share of tracklets with somebody else behind
    "jitter": 0.5,  # how far the box shakes, slips off and cuts the person
    "blur": 0.5,  # motion blur
    "switch": 0.3,  # share of tracklets that jump to another person half-way
    "cross": 0.0,  # people who cross between camera and person, up to two a tracklet
    "slip": 0.0,  # a detector's failures: for some frames the box is far off
}
CHUNK = 16  # frames drawn at once
FINER = 2  # rays per pixel and axis


@dataclass(frozen=True)
class Track:
    """What is to be drawn: `person` for `length` frames of a camera; None: a box around nobody."""

    folder: str
    pid: int
    camid: int
    number: int
    length: int
    person: Person | None


@dataclass(frozen=True)
class Thing:
    """Something put into a tracklet on purpose, in front of the person or behind.

    kind: one of OCCLUDERS, or "board", a plain rectangle. first, last: the frames in which it is
    there, half open; default all. start, stop: metres right of the person at which it stands in the
    first and in the last of them. span: metres above the ground of a board's lower and upper edge;
    half: half its width in metres; low: metres by which anything else stands nearer to the camera.
    seed: its colour, or who it is.
    """

    kind: str
    first: int = 0
    last: int | None = None
    start: float = 0.0
    stop: float = 0.0
    span: tuple[float, float] = (0.0, 1.0)
    half: float = 0.6
    low: float = 0.15
    seed: int = 0


@dataclass(frozen=True)
class Change:
    """What is drawn otherwise than chance said; None leaves it as it was.

    person: who is shown (see `dataclasses.replace`: other clothes, no bag, another cadence).
    front, behind: all that is in front or behind; () is nothing. background: the number of the
    backdrop, 1..6 those of the cameras. drift: metres by which the backdrop moves in a frame,
    besides its own way. box (3,) or (T, 3): metres right and up by which the box is off, and log of
    its scale. switched: False keeps one person throughout. smear: False takes motion blur away.
    still: a frame whose moment is drawn in all frames: the person stands, only things move.
    """

    person: Person | None = None
    front: tuple[Thing, ...] | None = None
    behind: tuple[Thing, ...] | None = None
    background: int | None = None
    drift: float = 0.0
    box: tuple | np.ndarray | None = None
    switched: bool | None = None
    smear: bool | None = None
    still: int | None = None


@dataclass(frozen=True)
class Drawn:
    """A drawn tracklet of T frames of H x W, and the truth about it.

    jpegs: T encoded frames. clean: encoded frame without what is in front, where that differs.
    parts (T, H, W) uint8 as in `render.PARTS`, of the whole person, hidden or not; occluder
    (T, H, W) bool. The rest is (T,): view in degrees (0 front, 90 to the right, 180 back), phase in
    gait cycles, occluded: hidden share of the person's pixels, jitter (T, 3): shift right and up in
    metres and log of the scale; switched: another person is shown.
    """

    jpegs: list[bytes]
    clean: dict[int, bytes]
    parts: np.ndarray
    occluder: np.ndarray
    view: np.ndarray
    phase: np.ndarray
    occluded: np.ndarray
    jitter: np.ndarray
    switched: np.ndarray

    def frames(self) -> np.ndarray:
        """The frames as those of a drawn set are read, uint8 (T, H, W, 3)."""
        return np.stack([np.asarray(Image.open(BytesIO(jpeg))) for jpeg in self.jpegs])


def _smooth_walk(rng: np.random.Generator, length: int, columns: int) -> np.ndarray:
    """Return (length, columns) of a bounded random walk with standard deviation about 1."""
    steps = rng.standard_normal((length + 12, columns))
    kernel = 0.75 ** np.arange(12)
    walk = sum(k * steps[12 - i : 12 - i + length] for i, k in enumerate(kernel))
    return walk / np.sqrt((kernel**2).sum())


class Drawer:
    """Draws the tracklets of one set; holds its six cameras and their backdrops.

    change: what is drawn otherwise, in every tracklet.
    """

    def __init__(
        self, seed: int, height: int, dials: dict[str, float], change: Change | None = None
    ):
        self.seed, self.height, self.dials = seed, height, dials
        self.change = change or Change()
        self.cameras = {c: camera(seed, c, dials["camera"]) for c in range(1, 7)}
        self._panoramas: dict[int, np.ndarray] = {}

    def _panorama(self, camid: int) -> np.ndarray:
        """The backdrop of a camera, made when it is first needed."""
        if camid not in self._panoramas:
            number, dial = self.change.background or camid, self.dials["background"]
            self._panoramas[camid] = panorama(self.seed, number, self.height / 1.9, dial)
        return self._panoramas[camid]

    def _stream(self, track: Track, factor: str) -> np.random.Generator:
        return stream(self.seed, factor, track.folder, track.pid, track.camid, track.number)

    def draw(self, track: Track) -> Drawn:
        """Draw a tracklet, a few frames at a time."""
        track = replace(track, person=self.change.person or track.person)
        cam = self.cameras[track.camid]
        walk = self._walk(track, cam)
        pieces = []
        for start in range(0, track.length, CHUNK):
            piece = slice(start, min(start + CHUNK, track.length))
            pieces.append(self._scene(track, cam, {k: v[piece] for k, v in walk.items()}, start))
        parts, occluder, jpegs, clean = zip(*pieces, strict=True)
        parts, occluder = np.concatenate(parts), np.concatenate(occluder)
        person = np.maximum((parts > 0).sum((1, 2)), 1)
        return Drawn(
            jpegs=sum(jpegs, []),
            clean={i: jpeg for piece in clean for i, jpeg in piece.items()},
            parts=parts,
            occluder=occluder,
            view=np.degrees(walk["view"]) % 360,
            phase=walk["phase"],
            occluded=((parts > 0) & occluder).sum((1, 2)) / person,
            jitter=walk["jitter"],
            switched=walk["switched"],
        )

    def _walk(self, track: Track, cam: Camera) -> dict[str, np.ndarray]:
        """Return what changes from frame to frame, each (T,) or (T, n)."""
        t, n = np.arange(track.length), track.length
        rng = self._stream(track, "view")
        view = cam.direction + np.pi * rng.integers(2) + rng.normal(0, 0.3)
        view = view + rng.normal(0, 0.25) * (t - n / 2) / 30
        view = (view + np.pi) % (2 * np.pi) - np.pi
        person = track.person or draw_person(self.seed, 10**6)
        rng = self._stream(track, "gait")
        phase = rng.random() + person.cadence * t
        per_cycle = 4 * 0.48 * person.height * np.sin(person.stride)
        rng = self._stream(track, "place")
        walked = rng.uniform(0, 16) + per_cycle * person.cadence * t * np.sin(view)
        walked = walked + self.change.drift * t
        rng = self._stream(track, "switch")
        late, chance = n * rng.uniform(0.5, 0.75), rng.random()
        switched = (t >= late) & (chance < 0.2 * self.dials["switch"]) & (n >= 8)
        switched &= self.change.switched is not False
        found = {
            "view": view * self.dials["view"], "phase": phase % 1, "walked": walked,
            "switched": switched, "jitter": self._jitter(track), "smear": self._smear(track),
        }  # fmt: skip
        moment = t if self.change.still is None else np.full(n, self.change.still)
        return {name: values[moment] for name, values in found.items()} | {"time": t}

    def _jitter(self, track: Track) -> np.ndarray:
        rng = self._stream(track, "jitter")
        n, dial = track.length, self.dials["jitter"]
        shake = _smooth_walk(rng, n, 3) * (0.045, 0.05, 0.05)
        slip = rng.normal(0, (0.05, 0.06, 0.07))
        cut = (rng.random() < 0.15) * rng.uniform(0.15, 0.45)  # the box ends above the feet
        off = np.array(((track.pid == -1) * rng.choice((-0.4, 0.4)), 0, 0))  # junk slips off
        if self.change.box is not None:
            return np.broadcast_to(np.asarray(self.change.box, float), (n, 3))
        return dial * (shake + slip + cut * np.array((0, -0.8, 0.8))) + off + self._slips(track)

    def _slips(self, track: Track) -> np.ndarray:
        """How far the box is off in bursts of a few frames, (T, 3)."""
        rng, n = self._stream(track, "slip"), track.length
        begins, lasts = rng.random(n), rng.integers(1, 5, n)
        far = rng.uniform((0.2, -0.35, -0.2), (0.45, 0.35, 0.35), (n, 3))
        far[:, 0] *= rng.choice((-1, 1), n)
        off = np.zeros((n, 3))
        for t in np.flatnonzero(begins < 0.09 * self.dials["slip"]):
            off[t : t + lasts[t]] = far[t]
        return off

    def _smear(self, track: Track) -> np.ndarray:
        rng = self._stream(track, "blur")
        some = np.clip(_smooth_walk(rng, track.length, 1)[:, 0] - 0.6, 0, 1)
        some = some * (self.change.smear is not False)
        return np.clip(1.6 * some, 0, 1) * self.dials["blur"]

    def _grid(self, person: Person | None, jitter: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the metres of each fine column (T, W) and row (T, H)."""
        rows, cols = self.height * FINER, self.height * FINER // 2
        tall = 0.5 * (person.height if person else 1.72) + 0.5 * 1.72
        scale = 0.87 * rows / tall * np.exp(jitter[:, 2:])
        x = (np.arange(cols) + 0.5 - cols / 2) / scale + jitter[:, :1]
        y = (0.955 * rows - np.arange(rows) - 0.5) / scale - jitter[:, 1:2]
        return x, y

    def _scene(self, track: Track, cam: Camera, w: dict[str, np.ndarray], start: int):
        """Draw a few frames; return parts, occluder, JPEGs and clean JPEGs by frame number."""
        x, y = self._grid(track.person, w["jitter"])
        coarse_x = _pool(x[:, None, :, None], down=1)[:, 0, :, 0]
        coarse_y = _pool(y[:, :, None, None], across=1)[:, :, 0, 0]
        image = backdrop(self._panorama(cam.camid), coarse_x + w["walked"][:, None], coarse_y)
        image = self._others(track, cam, w, x, y, image)
        parts = np.zeros(_shape(x, y), np.uint8)
        if track.person is not None:
            figure, parts = self._figure(track, cam, w, x, y)
            image = _over(image * shadow(coarse_x, coarse_y), figure, parts > 0)
        front, mask = self._front(track, cam, w, x, y)
        image = self._expose(cam, image, w["smear"])
        front = self._expose(cam, _layer(front, mask), w["smear"])
        seen = image * (1 - front[..., 3:]) + front[..., :3]
        grain = self._stream(track, f"grain {start}").standard_normal(seen.shape, np.float32)
        occluder = front[..., 3] > 0.004
        hidden = np.nonzero(occluder.any((1, 2)))[0]
        jpegs = [_encode(frame, cam.quality) for frame in respond(cam, seen, grain)]
        bare = respond(cam, image[hidden], grain[hidden])
        clean = {start + int(i): _encode(b, cam.quality) for i, b in zip(hidden, bare, strict=True)}
        return parts[:, FINER - 1 :: FINER, FINER - 1 :: FINER], occluder, jpegs, clean

    def _expose(self, cam: Camera, image: np.ndarray, smear: np.ndarray) -> np.ndarray:
        """Blur by the lens and, where smear (T,) > 0, by motion."""
        sharp = self.height / 128
        if not image.any():
            return image
        if cam.blur * sharp > 0.2:
            image = gaussian_filter(image, (0, cam.blur * sharp, cam.blur * sharp, 0), truncate=3)
        if (some := smear > 0).any():
            moved = uniform_filter1d(image[some], 2 * int(3 * sharp) + 1, axis=2)
            image[some] += smear[some, None, None, None] * (moved - image[some])
        return image

    def _figure(self, track: Track, cam: Camera, w: dict, x: np.ndarray, y: np.ndarray):
        image, parts = draw_figure(track.person, w["phase"], w["view"], cam.tilt, x, y, cam.light)
        jump = w["switched"]
        if jump.any():
            other = draw_person(self.seed, 10**7 + 100 * track.pid + track.number)
            image[jump], parts[jump] = draw_figure(
                other, w["phase"][jump], w["view"][jump], cam.tilt, x[jump], y[jump], cam.light
            )
        return image, parts

    def _others(self, track: Track, cam: Camera, w: dict, x, y, image: np.ndarray) -> np.ndarray:
        """Draw somebody who walks behind the person, in some tracklets."""
        if self.change.behind is not None:
            for item in self.change.behind:
                image = _over(image, *self._thing(item, track, cam, w, x, y))
            return image
        rng = self._stream(track, "crowd")
        chance, who = rng.random(), draw_person(self.seed, int(rng.integers(10**8, 2 * 10**8)))
        at, speed = rng.uniform(-0.7, 0.7), rng.choice((0, 0, 1, -1)) * rng.uniform(0.02, 0.06)
        up, view = rng.uniform(0.12, 0.35), rng.uniform(0, 2 * np.pi)
        if chance >= 0.7 * self.dials["crowd"] and track.person is not None:
            return image
        if track.person is None and chance < 0.5:  # a box around nothing
            return image
        at = at + speed * (w["time"] - track.length / 2)
        phase = rng.random() + who.cadence * w["time"]
        figure, parts = draw_figure(
            who, phase, np.full(len(x), view), cam.tilt, x - at[:, None], y - up, cam.light
        )
        return _over(image, figure, parts > 0)

    def _front(self, track: Track, cam: Camera, w: dict, x, y) -> tuple[np.ndarray, np.ndarray]:
        """Draw what passes in front: colour (T, H, W, 3), 0 elsewhere, and its mask (T, H, W)."""
        if self.change.front is not None:
            return self._fronts(track, cam, w, x, y)
        rng = self._stream(track, "occlusion")
        chance, kind = rng.random(), OCCLUDERS[rng.integers(4)]
        middle, side = rng.uniform(0.15, 0.85) * track.length, rng.choice((-1, 1))
        frames = min(rng.uniform(6, 22), 0.8 * track.length)
        wide = {"pole": 0.9, "bench": 1.6, "car": 4.4, "person": 1.2}[kind]
        at = side * (w["time"] - middle) * wide / frames
        colour, mask = np.zeros((*_shape(x, y), 3), np.float32), np.zeros(_shape(x, y), bool)
        near = np.abs(at) < wide
        if chance >= 0.8 * self.dials["occlusion"] or not near.any():
            return self._crossing(track, cam, w, x, y, colour, mask)
        shifted, low = x[near] - at[near, None], y[near] + rng.uniform(0.08, 0.25)
        if kind == "person":
            who = draw_person(self.seed, int(rng.integers(10**8, 2 * 10**8)))
            phase = rng.random() + who.cadence * w["time"][near]
            view = np.full(near.sum(), side * np.pi / 2)
            colour[near], parts = draw_figure(who, phase, view, cam.tilt, shifted, low, cam.light)
            mask[near] = parts > 0
        else:
            colour[near], mask[near] = thing(kind, rng, shifted, low)
        return self._crossing(track, cam, w, x, y, colour, mask)

    def _crossing(self, track: Track, cam: Camera, w: dict, x, y, colour, mask):
        """Draw people who cross near the camera, over what is in front already."""
        for number in range(2):
            rng = self._stream(track, f"cross {number}")
            if rng.random() >= 0.7 * self.dials["cross"]:
                continue
            frames, middle = rng.uniform(5, 16), rng.uniform(0, 1) * track.length
            side, low, who = rng.choice((-1, 1)), rng.uniform(0.1, 0.4), int(rng.integers(10**8))
            first = int(middle - frames / 2)
            item = Thing("person", first, int(first + frames) + 1, -side, side, low=low, seed=who)
            colour, mask = self._put(item, track, cam, w, x, y, colour, mask)
        return colour, mask

    def _fronts(self, track: Track, cam: Camera, w: dict, x, y) -> tuple[np.ndarray, np.ndarray]:
        colour, mask = np.zeros((*_shape(x, y), 3), np.float32), np.zeros(_shape(x, y), bool)
        for item in self.change.front:
            colour, mask = self._put(item, track, cam, w, x, y, colour, mask)
        return colour, mask

    def _put(self, item: Thing, track: Track, cam: Camera, w: dict, x, y, colour, mask):
        new, where = self._thing(item, track, cam, w, x, y)
        return np.where(where[..., None], new, colour), mask | where

    def _thing(self, item: Thing, track: Track, cam: Camera, w: dict, x, y):
        """Draw a thing where it is: colour (T, H, W, 3), 0 elsewhere, and its mask (T, H, W)."""
        last = track.length if item.last is None else item.last
        way = (w["time"] - item.first) / max(last - 1 - item.first, 1)
        there = (w["time"] >= item.first) & (w["time"] < last)
        if not there.any():
            return np.zeros((*_shape(x, y), 3), np.float32), np.zeros(_shape(x, y), bool)
        right = x - (item.start + (item.stop - item.start) * way)[:, None]
        up = y + (0 if item.kind == "board" else item.low)
        if item.kind == "person":
            who = draw_person(self.seed, 10**8 + item.seed)
            view = np.full(len(x), np.pi / 2 * np.sign(item.stop - item.start))
            phase = who.cadence * w["time"]
            colour, parts = draw_figure(who, phase, view, cam.tilt, right, up, cam.light)
            mask = parts > 0
        else:
            size = item.span, item.half
            colour, mask = thing(item.kind, stream(self.seed, "thing", item.seed), right, up, size)
        mask = mask & there[:, None, None]
        return colour * mask[..., None], mask


def _shape(x: np.ndarray, y: np.ndarray) -> tuple[int, int, int]:
    return len(x), y.shape[1], x.shape[1]


def _pool(fine: np.ndarray, down: int = FINER, across: int = FINER) -> np.ndarray:
    """Average rays (T, h, w, c) to pixels."""
    pixels = [fine[:, i::down, j::across] for i in range(down) for j in range(across)]
    return sum(pixels) / np.float32(len(pixels))


def _layer(colour: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return pixels (T, H, W, 4) of a thing: its colour times its cover, and its cover."""
    return np.concatenate([_pool(colour), _pool(mask[..., None].astype(np.float32))], -1)


def _over(image: np.ndarray, colour: np.ndarray, mask: np.ndarray) -> np.ndarray:
    layer = _layer(colour, mask)
    return image * (1 - layer[..., 3:]) + layer[..., :3]


def _encode(frame: np.ndarray, quality: int) -> bytes:
    stream = BytesIO()
    Image.fromarray(frame).save(stream, "JPEG", quality=quality)
    return stream.getvalue()
