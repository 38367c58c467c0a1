"""UNet, text encoders and identity adapter in one run, then the adapter alone with the paper's three losses.

A face that nothing foretells gives an unfinished base hardly a gradient, so most of the batch carries the identity tokens of
another photo of the same person; for the rest the identity attention adds nothing, and the UNet stays a text-to-image model.
Beside L_diff: what the recogniser of latents sees of the estimated clean latents, what the training recogniser sees of the
decoded estimate, and L_id of pictures made from pure noise in four steps, by both.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from common import DEVICE, HALF, Budget, autocast, perceived, said, sheet, to_u8
from optimizer import Optimizer, flat_then_decay
from sampling import CUMULATIVE, SIGMAS, sample, trailing_times
from watchers import roughened

IDENTITY, NO_PERSON, NO_WORDS, DROP = 0.6, 0.1, 0.6, 0.08  # shares: with identity; of these the zero identity; its empty prompts; others'
PERSON = 3.0  # how much more a face counts than the background
# Timesteps are drawn by this distribution function: at either end of the schedule little is decided.
OFTEN = (0.0, 0.08, 0.92, 1.0), (0.0, 180.0, 860.0, 1000.0)
# Above this noise (sigma) the estimate of the clean latents is a mean over faces, which no recogniser should judge.
PERCEIVED_BELOW, DECODED_BELOW = 2.5, 1.0
PERCEIVE, DECODE = 0.1, 0.1
# With 0.3 from a third of the training on, all images of a person became alike whatever the prompt.
IDENTIFY = 0.05
BRANCH_EVERY = 3  # steps: the few-step branch is many launches whatever its batch, so it runs seldom and with many pictures
BRANCH_SPREAD = 120  # the branch's timesteps are drawn this far around 750, 500 and 250
ALIGN_SEMANTIC, ALIGN_LAYOUT, ADAPTER_ID = 0.6, 0.1, 0.3


class Joint:
    def __init__(self, net, adapter, settings, store, coder, watcher, faces, empty):
        self.net, self.adapter, self.settings, self.store, self.coder = net, adapter, settings, store, coder
        self.watcher, self.faces, self.empty = watcher, faces, empty
        self.cumulative, self.sigmas = CUMULATIVE.float().to(DEVICE), SIGMAS.float().to(DEVICE)
        self.snr = self.cumulative / (1 - self.cumulative)
        self.noise_of = net

    def drawn(self, count, identity):
        """Rows, their token ids, how many of the first rows have identity, and these rows' condition and hidden states."""
        s = self.store
        known = round(identity * count)
        rows = torch.randint(s.encoded, (count,), device=DEVICE)
        for _ in range(4):  # people without a photo have no identity to give
            bad = (s.photos[s.person[rows]] == 0) & (torch.arange(count, device=DEVICE) < known)
            rows = torch.where(bad, torch.randint(s.encoded, (count,), device=DEVICE), rows)
        ids = s.ids[rows, torch.randint(s.ids.shape[1], (count,), device=DEVICE)]
        condition, hidden = s.other_photo(rows[:known])
        nobody = torch.rand(known, device=DEVICE) < NO_PERSON
        keep = (~nobody).float()
        condition, hidden = condition * keep[:, None], [h * keep[:, None, None] for h in hidden]
        drop = torch.full((count,), DROP, device=DEVICE)
        drop[:known] = torch.where(nobody, NO_WORDS, DROP / 2)
        ids = torch.where((torch.rand(count, device=DEVICE) < drop)[:, None, None], self.empty, ids)
        return rows, ids, known, condition, hidden, ~nobody

    def noised(self, z):
        """Latents with noise at stratified timesteps."""
        b = len(z)
        u = (np.random.permutation(b) + np.random.rand(b)) / b
        t = torch.from_numpy(np.interp(u, *OFTEN).clip(0, 999).astype(np.int64)).to(DEVICE)
        noise = torch.randn_like(z)
        c = self.cumulative[t].view(-1, 1, 1, 1)
        return t, noise, c.sqrt() * z + (1 - c).sqrt() * noise, c

    def identity(self, condition, hidden):
        """Identity tokens [B,N,D] in the adapter's own precision."""
        dtype = self.adapter.id_adapter.proj_out.dtype
        return self.adapter.id_adapter(condition.to(dtype), [h.to(dtype) for h in hidden])

    def nobody(self):
        """The unconditional identity's tokens [1,N,D]: those of zeros."""
        return self.identity(torch.zeros(1, 768, device=DEVICE), [torch.zeros(1, 65, 192, device=DEVICE)] * 5)

    def tokens(self, count, condition, hidden):
        """Identity tokens [count,N,D] and scales [count,1,1]; the rows after those of `condition` have neither."""
        own = self.identity(condition, hidden)
        rest = count - len(own)
        tokens = torch.cat([own, own.new_zeros(rest, *own.shape[1:])])
        scale = torch.cat([own.new_ones(len(own), 1, 1), own.new_zeros(rest, 1, 1)])
        return tokens, scale

    def step(self, count, branch, shown):
        s = self.store
        rows, ids, known, condition, hidden, somebody = self.drawn(count, IDENTITY)
        z, focus = s.z[rows].float(), s.focus[rows].float()
        t, noise, x, c = self.noised(z)
        context = self.net.context(ids)
        e = self.noise_of(x.to(HALF), t, *context, *self.tokens(count, condition, hidden)).float()
        weight_of = 1 + PERSON * focus
        each = ((e - noise).square() * weight_of).mean((1, 2, 3)) / weight_of.mean((1, 2, 3))
        snr = self.snr[t]
        # min-SNR: steps at low noise hardly matter. Those at high noise decide where a face's parts lie, but their error in the
        # noise is small: they count more, up to four times.
        weight = (snr.clamp(max=5.0) / snr).clamp(min=0.05) * (1 + 1 / snr).sqrt().clamp(max=4.0)
        total = (each * weight).mean() / weight.mean()
        shown["diff"] = each.detach().mean()
        estimate = (x - (1 - c).sqrt() * e) / c.sqrt()
        near = (snr > PERCEIVED_BELOW**-2).nonzero()[:, 0]
        with autocast():
            apart = perceived(self.watcher, estimate[near], z[near], weight_of[near])
        total = total + PERCEIVE * apart.sum() / count
        shown["seen"] = apart.detach().mean()
        if branch:
            close = (snr > DECODED_BELOW**-2).nonzero()[:, 0][:branch]
            y, true = self.coder.decode(estimate[close]), s.pictures(rows[close])
            with autocast():
                far = perceived(lambda p: self.faces.embedding(p, s.landmarks[rows[close]]), y, true)
            total = total + DECODE * (far.mean() + 2 * (y - true).abs().mean())
            shown["decoded"] = far.detach().mean()
            lost = self.lost_person(branch, rows, context, condition, hidden, somebody, shown)
            total = total + IDENTIFY * lost
        return total

    def lost_person(self, branch, rows, context, condition, hidden, somebody, shown):
        """L_id: what both recognisers miss of the person in pictures made in four steps, gradient through the last three."""
        s = self.store
        who = somebody.float().argsort(descending=True)[:branch]
        times = [999] + [int(v) for v in np.array([749, 499, 249]) + np.random.randint(-BRANCH_SPREAD, BRANCH_SPREAD + 1, 3)]
        sigmas = [float(SIGMAS[v]) for v in times] + [0.0]
        x = torch.randn(len(who), *s.z.shape[1:], device=DEVICE) * sigmas[0]
        own = self.tokens(len(who), condition[who], [h[who] for h in hidden])
        words = [v[who] for v in context]
        for i, (t, a, b) in enumerate(zip(times, sigmas, sigmas[1:])):
            with torch.set_grad_enabled(i > 0):
                scaled = (x / (a * a + 1) ** 0.5).to(HALF)
                e = self.noise_of(scaled, torch.full((len(x),), t, device=DEVICE), *words, *own).float()
            clean = x - a * e
            x = clean + (b / a) * (x - clean)
        person = s.person[rows[who]]
        with autocast():
            seen, _ = self.watcher(roughened(x))
            with torch.no_grad():  # the person's mean features over other pictures
                others = s.rows[person].flatten()
                mean = self.watcher(s.z[others].float())[0].float().reshape(len(who), -1, seen.shape[1]).mean(1)
                points = self.watcher.landmarks(x.detach()) * 128
            by_latents = 1 - (seen.float() * F.normalize(mean, dim=-1)).sum(-1)
            embedding, _ = self.faces.embedding(self.coder.decode(x), points)
        by_picture = 1 - F.cosine_similarity(embedding, condition[who, :512], dim=-1)
        shown |= {"id latents": by_latents.detach().mean(), "id picture": by_picture.detach().mean()}
        return (by_latents + by_picture).mean() / 2

    def train(self, seconds, count, branch, refresh, lr, decay_from, branch_from, look):
        """All parts together; returns frozen copies of base and adapter with averaged weights."""
        both = torch.nn.ModuleDict({"net": self.net, "adapter": self.adapter}).to(HALF)
        names = {}
        for n, p in both.named_parameters():
            names.setdefault(id(p), (n, p))
        optimizer = Optimizer(names.values(), lr, lr / 2)
        budget, step, shown, last = Budget(seconds), 0, {}, 0
        while not budget.over:
            if step % 40 == 0:
                refresh()
            loss = self.step(count, branch if budget.part >= branch_from and step % BRANCH_EVERY == 0 else 0, shown)
            loss.backward()
            norm = optimizer.step(flat_then_decay(step, budget.part, 60, decay_from))
            step += 1
            if step % 50 == 0 or step in (1, 5, 20):
                said(f"joint step {step} {budget.part:.0%} pictures {self.store.encoded} gradient {float(norm):.2f}", {k: round(float(v), 4) for k, v in shown.items()})
            if look and int(budget.part * 3) > last:
                last = int(budget.part * 3)
                optimizer.use(True)
                look(f"joint_{last}")
                optimizer.use(False)
        both.float()
        optimizer.use(True)
        said(f"joint: {step} steps of {count}, {step * count} pictures")

    # The adapter alone.

    def few_steps(self, noise, words, tokens, align, last):
        """Clean latents of the Lightning-like branch (trailing steps, no guidance), gradient through the `last` steps, and L_align.

        Every step starts from detached latents, so L_align's gradient stays within its step.
        """
        times = trailing_times(4)
        sigmas = [float(SIGMAS[t]) for t in times] + [0.0]
        x = plain = noise * sigmas[0]
        losses = []

        def clean_of(x, s, t, *identity):
            scaled = (x / math.sqrt(s * s + 1)).to(HALF)
            return x - s * self.net(scaled, torch.full((len(x),), t, device=DEVICE), *words, *identity).float()

        for i, (t, s, n) in enumerate(zip(times, sigmas, sigmas[1:])):
            wanted, own = [], []
            if align:
                with torch.no_grad():
                    self.settings.capture = wanted
                    d = clean_of(plain, s, t)
                    plain = d + (n / s) * (plain - d)
            self.settings.capture = own if align else None
            if i < len(times) - last:
                x = x.detach()
            with torch.set_grad_enabled(align or i >= len(times) - last):
                d = clean_of(x, s, t, tokens)
            x = d + (n / s) * (x - d)
            losses += [alignment(q_id.float(), q.float(), k.float()) for (_, q_id, k), (_, q, _) in zip(own, wanted)]
        self.settings.capture = None
        return x, torch.stack(losses).mean(0) if losses else None

    def adapter_step(self, count, branch, align, prompt, shown):
        s = self.store
        rows, ids, known, condition, hidden, somebody = self.drawn(count, 1.0)
        z, focus = s.z[rows].float(), 1 + PERSON * s.focus[rows].float()
        t, noise, x, _ = self.noised(z)
        with torch.no_grad():
            context = self.net.context(ids)
        e = self.net(x.to(HALF), t, *context, self.identity(condition, hidden)).float()
        each = ((e - noise).square() * focus).mean((1, 2, 3)) / focus.mean((1, 2, 3))
        weight = (self.snr[t].clamp(max=5.0) / self.snr[t]).clamp(min=0.05)
        total = (each * weight).mean() / weight.mean()
        who = somebody.float().argsort(descending=True)[:branch]
        start = torch.randn(len(who), *s.z.shape[1:], device=DEVICE)
        tokens = self.identity(condition[who], [h[who] for h in hidden])
        with torch.no_grad():
            fixed = self.net.context(prompt.expand(len(who), -1, -1))
        made, _ = self.few_steps(start, fixed, tokens, False, 2)
        with autocast():
            with torch.no_grad():
                points = self.watcher.landmarks(made.detach()) * 128
            embedding, _ = self.faces.embedding(self.coder.decode(made), points)
        lost = (1 - F.cosine_similarity(embedding, condition[who, :512], dim=-1)).mean()
        total = total + ADAPTER_ID * lost
        shown |= {"diff": each.detach().mean(), "id": lost.detach()}
        if align:
            _, parts = self.few_steps(start, [v[who] for v in context], tokens, True, 1)
            total = total + ALIGN_SEMANTIC * parts[0] + ALIGN_LAYOUT * parts[1]
            shown |= {"semantic": parts[0].detach(), "layout": parts[1].detach()}
        return total

    def train_adapter(self, seconds, count, branch, prompt, lr):
        """L_diff, L_id and L_align on the frozen base, with the identity attention as generation has it."""
        self.net.to(HALF).requires_grad_(False)
        self.adapter.to(HALF)
        for p in self.adapter.parameters():
            p.requires_grad_(True)
        optimizer = Optimizer(self.adapter.named_parameters(), lr, lr, ema=0.98)
        budget, step, shown = Budget(seconds), 0, {}
        while not budget.over:
            self.adapter_step(count, branch, True, prompt, shown).backward()
            optimizer.step(flat_then_decay(step, budget.part, 10, 0.4))
            step += 1
            if step % 20 == 0 or step == 1:
                said(f"adapter step {step} {budget.part:.0%}", {k: round(float(v), 4) for k, v in shown.items()})
        self.adapter.float()
        optimizer.use(True)
        said(f"adapter: {step} steps of {count} and {branch}")


def alignment(q_id, q, k):
    """(L_sem, L_layout) of one layer; q [B,heads,L,d], k [B,heads,T,d]. Mean squares, relative to Q's own mean square,

    so that layers with small activations count as much as those with large ones (the paper leaves this open).
    """
    unit = q.square().mean() + 1e-6
    attend = lambda query: torch.softmax(k @ query.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ query
    return torch.stack([(attend(q_id) - attend(q)).square().mean() / unit, (q_id - q).square().mean() / unit])


def person_sheet(joint, held, prompts, path, people=6, seed=3, guidance=2.4):
    """Rows of held-out people: their photo, then one picture per prompt."""
    rows, shown = [], []
    for person in range(held.people):
        own = held.rows[person]
        photo = own[held.style[own] == 0]
        if len(photo):
            rows.append(photo[0])
        if len(rows) == people:
            break
    if not rows:
        return
    rows = torch.stack(rows)
    ids = prompts.repeat(len(rows), 1, 1)
    with torch.no_grad():
        slot = held.slot[rows]
        own = joint.identity(held.condition[slot], held.hidden[slot].unbind(1)).repeat_interleave(len(prompts), 0)
        none = joint.nobody().expand(len(ids), -1, -1)
        noise = torch.randn(len(ids), *held.z.shape[1:], generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        ortho, joint.settings.ortho = joint.settings.ortho, "v2"
        z = sample(joint.net, ids, joint.empty, noise, guidance=guidance, identity=(own, none))
        plain = sample(joint.net, ids[: len(prompts)], joint.empty, noise[: len(prompts)], guidance=guidance)
        joint.settings.ortho = ortho
        pictures = torch.cat([joint.coder.decode(p) for p in torch.cat([z, plain]).split(64)])
    for i, row in enumerate(rows):
        shown.append(to_u8(torch.cat([held.pictures(row[None]), pictures[i * len(prompts) : (i + 1) * len(prompts)]])))
    blank = np.full((1, 128, 128, 3), 255, np.uint8)
    shown.append(np.concatenate([blank, to_u8(pictures[len(rows) * len(prompts) :])]))
    sheet(np.concatenate(shown), len(prompts) + 1, path)
