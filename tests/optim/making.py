"""Making any of the package's optimizers over any tensors."""

from momo import Momo, MomoAdam, MomoMuon, MomoMuonMax

EVERY = [Momo, MomoAdam, MomoMuon, MomoMuonMax]
MUONS = EVERY[2:]


def made(cls, params, **options):
    """The optimizer over tensors or groups; where it knows matrices, those of two or more dimensions are some."""
    params = list(params)
    if cls not in MUONS:
        return cls(params, **options)
    groups = params if isinstance(params[0], dict) else [{"params": params}]
    split = []
    for group in groups:
        for matrices in (True, False):
            chosen = [p for p in group["params"] if (p.dim() > 1) is matrices]
            if chosen:
                split.append({**group, "params": chosen, "matrices": matrices})
    return cls(split, **options)
