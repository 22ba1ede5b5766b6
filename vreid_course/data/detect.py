"""People in a video, found by torchvision's Faster R-CNN, for who has no boxes.

Ren et al., "Faster R-CNN", NeurIPS 2015, on MobileNetV3 with a feature pyramid, trained on COCO.
"""

import os
from pathlib import Path

import torch
from torch import nn
from torchvision.models import detection
from tqdm import tqdm

from vreid_course import devices
from vreid_course.files import one_line

from .mars import MarsError

NAME = "fasterrcnn_mobilenet_v3_large_fpn"
PERSON = 1  # the class of COCO


def detector() -> nn.Module:
    """The detector with COCO's weights: those that VREID_WEIGHTS names, else a download.

    VREID_WEIGHTS is the file, or a folder that holds `fasterrcnn_mobilenet_v3_large_fpn.pth`.
    MarsError, in one line, where neither can be had.
    """
    model = getattr(detection, NAME)(weights=None, weights_backbone=None)
    named = Path(os.environ.get("VREID_WEIGHTS", "")).expanduser()
    path = named / f"{NAME}.pth" if named.is_dir() else named
    try:
        if os.environ.get("VREID_WEIGHTS"):
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            path = "download"
            weights = detection.FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1
            state = weights.get_state_dict(progress=True)
        model.load_state_dict(state)
    except Exception as error:  # each library has its own kinds for "no network", "no such file"
        cure = f"save {NAME}.pth in a folder that VREID_WEIGHTS names, or bring boxes of your own"
        fault = f"{path}: no weights for the person detector ({one_line(error)})"
        raise MarsError(f"{fault}: {cure} (--boxes: text of any MOTChallenge tool)") from None
    return model


def detect(video, path: Path, least: float, model: nn.Module | None = None) -> Path:
    """Find people in all pictures of a `video.Video`; writes their boxes as MOTChallenge text.

    least: smallest confidence, 0..1. model: another detector of torchvision, else `detector()`.
    Returns `path`. A file that a stopped run left goes on behind its last whole line. MarsError if
    nobody is found.
    """
    done = _done(path)
    device = devices.device()
    model = (model or detector()).eval().to(device)
    bar = tqdm(video, f"detecting, {video.path.name}", video.told or None, unit="frame")
    with path.open("a", encoding="utf-8") as stream, torch.inference_mode():
        for number, (picture, _) in enumerate(bar, 1):
            if number <= done or picture is None:
                continue
            rgb = torch.from_numpy(picture[..., ::-1].copy()).permute(2, 0, 1).to(device)
            found = model([rgb.float() / 255])[0]
            people = (found["labels"] == PERSON) & (found["scores"] >= least)
            stream.write(_lines(number, found["boxes"][people], found["scores"][people]))
            stream.flush()
    if not path.stat().st_size:
        fault = f"no person of confidence {least} in {video.count} pictures"
        raise MarsError(f"{video.path}: {fault}: lower --least, or bring boxes of your own")
    return path


def _lines(frame: int, boxes: torch.Tensor, scores: torch.Tensor) -> str:
    """The boxes of a frame (N, 4), as corners, and their scores (N,), as text."""
    lines = []
    for (left, top, right, bottom), score in zip(boxes.tolist(), scores.tolist(), strict=True):
        box = f"{left:.2f},{top:.2f},{right - left:.2f},{bottom - top:.2f}"
        lines.append(f"{frame},-1,{box},{score:.4f},-1,-1,-1\n")
    return "".join(lines)


def _done(path: Path) -> int:
    """The last frame that a stopped run has written; half a line behind it is taken away."""
    text = path.read_text("utf-8") if path.is_file() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, "utf-8")
    return int(whole.splitlines()[-1].split(",")[0]) if whole else 0
