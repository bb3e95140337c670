"""Whole grids against the script that a user would write: ``python -m momo_cli.bench --scripts``.

Four kinds of task on random data, each 2 optimizers × 3 LRs × 3 seeds of a second or two. The script trains these 18
runs one after another and evaluates each at its end; ``momo sweep`` trains the same, as it chooses to, and measures ℓ0,
stores the runs and makes the figures. Both are whole commands, from starting Python; they take turns, and the least
time of each counts. Wanted are ratios of at most 1.05 for each task and 0.8 on the mean.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

LRS = (1e-4, 1e-3, 1e-2)
SEEDS = 3

SCRIPT = f"""
import torch
from momo import MomoAdam
from work import build

for seed in range({SEEDS}):
    for name in ("momo-adam", "adamw"):
        for lr in {LRS}:
            torch.manual_seed(seed)
            model, loss_of, train, val = build()
            make = MomoAdam if name == "momo-adam" else torch.optim.AdamW
            optimizer = make(model.parameters(), lr=lr)
            for batch in train:
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                optimizer.step(loss=loss) if name == "momo-adam" else optimizer.step()
            model.eval()
            with torch.no_grad():
                losses = [loss_of(model, batch).item() for batch in val]
            print(name, lr, seed, sum(losses) / len(losses), flush=True)
"""

_HEAD = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset
"""

GPT = """
class Model(nn.Module):
    def __init__(self, characters=64, width=96, depth=3, length=64):
        super().__init__()
        self.embed, self.place = nn.Embedding(characters, width), nn.Parameter(0.02 * torch.randn(length, width))
        layer = lambda: nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks, self.head = nn.ModuleList(layer() for _ in range(depth)), nn.Linear(width, characters)
        self.register_buffer("mask", torch.full((length, length), -torch.inf).triu(1))

    def forward(self, x):
        h = self.embed(x) + self.place
        for block in self.blocks:
            h = block(h, src_mask=self.mask)
        return self.head(h)


def build():
    data = torch.randint(0, 64, (16 * 40, 65), generator=torch.Generator().manual_seed(1)).cumsum(1) % 64
    def loss(model, batch):
        x = batch[0]
        return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
    train = DataLoader(TensorDataset(data[:-64]), batch_size=16, shuffle=True)
    return Model(), loss, train, DataLoader(TensorDataset(data[-64:]), batch_size=32)
"""

RESNET = """
class Images(Dataset):
    def __init__(self, count):
        draw = torch.Generator().manual_seed(count)
        self.x, self.y = torch.randn(count, 3, 24, 24, generator=draw), torch.randint(0, 10, (count,), generator=draw)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        x = F.pad(self.x[i], (2, 2, 2, 2))
        left, top = torch.randint(0, 5, (2,)).tolist()
        return x[:, top : top + 24, left : left + 24], self.y[i]


class Block(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.second, self.norm2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        self.skip = nn.Conv2d(inside, outside, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        return F.relu(self.skip(x) + self.norm2(self.second(F.relu(self.norm1(self.first(x))))))


def build():
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    loss = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])
    train = DataLoader(Images(32 * 50), batch_size=32, shuffle=True, num_workers=2)
    return model, loss, train, DataLoader(Images(128), batch_size=64, num_workers=2)
"""

LSTM = """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(16, 96, 2, batch_first=True), nn.Linear(96, 1)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def build():
    x = torch.randn(32 * 60, 48, 16, generator=torch.Generator().manual_seed(1))
    y = x.mean((1, 2), keepdim=False)[:, None].mul(20).sin()
    loss = lambda model, batch: F.mse_loss(model(batch[0]), batch[1])
    train = DataLoader(TensorDataset(x[:-128], y[:-128]), batch_size=32, shuffle=True)
    return Model(), loss, train, DataLoader(TensorDataset(x[-128:], y[-128:]), batch_size=64)
"""

BERT = """
class Model(nn.Module):
    def __init__(self, words=500, width=96, depth=3):
        super().__init__()
        self.embed, self.place = nn.Embedding(words, width), nn.Parameter(0.02 * torch.randn(48, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, words)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x) + self.place))


def build():
    words = torch.randint(1, 500, (16 * 40, 48), generator=torch.Generator().manual_seed(1))
    words[:, 1::2] = words[:, ::2]
    def loss(model, batch):
        x = batch[0]
        hidden = torch.zeros_like(x, dtype=torch.bool)
        hidden[:, ::7] = True
        return F.cross_entropy(model(x.masked_fill(hidden, 0))[hidden], x[hidden])
    train = DataLoader(TensorDataset(words[:-64]), batch_size=16, shuffle=True)
    return Model(), loss, train, DataLoader(TensorDataset(words[-64:]), batch_size=32)
"""

TASKS = {"small GPT": GPT, "ResNet, two loader workers": RESNET, "LSTM": LSTM, "small BERT": BERT}


def scripts_table(
    timed: Callable[[list[str], Path], tuple[float, float]], rounds: int, names: Iterable[str], options: list[str]
) -> None:
    """Time the script and the sweep of each task in turn, and print their ratios.

    Args:
        timed: Runs a command in a folder; returns its seconds and memory.
        rounds: How often; the least time of each counts.
        names: Tasks whose names contain one of these; all where there is none.
        options: Further options of the sweep.
    """
    words = list(names)
    lrs = ",".join(map(str, LRS))
    sweep = [sys.executable, "-m", "momo_cli", "sweep", "work.py", "-o", "momo-adam,adamw", "--lrs", lrs]
    sweep += ["--seeds", str(SEEDS), "--fresh", *options]
    ratios = []
    print(f"{2 * len(LRS) * SEEDS} runs{'':22}{'script s':>10}{'momo s':>9}{'ratio':>8}")
    for name, text in TASKS.items():
        if words and not any(word.lower() in name.lower() for word in words):
            continue
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "work.py").write_text(_HEAD + text)
            (Path(folder) / "script.py").write_text(SCRIPT)
            script, momo = [], []
            for _ in range(rounds):
                script.append(timed([sys.executable, "script.py"], Path(folder))[0])
                momo.append(timed(sweep, Path(folder))[0])
        ratios.append(min(momo) / min(script))
        print(f"{name:29}{min(script):10.1f}{min(momo):9.1f}{ratios[-1]:8.2f}", flush=True)
    print(f"{'mean':29}{statistics.fmean(ratios):27.2f}")
