"""Data-parallel training on a shared CPU: single-threaded workers over shared memory.

A loaded machine is poison for one process with several OpenMP threads, since every
operator waits for its slowest thread. Here each worker runs alone on one thread and
takes micro-batches from a shared counter, so a slow core costs one micro-batch at most.
Parameters, gradients, optimizer state and the averaged weights live in shared memory;
after each step every worker updates its own share of the parameters.

The optimizer is Muon for hidden matrices (orthogonalised momentum, scaled to Adam's
update size) and Adam for everything else.
"""
from __future__ import annotations

import math
import os
import time
from pathlib import Path

import torch
import torch.multiprocessing as mp


def orthogonalise(g: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration towards the nearest (semi-)orthogonal matrix, in bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    flip = x.shape[0] > x.shape[1]
    if flip:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return (x.T if flip else x).float()


def uses_muon(name: str, p: torch.Tensor) -> bool:
    """Hidden matrices only: no embeddings, no first or last convolution, no vectors."""
    if p.ndim < 2 or "embedding" in name and "linear" not in name:
        return False
    outer = ("conv_in", "conv_out", "quant_conv", "latents", "position", "proj_out_id")
    return min(p.shape[0], p.numel() // p.shape[0]) >= 16 and not any(o in name for o in outer)


class Team:
    """Shared training state of `named` parameters for `workers` processes."""

    def __init__(self, named, workers: int, muon_lr=2e-3, adam_lr=1e-3, ema_max=0.999, weight_decay=0.01, clip=1.0):
        self.named = [(n, p) for n, p in named if p.requires_grad]
        self.workers, self.muon_lr, self.adam_lr = workers, muon_lr, adam_lr
        self.ema_max, self.weight_decay, self.clip = ema_max, weight_decay, clip
        total = sum(p.numel() for _, p in self.named)
        flat = lambda: torch.zeros(total).share_memory_()
        self.grads = [flat() for _ in range(workers)]
        self.momentum, self.second, self.ema = flat(), flat(), flat()
        self.sums = torch.zeros(workers, 2, dtype=torch.float64).share_memory_()  # loss sum, gradient square sum
        self.extra = torch.zeros(workers, 16, dtype=torch.float64).share_memory_()  # free for parts of the loss
        self.spans, at = [], 0
        for _, p in self.named:
            self.spans.append((at, at + p.numel()))
            at += p.numel()
        # The largest parameters first, each to the least loaded worker.
        load, self.owner = [0.0] * workers, [0] * len(self.named)
        cost = lambda i: self.named[i][1].numel() * (6.0 if uses_muon(*self.named[i]) else 1.0)
        for i in sorted(range(len(self.named)), key=cost, reverse=True):
            self.owner[i] = min(range(workers), key=lambda w: load[w])
            load[self.owner[i]] += cost(i)
        for p, (a, b) in zip((p for _, p in self.named), self.spans):
            p.data.share_memory_()
            self.ema[a:b] = p.data.reshape(-1)
        ctx = mp.get_context("fork")
        self.counter, self.barrier, self.ctx = ctx.Value("l", 0), ctx.Barrier(workers), ctx
        self.stop = ctx.Value("b", 0)
        self.step = 0

    def state(self) -> dict:
        return dict(
            step=self.step, names=[n for n, _ in self.named],
            params=torch.cat([p.data.reshape(-1) for _, p in self.named]),
            momentum=self.momentum, second=self.second, ema=self.ema,
        )

    def load(self, state: dict) -> None:
        assert state["names"] == [n for n, _ in self.named], "the checkpoint is of another network"
        self.step = state["step"]
        self.momentum.copy_(state["momentum"])
        self.second.copy_(state["second"])
        self.ema.copy_(state["ema"])
        for (_, p), (a, b) in zip(self.named, self.spans):
            p.data.copy_(state["params"][a:b].view_as(p))

    def freeze(self, which) -> None:
        """Leaves the parameters whose name `which` accepts as they are (they keep their place in the checkpoint)."""
        for i, (name, p) in enumerate(self.named):
            if which(name):
                p.requires_grad_(False)
                self.owner[i] = -1

    def save(self, path: Path) -> None:
        temporary = path.with_suffix(".tmp")
        torch.save(self.state(), temporary)
        os.replace(temporary, path)

    def _update(self, rank: int, lr_scale: float, norm: float) -> None:
        shrink = min(1.0, self.clip / (norm + 1e-6)) if self.clip else 1.0
        t = self.step + 1
        ema = min(self.ema_max, (1 + t) / (10 + t))
        for i, (name, p) in enumerate(self.named):
            if self.owner[i] != rank:
                continue
            a, b = self.spans[i]
            g = self.grads[0][a:b].mul_(shrink)  # already summed over workers
            m, v = self.momentum[a:b], self.second[a:b]
            flat = p.data.reshape(-1)
            if uses_muon(name, p):
                m.mul_(0.95).add_(g)
                u = orthogonalise(g.add(m, alpha=0.95).view(p.shape[0], -1))
                u = u.mul_(0.2 * math.sqrt(max(u.shape))).reshape(-1)
                lr = self.muon_lr * lr_scale
                flat.mul_(1 - lr * self.weight_decay)
            else:
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.99).addcmul_(g, g, value=0.01)
                u = (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-8)
                lr = self.adam_lr * lr_scale
            flat.add_(u, alpha=-lr)
            p.data.copy_(flat.view_as(p))
            self.ema[a:b].lerp_(p.data.reshape(-1), 1 - ema)

    def train(self, make_loss, steps: int, micro: int, schedule, checkpoint: Path, log=None, every=20, save_every=600.0, seconds=None):
        """Runs until `steps`, or until `seconds` passed; `make_loss(rank)` gives `loss(step, k, extra)`.

        `schedule(step, progress)` is the factor on both learning rates, progress in [0,1] of whichever limit is nearer.
        """
        start, step0 = time.time(), self.step

        def worker(rank: int):
            torch.set_num_threads(1)
            for (_, p), (a, b) in zip(self.named, self.spans):
                p.grad = self.grads[rank][a:b].view_as(p) if p.requires_grad else None
            loss_fn = make_loss(rank)
            last_save = last = time.time()
            seen = 0
            history = []
            for step in range(step0, steps):
                self.step = step
                self.grads[rank].zero_()
                self.sums[rank].zero_()
                self.extra[rank].zero_()
                self.barrier.wait()
                while True:
                    with self.counter.get_lock():
                        k = self.counter.value
                        self.counter.value += 1
                    if k >= micro:
                        break
                    loss = loss_fn(step, k, self.extra[rank]) / micro
                    loss.backward()
                    self.sums[rank, 0] += float(loss.detach())
                self.barrier.wait()
                square = 0.0
                for i, (a, b) in enumerate(self.spans):
                    if self.owner[i] == rank:
                        g = self.grads[0][a:b]
                        for w in range(1, self.workers):
                            g.add_(self.grads[w][a:b])
                        square += float(g.square().sum())
                self.sums[rank, 1] = square
                self.barrier.wait()
                norm = math.sqrt(float(self.sums[:, 1].sum()))
                part = (step - step0) / max(1, steps - step0)
                if seconds:
                    # Workers must agree on the schedule, so the elapsed time comes from worker 0.
                    if rank == 0:
                        self.sums[0, 1] = (time.time() - start) / seconds
                    self.barrier.wait()
                    part = max(part, float(self.sums[0, 1]))
                if math.isfinite(norm):
                    self._update(rank, schedule(step, min(1.0, part)), norm)
                if rank == 0:
                    self.counter.value = 0
                    history.append((float(self.sums[:, 0].sum()), norm, self.extra.sum(0) / micro))
                    seen += 1
                    if seen % every == 0:
                        now = time.time()
                        tail = history[-every:]
                        mean = sum(h[0] for h in tail) / every
                        extra = torch.stack([h[2] for h in tail]).mean(0)
                        parts = " ".join(f"{x:.4f}" for x in extra.tolist() if x)
                        print(f"step {step + 1} loss {mean:.4f} [{parts}] grad {tail[-1][1]:.3f} {every / (now - last):.2f} steps/s {part * 100:.1f}% {now - start:.0f}s", flush=True)
                        last = now
                        if log:
                            log(step + 1, self)
                    if part >= 1.0:
                        self.stop.value = 1
                self.barrier.wait()
                done = self.stop.value or step + 1 == steps
                if rank == 0 and (done or time.time() - last_save > save_every):
                    self.step = step + 1
                    self.save(checkpoint)
                    last_save = time.time()
                if done:
                    break

        crew = [self.ctx.Process(target=worker, args=(r,)) for r in range(self.workers)]
        for c in crew:
            c.start()
        for c in crew:
            c.join()
        if any(c.exitcode for c in crew):
            raise SystemExit("a training worker failed")



def load_averaged(named, state: dict, which: str = "ema") -> None:
    """Copies the averaged (or with which='params' the raw) weights of a checkpoint into parameters."""
    named = list(named)
    assert [n for n, _ in named] == state["names"], "the checkpoint is of another network"
    at = 0
    for _, p in named:
        p.data.copy_(state[which][at : at + p.numel()].view_as(p))
        at += p.numel()


def flat_then_decay(step: int, progress: float, warmup: int = 50, decay_from: float = 0.6, floor: float = 0.05) -> float:
    """Warm up, hold, then fall linearly to `floor` over the last part of the run."""
    up = min(1.0, (step + 1) / warmup)
    down = 1.0 if progress < decay_from else 1.0 - (1.0 - floor) * (progress - decay_from) / (1.0 - decay_from)
    return up * down
