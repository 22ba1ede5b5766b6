"""COSAM at the paper's setting, beside gathering the other frames of every frame: time and memory.

8 clips of 4 frames, 1024 channels, maps of 16 x 8; forward and backward, in turns, on one thread.
"""

import time

import torch
from torch.profiler import ProfilerActivity, profile

from vreid_course import lessons

cosam = lessons.load("02_cosam")
B, T, C, SIZE = 8, 4, 1024, (16, 8)


def gathered(module, x):
    """The same output by way of the other frames' descriptors (B, T, (T-1)*Q, D) and all costs."""
    space = module.space
    z = cosam.describe(space, x)  # (B, T, Q, D)
    others = [[s for s in range(T) if s != t] for t in range(T)]
    rest = z[:, torch.tensor(others, device=x.device)].flatten(2, 3)  # (B, T, (T-1)*Q, D)
    cost = (rest @ z.transpose(2, 3) / z.shape[-1]).flatten(0, 1)  # (B*T, (T-1)*Q, Q)
    y = x * space.summary(cost.unflatten(2, SIZE)).sigmoid()
    return y * (1 + module.channel(y))


def ours(module, x):
    return module(x)[0]


def peak(step):
    """MiB that a step holds at once, beyond what was there before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20


def test_cosam_beside_gathering(benchmark, capsys):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = cosam.COSAM(C, T, SIZE).to(device)
    x = torch.rand(B * T, C, *SIZE, device=device, requires_grad=True)
    grad = torch.rand_like(x)

    def clear():
        module.zero_grad()
        x.grad = None

    def step(way):
        clear()
        way(module, x).backward(grad)
        if x.is_cuda:
            torch.cuda.synchronize()

    module.eval()
    torch.testing.assert_close(ours(module, x), gathered(module, x), rtol=1e-4, atol=1e-5)
    module.train()
    times = {ours: [], gathered: []}
    for _ in range(8):
        for way, spent in times.items():
            start = time.perf_counter() if x.is_cuda else time.process_time()
            step(way)
            spent.append((time.perf_counter() if x.is_cuda else time.process_time()) - start)
    fast, slow = (1000 * min(spent[2:]) for spent in times.values())
    held = []
    for way in times:
        clear()
        held.append(peak(lambda way=way: way(module, x).backward(grad)))
    small, large = held
    benchmark.pedantic(step, (ours,), rounds=3)
    torch.set_num_threads(threads)
    with capsys.disabled():
        print(f"\nCOSAM {fast:.1f} ms, {small:.0f} MiB; gathering {slow:.1f} ms, {large:.0f} MiB")
        print(f"{slow / fast:.2f} x as fast, {small / large:.2f} of the memory ({device})")
    assert fast <= slow and small < large
