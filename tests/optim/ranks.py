"""One rank of the tests of several: ``python ranks.py RANK FOLDER`` runs every case and saves what each of them
found."""

from __future__ import annotations

import copy
import sys
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from optim import making
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from momo import Momo, MomoAdam, MomoMuon, MomoMuonMax

WORLD = 2
STEPS = 100
OPTIONS = {
    "momo": (Momo, dict(lr=0.3, weight_decay=0.01)),
    "momo-star": (Momo, dict(lr=0.3, use_fstar=True, lb=-1.0)),
    "momo-adam": (MomoAdam, dict(lr=0.05, weight_decay=0.1)),
    "torch": (MomoAdam, dict(lr=0.05, weight_decay=0.1, fused=False)),
    "momo-muon": (MomoMuon, dict(lr=0.3, weight_decay=0.1)),
    "momo-muonmax": (MomoMuonMax, dict(lr=0.3, weight_decay=0.1)),
    "stale": (MomoMuonMax, dict(lr=0.3, stale_norms=True, fused=False)),
}


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(7, 10), torch.nn.Tanh(), torch.nn.Linear(10, 3)).double()


def batches(steps=STEPS):
    gen = torch.Generator().manual_seed(1)
    return torch.randn(steps, WORLD, 8, 7, generator=gen, dtype=torch.float64)


def groups(net, options):
    """A group with decay for the weights, another one for the biases."""
    decay = options.pop("weight_decay", 0.0)
    weights = [p for p in net.parameters() if p.dim() > 1]
    return [{"params": weights, "weight_decay": decay}, {"params": [p for p in net.parameters() if p.dim() < 2]}]


def loss_of(net, x):
    return (net(x) - x[:, :3].sin()).square().mean()


def train(net, optimizer, rank, start=0, stop=STEPS, bound=None):
    """Train on this rank's batches; on the union of all if ``rank`` is None."""
    found = []
    for x in batches()[start:stop]:
        optimizer.zero_grad()
        loss = loss_of(net, x.flatten(0, 1) if rank is None else x[rank])
        loss.backward()
        optimizer.step(loss=loss, lower_bound=bound)
        found.append(optimizer.diagnostics()["step_size"].clone())
    return torch.stack(found)


def whole(net):
    """The parameters as they are all together."""
    return [(p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for p in net.parameters()]


def optimizer_of(name, net, **more):
    cls, options = OPTIONS[name]
    options = {**options, **more}
    return making.made(cls, groups(net, options), **options)


def ddp(rank, name):
    net = model()
    steps = train(DistributedDataParallel(net), optimizer_of(name, net), rank)
    return whole(net), steps


def one_process(rank, name):
    net = model()
    steps = train(net, optimizer_of(name, net, process_group=False), None)
    return whole(net), steps


def bounded(rank, name):
    """Each rank has a bound of its own loss, and one process their mean."""
    if name == "momo-star":
        return None
    net, alone = model(), model()
    train(DistributedDataParallel(net), optimizer_of(name, net), rank, bound=0.02 * rank)
    train(alone, optimizer_of(name, alone, process_group=False), None, bound=0.01 * (WORLD - 1))
    return whole(net), whole(alone)


def sharded(rank, name):
    net = model()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in (net[0], net[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    steps = train(net, optimizer_of(name, net), rank)
    return whole(net), steps


def hybrid(rank, name):
    """Replicated over one dimension of the mesh, sharded over the other (of one rank where there are two in all)."""
    net = model()
    mesh = init_device_mesh("cpu", (2, WORLD // 2), mesh_dim_names=("replicate", "shard"))
    fully_shard(net, mesh=mesh)
    steps = train(net, optimizer_of(name, net), rank)
    return whole(net), steps


def tensor_parallel(rank, name):
    net = model()
    mesh = init_device_mesh("cpu", (WORLD,))
    parallelize_module(net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    steps = train(net, optimizer_of(name, net), None)  # every rank has the same batch: that of all
    return whole(net), steps


def mixture(rank, name):
    """Sharded, replicated and plain tensors in one optimizer."""
    net = model()
    mesh = init_device_mesh("cpu", (WORLD,))
    first, second = net[0], net[2]
    first.weight = torch.nn.Parameter(distribute_tensor(first.weight.detach(), mesh, [Shard(1)]))
    first.bias = torch.nn.Parameter(distribute_tensor(first.bias.detach(), mesh, [Replicate()]))
    optimizer = optimizer_of(name, net)
    steps = []
    for x in batches():
        x = x.flatten(0, 1)
        plain = model()
        for p, q in zip(plain.parameters(), whole(net)):
            p.data.copy_(q)
        loss = loss_of(plain, x)
        loss.backward()
        for p, q in zip(net.parameters(), plain.parameters()):
            p.grad = distribute_tensor(q.grad, mesh, p.placements) if isinstance(p, DTensor) else q.grad
        optimizer.step(loss=loss)
        steps.append(optimizer.diagnostics()["step_size"].clone())
    assert second.weight.grad is not None
    return whole(net), torch.stack(steps)


def partial_gradients(rank, name):
    """Gradients that are sums still to be made over ranks."""
    mesh = init_device_mesh("cpu", (WORLD,))
    cls, options = OPTIONS[name]
    x = torch.arange(6.0, dtype=torch.float64).view(2, 3)
    p = torch.nn.Parameter(distribute_tensor(x, mesh, [Shard(0)]))
    optimizer = making.made(cls, [p], **options)
    for k in range(5):
        p.grad = DTensor.from_local(x * (rank + 1) + k, mesh, [Partial()])
        optimizer.step(loss=torch.tensor(float(rank)))
    return [p.full_tensor().detach()], None


def partial_gradients_by_hand(rank, name):
    cls, options = OPTIONS[name]
    x = torch.arange(6.0, dtype=torch.float64).view(2, 3)
    p = torch.nn.Parameter(x.clone())
    optimizer = making.made(cls, [p], **options, process_group=False)
    for k in range(5):
        p.grad = 3 * x + 2 * k
        optimizer.step(loss=0.5)
    return [p.detach()], None


def checkpoint(rank, name, folder):
    """Saved sharded at half of the training, loaded again, sharded."""

    def sharded_model():
        net = model()
        fully_shard(net, mesh=init_device_mesh("cpu", (WORLD,)))
        return net, optimizer_of(name, net)

    half = STEPS // 2
    net, optimizer = sharded_model()
    train(net, optimizer, rank, 0, half)
    optimizer.zero_grad()
    path = str(Path(folder) / f"checkpoint-{name}")
    dcp.save(
        {"model": get_model_state_dict(net), "optimizer": get_optimizer_state_dict(net, optimizer)}, checkpoint_id=path
    )
    other, resumed = sharded_model()
    state = {"model": get_model_state_dict(other), "optimizer": get_optimizer_state_dict(other, resumed)}
    dcp.load(state, checkpoint_id=path)
    set_model_state_dict(other, state["model"])
    set_optimizer_state_dict(other, resumed, state["optimizer"])
    train(other, resumed, rank, half)
    train(net, optimizer, rank, half)
    return whole(other), whole(net)


def count_collectives(rank, name):
    net = model()
    optimizer = optimizer_of(name, net)
    calls = []
    original = dist.all_reduce

    def counted(tensor, *args, **kwargs):
        calls.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    parallel = DistributedDataParallel(net)
    train(parallel, optimizer, rank, 0, 2)
    dist.all_reduce = counted
    try:
        for x in batches()[2:7]:
            optimizer.zero_grad()
            loss = loss_of(parallel, x[rank])
            loss.backward()
            calls.append("backward")
            optimizer.step(loss=loss)
    finally:
        dist.all_reduce = original
    return calls


def one_bad_loss(rank, name):
    """One rank's loss is infinite once."""
    net = model()
    optimizer = optimizer_of(name, net)
    parallel = DistributedDataParallel(net)
    for k, x in enumerate(batches()[:20]):
        optimizer.zero_grad()
        loss = loss_of(parallel, x[rank])
        loss.backward()
        optimizer.step(loss=float("inf") if k == 5 and rank == 1 else loss)
    return whole(net), optimizer.diagnostics()


def refused(rank, name):
    """What must be refused, by its message."""
    found = {}

    def attempt(what, act):
        try:
            act()
            found[what] = "accepted"
        except (RuntimeError, ValueError) as error:
            found[what] = str(error)

    cls, options = OPTIONS[name]
    if cls in making.MUONS:
        # Flat parameters are no matrices, and ZeroRedundancyOptimizer drops the groups' options: refused before the rest.
        attempt("ZeroRedundancyOptimizer", lambda: ZeroRedundancyOptimizer(model().parameters(), cls, **options))
        return found

    def zero():
        net = model()
        optimizer = ZeroRedundancyOptimizer(net.parameters(), cls, **options)
        loss = loss_of(DistributedDataParallel(net), batches()[0][rank])
        loss.backward()
        optimizer.step(loss=loss)

    def models_of_their_own():
        torch.manual_seed(rank)
        net = torch.nn.Linear(7, 3).double()
        optimizer = cls(net.parameters(), **options)
        loss = loss_of(net, batches()[0][rank])
        loss.backward()
        optimizer.step(loss=loss)

    def sharded_without_group():
        net = model()
        fully_shard(net, mesh=init_device_mesh("cpu", (WORLD,)))
        optimizer = optimizer_of(name, net, process_group=False)
        loss = loss_of(net, batches()[0][rank])
        loss.backward()
        optimizer.step(loss=loss)

    def flat(original):
        net = FullyShardedDataParallel(model(), use_orig_params=original, device_id=torch.device("cpu"))
        optimizer = cls(net.parameters(), **options)
        loss = loss_of(net, batches()[0][rank])
        loss.backward()
        optimizer.step(loss=loss)

    attempt("ZeroRedundancyOptimizer", zero)
    attempt("models of their own", models_of_their_own)
    attempt("sharded, no group", sharded_without_group)
    attempt("FSDP1", lambda: flat(False))
    attempt("FSDP1, original parameters", lambda: flat(True))
    return found


CASES = {
    "ddp": ddp,
    "one process": one_process,
    "bounded": bounded,
    "fsdp2": sharded,
    "hsdp": hybrid,
    "tensor parallel": tensor_parallel,
    "mixture": mixture,
    "partial gradients": partial_gradients,
    "partial gradients by hand": partial_gradients_by_hand,
    "collectives": count_collectives,
    "one bad loss": one_bad_loss,
    "refused": refused,
}


def main(rank, folder):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.Tensor.bfloat16 = torch.Tensor.clone  # Muon's iteration in double, so that its rounding hides no wrong sum
    store = dist.FileStore(str(Path(folder) / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    found = {}
    for name in OPTIONS:
        for case, run in CASES.items():
            try:
                found[case, name] = copy.deepcopy(run(rank, name))
            except Exception:
                found[case, name] = traceback.format_exc()
            dist.barrier()
        try:
            found["checkpoint", name] = checkpoint(rank, name, folder)
        except Exception:
            found["checkpoint", name] = traceback.format_exc()
        dist.barrier()
    torch.save(found, Path(folder) / f"found-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
