"""The method once more, as plainly as possible: one parameter and one number at a time, in double precision, from the
paper's formulas. Parameters without a gradient are left out; each group has its own learning rate and decay."""

from __future__ import annotations

import math

import torch


class Plain:
    """`adam` chooses between the two methods; `groups` are dicts with params, lr, weight_decay and the method's
    options."""

    def __init__(self, groups, adam, beta=0.9, lb=0.0, bias_correction=False, use_fstar=False, divide=True):
        self.groups, self.adam, self.beta, self.lb = groups, adam, beta, lb
        self.bias_correction = bias_correction or adam
        self.use_fstar, self.divide = use_fstar, divide
        self.k, self.f_avg, self.fstar = 0, 0.0, lb
        self.memory = {}

    def rho(self, k):
        return 1 - self.beta**k if self.bias_correction else 1.0

    @torch.no_grad()
    def step(self, f):
        f, beta = float(f), self.beta
        self.k += 1
        rho = self.rho(self.k)
        self.f_avg = f if self.k == 1 and not self.bias_correction else beta * self.f_avg + (1 - beta) * f
        gamma, moving = 0.0, []
        for group in self.groups:
            lr, c = float(group["lr"]), 1 + float(group["lr"]) * group["weight_decay"]
            for x in group["params"]:
                if x.grad is None:
                    continue
                g, xd = x.grad.double(), x.double()
                m = self.memory.setdefault(x, dict(j=0, d=torch.zeros_like(xd), v=torch.zeros_like(xd), gamma=0.0))
                m["j"] += 1
                gx = (g * xd).sum().item()
                if m["j"] == 1 and not self.bias_correction:
                    m["d"], m["gamma"] = g.clone(), gx
                else:
                    m["d"] = beta * m["d"] + (1 - beta) * g
                    m["gamma"] = beta * m["gamma"] + (1 - beta) * gx
                u = m["d"]
                if self.adam:
                    beta2 = group["beta2"]
                    m["v"] = beta2 * m["v"] + (1 - beta2) * g * g
                    u = m["d"] / ((m["v"] / (1 - beta2 ** m["j"])).sqrt() + group["eps"])
                gamma += m["gamma"]
                moving.append((x, u, lr / self.rho(m["j"]), c, (m["d"] * xd).sum().item(), (m["d"] * u).sum().item()))
        offset = self.f_avg - gamma
        decayed = offset + sum(dx / c for *_, c, dx, _ in moving)
        denominator = sum(cap * du / c for _, _, cap, c, _, du in moving)
        if self.use_fstar and decayed < rho * self.fstar:
            self.fstar = max(decayed / (2 * rho), self.lb)
        t = 0.0 if denominator == 0 else min(1.0, max(0.0, (decayed - rho * self.fstar) / denominator))
        if self.use_fstar:
            descent = sum(cap * du for _, _, cap, _, _, du in moving) * t
            self.fstar = max((offset + sum(m[4] for m in moving) - descent / 2) / rho, self.lb)
        for x, u, cap, c, _, _ in moving:
            if self.divide:
                x.copy_((x.double() - cap * t * u) / c)
            else:
                x.copy_(x.double() * (2 - c) - cap * t * u)
        assert math.isfinite(t)
        return t
