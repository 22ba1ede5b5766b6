"""What is around a drawn person: cameras, backgrounds and things that stand in front.

Positions are metres right and up of the point where the person stands, (T, W) and (T, H).
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from .figures import stream

PANORAMA_METRES = (16.0, 4.0)  # width and height of a camera's backdrop
GROUND = 1.2  # metres of it below the person's feet
OCCLUDERS = ("pole", "bench", "car", "person")


@dataclass(frozen=True)
class Camera:
    """One camera: direction (radians), tilt, light and the response of its sensor."""

    camid: int
    direction: float
    tilt: float
    light: np.ndarray
    gain: np.ndarray
    gamma: float
    blur: float
    noise: float
    quality: int


def camera(seed: int, camid: int, dial: float = 1.0) -> Camera:
    """Return camera 1..6; `dial` 0 makes all responses alike, 1 makes them differ the most."""
    rng = stream(seed, "camera", camid)
    light = np.array([rng.uniform(-0.8, 0.8), rng.uniform(0.4, 0.9), -rng.uniform(0.4, 0.9)])
    tint = np.exp(rng.normal(0, 0.18, 3) * dial)
    return Camera(
        camid=camid,
        direction=np.radians((0, 90, 45, 135, 20, 70)[(camid - 1) % 6] + rng.uniform(-10, 10)),
        tilt=float(rng.uniform(0.10, 0.32)),
        light=light / np.linalg.norm(light),
        gain=tint * np.exp(rng.normal(0, 0.25) * dial),
        gamma=float(np.exp(rng.normal(0, 0.22) * dial)),
        blur=float(rng.uniform(0.0, 0.9) * dial),
        noise=float(0.006 + rng.uniform(0.0, 0.03) * dial),
        quality=int(90 - rng.integers(0, 26) * dial),
    )


def respond(cam: Camera, image: np.ndarray, grain: np.ndarray) -> np.ndarray:
    """Return what the sensor makes of a scene in 0..1, all (T, H, W, 3): uint8.

    grain: standard normal noise, which the camera scales after its gain and gamma.
    """
    image = np.clip(image * cam.gain.astype(np.float32), 0, 1) ** np.float32(cam.gamma)
    return (np.clip(image + grain * np.float32(cam.noise), 0, 1) * 255 + 0.5).astype(np.uint8)


def _noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    coarse = rng.random((max(2, shape[0] * cells // shape[1]), cells))
    return zoom(coarse, (shape[0] / coarse.shape[0], shape[1] / cells), order=1, mode="grid-wrap")


def panorama(seed: int, camid: int, per_metre: float, dial: float = 1.0) -> np.ndarray:
    """Return the backdrop (h, w, 3) of a camera: ground, a wall and what stands along it.

    dial: contrast; 0 is an even grey. The first row is the top.
    """
    rng = stream(seed, "panorama", camid)
    w, h = (int(m * per_metre) for m in PANORAMA_METRES)
    y = (PANORAMA_METRES[1] - GROUND - (np.arange(h) + 0.5) / per_metre)[:, None]
    x = ((np.arange(w) + 0.5) / per_metre)[None]
    ground, wall = rng.uniform(0.25, 0.7, (2, 1)) + rng.normal(0, 0.045, (2, 3))
    foot = rng.uniform(0.15, 0.9)  # where the ground ends
    image = np.where((y < foot)[..., None], ground, wall) + 0 * x[..., None]
    tile = rng.uniform(0.3, 1.2)
    image *= np.where((y < foot) & ((y * 3 % tile < 0.06) | (x % tile < 0.03)), 0.8, 1)[..., None]
    brick = rng.uniform(0.12, 0.5)
    shifted = x + brick * (np.floor(y / brick) % 2)
    lines = (y > foot) & ((y % brick < 0.03) | (shifted % (2 * brick) < 0.03))
    image *= np.where(lines, rng.uniform(0.75, 0.95), 1)[..., None]
    for _ in range(14):  # doors, windows, posters, bushes
        left, width = rng.uniform(0, 16), rng.uniform(0.3, 1.6)
        low, top = rng.uniform(-0.2, 1.6) * (rng.random() < 0.7) + foot, rng.uniform(0.4, 1.8)
        inside = ((x - left) % 16 < width) & (y > low) & (y < low + top)
        colour = rng.uniform(0, 1, 3) * 0.3 + rng.uniform(0.05, 0.6)
        image = np.where(inside[..., None], colour, image)
    for cells, depth in ((16, 0.10), (64, 0.08), (256, 0.06)):
        image *= (1 + depth * (2 * _noise(rng, (h, w), cells) - 1))[..., None]
    image = 0.5 + dial * (np.clip(image, 0, 1) - 0.5)
    return gaussian_filter(image, (0.5, 0.5, 0)).astype(np.float32)


def backdrop(pan: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sample a panorama bilinearly at metres x (T, W) (it repeats) and y (T, H) -> (T, H, W, 3)."""
    h, w = pan.shape[:2]
    per_metre = h / PANORAMA_METRES[1]
    col = (x * per_metre) % w
    row = np.clip((PANORAMA_METRES[1] - GROUND - y) * per_metre - 0.5, 0, h - 1.001)
    c0, r0 = col.astype(int) % w, row.astype(int)
    fc = (col - np.floor(col)).astype(np.float32)[:, None, :, None]
    fr = (row - r0).astype(np.float32)[:, :, None, None]
    c1 = (c0 + 1) % w
    top = pan[r0[:, :, None], c0[:, None]] * (1 - fc) + pan[r0[:, :, None], c1[:, None]] * fc
    low = (
        pan[r0[:, :, None] + 1, c0[:, None]] * (1 - fc) + pan[r0[:, :, None] + 1, c1[:, None]] * fc
    )
    return top * (1 - fr) + low * fr


def shadow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return how much light the ground keeps, (T, H, W, 1): a soft dark ellipse under the feet."""
    r = (x[:, None] / 0.42) ** 2 + (y[:, :, None] / 0.11) ** 2
    return (1 - 0.45 * np.exp(-r)).astype(np.float32)[..., None]


def thing(
    kind: str, rng: np.random.Generator, x: np.ndarray, y: np.ndarray, board=((0.0, 1.0), 0.6)
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a pole, bench or car standing at x = 0: colour (T, H, W, 3) and its mask (T, H, W).

    Or a board: a plain rectangle from ((lower edge, upper edge), half its width), in metres.
    """
    x, y = x[:, None, :], y[:, :, None]
    base = rng.uniform(0.1, 0.8, 3)
    if kind == "pole":
        half = rng.uniform(0.08, 0.17)
        mask = (np.abs(x) < half) & (y < 3)
        shade = 0.5 + 0.5 * np.sqrt(np.clip(1 - (x / half) ** 2, 0, 1)) + 0 * y
    elif kind == "board":
        (low, high), half = board
        mask = (np.abs(x) < half) & (y > low) & (y < high)
        shade = np.ones_like(x * y)
    elif kind == "bench":
        slat = (y % 0.11 < 0.085) & (y > 0.38) & (y < 0.95)
        legs = (np.abs(np.abs(x) - 0.6) < 0.05) & (y <= 0.38) & (y > -0.12)
        mask = (np.abs(x) < 0.8) & (slat | (np.abs(y - 0.42) < 0.07)) | legs
        shade = 0.75 + 0.25 * (y > 0.5) + 0 * x
    else:
        cabin = (y >= 0.75) & (y < 1.25) & (np.abs(x) < 1.25 - 0.5 * (y - 0.75))
        hull = (np.abs(x) < 2.0) & (y > 0.05) & (y < 0.75)
        wheel = (np.abs(x) - 1.25) ** 2 + (y + 0.0) ** 2 < 0.1
        mask = cabin | hull | wheel
        glass = cabin & (y > 0.82) & (y < 1.2) & (np.abs(x) > 0.04)
        shade = np.where(wheel, 0.12, np.where(glass, 0.35, 0.75 + 0.35 * y)) + 0 * x
    colour = np.clip(shade[..., None] * base, 0, 1) * mask[..., None]
    return colour.astype(np.float32), mask
