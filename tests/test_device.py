"""Training and extraction on whatever this machine has: a GPU in bfloat16, or the CPU."""

from functools import partial

import numpy as np
import torch
from accelerate.state import AcceleratorState
from tiny import tiny_split

from vreid_course import losses, sampling
from vreid_course.loader import ClipBatches, FrameStore
from vreid_course.nets import Baseline, resnet
from vreid_course.training import extract, train


def loss(model, batch):
    features, logits = model(batch["clips"])
    assert batch["clips"].is_cuda == torch.cuda.is_available()
    total = losses.smoothed_cross_entropy(logits, batch["labels"])
    total = total + losses.batch_hard_triplet(features, batch["pids"])
    return total, {"accuracy": losses.accuracy(logits, batch["labels"])}


def test_train_resume_extract(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    store = FrameStore(tiny_split(tmp_path / "bbox_train", size=(64, 32)), (64, 32))
    people = sampling.IdentityBatches(store.split.pids, P=4, K=2)
    batches = ClipBatches(store, partial(sampling.spread, frames=2), people)
    model = Baseline(4, resnet("course"), neck=True)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for steps in (6, 12):  # the second call goes on from the checkpoint of the first
        history = train(model, loss, optimiser, batches, steps, folder=tmp_path, save_every=3)
        assert len(history) == steps
    assert history[-1]["loss"] < history[0]["loss"]
    assert next(model.parameters()).dtype == torch.float32
    features = extract(model, Baseline.embed, store, sampling.whole)
    assert features.shape == (8, 256) and np.isfinite(features).all()
    AcceleratorState._reset_state(reset_partial_state=True)
