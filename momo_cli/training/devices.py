"""Which devices ``--device`` names."""

from __future__ import annotations

import torch

from momo_cli.errors import UserError

_KNOWN = "auto, cpu, cuda, cuda:0,cuda:1 or mps"


def parse_devices(text: str) -> list[torch.device]:
    """The devices to train on; ``auto`` is CUDA, else MPS, else the CPU.

    >>> parse_devices("cpu")
    [device(type='cpu')]

    Raises:
        UserError: There is no such device on this machine.
    """
    if text == "auto":
        if torch.cuda.is_available():
            return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        return [torch.device("mps" if torch.backends.mps.is_available() else "cpu")]
    devices = []
    for word in (w.strip() for w in text.split(",")):
        try:
            device = torch.device(word)
        except RuntimeError:
            raise UserError(f"--device {text}: {word!r} is not a device.\nWrite {_KNOWN}.") from None
        if device.type == "cuda":
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if not count:
                raise UserError(
                    f"--device {text}: torch finds no CUDA device on this machine.\n"
                    "Write --device cpu, or leave it out."
                )
            if (device.index or 0) >= count:
                raise UserError(
                    f"--device {text}: this machine has {count} CUDA device(s), cuda:0 to cuda:{count - 1}."
                )
            device = torch.device("cuda", device.index or 0)
        elif device.type == "mps":
            if not torch.backends.mps.is_available():
                raise UserError(
                    f"--device {text}: torch finds no MPS device on this machine.\nWrite --device cpu, or leave it out."
                )
        elif device.type != "cpu":
            raise UserError(f"--device {text}: runs on {device.type!r} devices aren't supported.\nWrite {_KNOWN}.")
        devices.append(device)
    return devices
