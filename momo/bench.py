"""The time of a step, against torch's own optimizers: ``python -m momo.bench``.

All optimizers step in turn on the same tensors in one process, so that what disturbs one disturbs all; the ratios are
of the medians. On the CPU, our optimizers are there twice: with the compiled passes and with passes of torch's
operations. On a GPU it also checks that Triton's steps are those of torch's operations, that a step never waits for the
device and that it can be captured in a CUDA graph; steps are timed as they are and in such graphs.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from momo import Momo, MomoAdam, MomoMuon, MomoMuonMax
from momo.passes.compiled import why_not

# Tensors of the size of the parameters that a step has to read and write at least.
STREAMS = {"Momo": (7, 5), "MomoAdam": (10, 7)}


def linears(count: int, width: int) -> list[tuple[int, ...]]:
    """The shapes of a stack of linear layers with biases."""
    return [(width, width), (width,)] * count


def resnet50() -> list[tuple[int, ...]]:
    """The shapes of ResNet-50's parameters (25.6 million)."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    inner = 64
    for blocks, planes in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for out, into, kernel in ((planes, inner, 1), (planes, planes, 3), (4 * planes, planes, 1)):
                shapes += [(out, into, kernel, kernel), (out,), (out,)]
            if block == 0:
                shapes += [(4 * planes, inner, 1, 1), (4 * planes,), (4 * planes,)]
            inner = 4 * planes
    return [*shapes, (1000, 2048), (1000,)]


def gpt124m() -> list[tuple[int, ...]]:
    """The shapes of a GPT with 12 layers of width 768 (124 million)."""
    shapes: list[tuple[int, ...]] = [(50257, 768), (1024, 768)]
    for _ in range(12):
        shapes += [(768,), (768,), (2304, 768), (2304,), (768, 768), (768,), (768,), (768,)]
        shapes += [(3072, 768), (3072,), (768, 3072), (768,)]
    return [*shapes, (768,), (768,)]


SHAPES: dict[str, Callable[[], list[tuple[int, ...]]]] = {
    "100 Linear(16, 16)": lambda: linears(100, 16),
    "100 Linear(128, 128)": lambda: linears(100, 128),
    "20 Linear(512, 512)": lambda: linears(20, 512),
    "12 Linear(2048, 2048)": lambda: linears(12, 2048),
}
GPU_SHAPES = {"ResNet-50": resnet50, "GPT 124M": gpt124m}
# A step of Muon is limited by products of matrices, and takes seconds for the largest of the others.
MUON_SHAPES: dict[str, Callable[[], list[tuple[int, ...]]]] = {
    **{name: SHAPES[name] for name in list(SHAPES)[:3]},
    "2 transformer layers of width 512": lambda: (
        [(1536, 512), (512, 512), (2048, 512), (512, 2048), (512,), (512,)] * 2
    ),
}


def parameters(shapes: list[tuple[int, ...]], device: str) -> list[Tensor]:
    """Parameters with gradients."""
    params: list[Tensor] = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    for p in params:
        p.grad = 0.01 * torch.randn_like(p)
    return params


def reference_package(path: str | None) -> Any:
    """The reference package `momo-opt` 0.1.0, unpacked in a folder; it has the same import name as this one."""
    if path is None:
        return None
    spec = importlib.util.spec_from_file_location(
        "momo_reference", f"{path}/momo/__init__.py", submodule_search_locations=[f"{path}/momo"]
    )
    if spec is None or spec.loader is None:
        raise SystemExit(f"there is no package in {path}/momo")
    module = importlib.util.module_from_spec(spec)
    sys.modules["momo_reference"] = module
    spec.loader.exec_module(module)
    return module


def steppers(params: list[Tensor], device: str, reference: Any) -> dict[str, tuple[str, Callable[[], Any]]]:
    """What is timed: a name, the family it belongs to, and a step. The first of a family is what it is compared to."""
    loss = torch.ones((), device=device)
    sgd: dict[str, Any] = dict(lr=1e-6, momentum=0.9, dampening=0.9)
    found: dict[str, tuple[str, Callable[[], Any]]] = {
        "SGD fused": ("Momo", torch.optim.SGD(params, fused=True, **sgd).step),
        "SGD foreach": ("Momo", torch.optim.SGD(params, foreach=True, **sgd).step),
        "Adam fused": ("MomoAdam", torch.optim.Adam(params, lr=1e-6, fused=True).step),
        "Adam foreach": ("MomoAdam", torch.optim.Adam(params, lr=1e-6, foreach=True).step),
    }
    compiled = device != "cpu" or why_not(torch.device(device), torch.float32) is None
    for name in STREAMS:
        ours = getattr(sys.modules["momo"], name)
        fused = True if device == "cuda" else None
        found[name] = name, functools.partial(ours(params, lr=1e-6, fused=fused).step, loss=loss)
        if compiled:
            found[f"{name} (torch passes)"] = (
                name,
                functools.partial(ours(params, lr=1e-6, fused=False).step, loss=loss),
            )
        if reference is not None:
            theirs = getattr(reference, name)(params, lr=1e-6)
            found[f"{name} (reference)"] = name, functools.partial(theirs.step, loss=loss)
    if device == "cuda":
        for name in ("SGD fused", "Momo", "Adam fused", "MomoAdam"):
            family, step = found[name]
            if name == "Adam fused":
                step = torch.optim.Adam(params, lr=1e-6, fused=True, capturable=True).step
            found[f"{name} (graph)"] = f"{family} in a CUDA graph", captured(step)
    return found


def captured(step: Callable[[], Any]) -> Callable[[], Any]:
    """The step in a CUDA graph."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def grouped(params: list[Tensor]) -> list[dict[str, Any]]:
    """Matrices in one group, as Muon takes them, and the rest in another."""
    return [
        {"params": [p for p in params if (p.dim() > 1) is matrices], "matrices": matrices} for matrices in (True, False)
    ]


def muon_steppers(params: list[Tensor], device: str, reference: Any) -> dict[str, tuple[str, Callable[[], Any]]]:
    """As :func:`steppers`, for Muon: torch's on the matrices and AdamW on the rest, and ours on all."""
    loss = torch.ones((), device=device)
    groups = grouped(params)
    muon = torch.optim.Muon(groups[0]["params"], lr=1e-6, nesterov=False)
    adamw = torch.optim.AdamW(groups[1]["params"], lr=1e-6, fused=True)

    def both() -> None:
        muon.step()  # type: ignore[no-untyped-call]
        adamw.step()

    found: dict[str, tuple[str, Callable[[], Any]]] = {"Muon and AdamW fused": ("MomoMuon", both)}
    for ours in (MomoMuon, MomoMuonMax):
        found[ours.__name__] = "MomoMuon", functools.partial(ours(grouped(params), lr=1e-6).step, loss=loss)
    return found


def times(steps: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, float]:
    """The median time of each step in seconds, taken in turn.

    Each turn in another order: a step is faster or slower by a tenth for what the one before has left in the cache.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    turn = list(steps.items())
    orders = random.Random(0)
    for _ in range(rounds + 3):
        orders.shuffle(turn)
        for name, step in turn:
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[3:]) for name, values in taken.items()}


def compare(
    shapes: dict[str, Callable[[], list[tuple[int, ...]]]],
    device: str,
    rounds: int | None,
    reference: Any,
    make_steppers: Callable[[list[Tensor], str, Any], dict[str, tuple[str, Callable[[], Any]]]] = steppers,
) -> None:
    """Print the table."""
    ratios: dict[str, list[float]] = {}
    for label, make in shapes.items():
        params = parameters(make(), device)
        elements = sum(p.numel() for p in params)
        found = make_steppers(params, device, reference)
        count = rounds or max(10, min(100, int(1e8 / elements)))
        measured = times({name: step for name, (_, step) in found.items()}, count, device)
        size = sum(p.numel() * p.element_size() for p in params)
        print(f"\n{label}: {len(params)} tensors, {elements / 1e6:.3g} million parameters, {count} rounds")
        base: dict[str, float] = {}
        for name, (family, _) in sorted(found.items(), key=lambda item: item[1][0]):
            base.setdefault(family, measured[name])
            ratio = measured[name] / base[family]
            ratios.setdefault(name, []).append(ratio)
            line = f"  {name:24s} {measured[name] * 1e3:9.3f} ms  {ratio:6.2f} x"
            if name.split(" (")[0] in STREAMS and "(reference)" not in name:
                mine, other = STREAMS[name.split(" (")[0]]
                line += (
                    f"   floor {mine / other:.2f} x; {mine * size / measured[name] / 1e9:.1f} GB/s of the floor's bytes"
                )
            print(line)
    print("\ngeometric mean over the shapes")
    for name, values in ratios.items():
        print(f"  {name:24s} {statistics.geometric_mean(values):6.2f} x   largest {max(values):.2f} x")


def check_triton(device: str = "cuda") -> None:
    """Steps with and without Triton are the same, with other tensors' gradients missing each time."""
    for cls, use_fstar in itertools.product((Momo, MomoAdam), (False, True)):
        found: list[list[Tensor]] = []
        for fused in (True, False):
            gen = torch.Generator().manual_seed(0)
            start = [torch.randn(shape, generator=gen) for shape in [(30, 50), (50,), (7, 3), (), (40001,)]]
            params = [p.to(device).requires_grad_() for p in start]
            optimizer = cls(params, lr=1e-2, weight_decay=0.1, use_fstar=use_fstar, fused=fused)
            for k in range(6):
                optimizer.zero_grad()
                loss = torch.stack([p.square().sum() for i, p in enumerate(params) if (k + i) % 4 != 3]).sum()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step(loss=loss)
            found.append(params)
        for a, b in zip(*found):
            torch.testing.assert_close(a, b)
        print(f"{cls.__name__}(use_fstar={use_fstar}): Triton's steps are those of torch's operations")


def check_gpu() -> None:
    """No step waits for the device, and a captured step gives the same iterates."""
    starred = {"weight_decay": 0.1, "use_fstar": True}
    cases: dict[Any, tuple[dict[str, Any], ...]] = {
        Momo: ({}, starred),
        MomoAdam: ({}, starred),
        MomoMuon: ({}, {"weight_decay": 0.1}),
        MomoMuonMax: ({}, {"stale_norms": True}),
    }
    for cls, of_class in cases.items():
        for options in of_class:
            torch.manual_seed(0)
            shapes = [(300, 500), (500,), (7, 3), ()]
            plain = [torch.randn(s, device="cuda", requires_grad=True) for s in shapes]
            graphed = [p.detach().clone().requires_grad_() for p in plain]
            both = [grouped(p) if hasattr(cls, "for_model") else p for p in (plain, graphed)]
            optimizers = [cls(params, lr=1e-2, **options) for params in both]

            def train(params: list[Tensor], optimizer: Any) -> None:
                loss = torch.stack([p.square().sum() for p in params]).sum()
                optimizer.zero_grad(set_to_none=False)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step(loss=loss)

            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream):
                for _ in range(3):
                    train(plain, optimizers[0])
                    train(graphed, optimizers[1])
                torch.cuda.set_sync_debug_mode("error")
                for _ in range(3):
                    train(plain, optimizers[0])
                    optimizers[0].diagnostics()
                torch.cuda.set_sync_debug_mode("default")
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                train(graphed, optimizers[1])
            for _ in range(3):
                graph.replay()
            torch.cuda.synchronize()
            for a, b in zip(plain, graphed):
                torch.testing.assert_close(a, b)
            print(f"{cls.__name__} {options}: no synchronisation; a CUDA graph gives the same iterates")


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m momo.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=None, help="threads on the CPU")
    parser.add_argument("--rounds", type=int, default=None, help="steps to time of each optimizer")
    parser.add_argument("--only", default=None, help="only shapes whose name contains this")
    parser.add_argument("--reference", default=None, metavar="FOLDER", help="where momo-opt 0.1.0 is unpacked")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    print(f"torch {torch.__version__}, {chosen.device}, {torch.get_num_threads()} threads")
    if chosen.device == "cpu":
        reason = why_not(torch.device("cpu"), torch.float32)
        print("Momo and MomoAdam step with " + (f"torch's operations: {reason}" if reason else "compiled passes"))
    if chosen.device == "cuda":
        if importlib.util.find_spec("triton"):
            check_triton()
        check_gpu()
    shapes = SHAPES if chosen.device == "cpu" else {**SHAPES, **GPU_SHAPES}
    shapes = {name: make for name, make in shapes.items() if chosen.only is None or chosen.only in name}
    compare(shapes, chosen.device, chosen.rounds, reference_package(chosen.reference))
    muon = {name: make for name, make in MUON_SHAPES.items() if chosen.only is None or chosen.only in name}
    if muon and hasattr(torch.optim, "Muon"):
        print("\nMuon")
        compare(muon, chosen.device, chosen.rounds, None, muon_steppers)


if __name__ == "__main__":
    main()
