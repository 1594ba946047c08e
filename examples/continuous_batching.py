#!/usr/bin/env python3
"""Continuous batching with Fulmen in 150 lines: a small random transformer, paged KV cache, requests that come and go.

numpy on the CPU, torch on a GPU: `continuous_batching.py [cpu|cuda]`. Each request's tokens are those it gets alone.
"""
import sys

import fulmen

VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, DIM, FFN = 97, 64, 2, 4, 2, 16, 96
PAGE, PAGES, MAX_BATCH, MAX_ROWS, MAX_LEN, CHUNK = 4, 48, 6, 24, 64, 8


class Arrays:
    """The few array functions that the model needs, from numpy or torch."""

    def __init__(self, device):
        self.device = device
        if device == "cuda":
            import torch
            self.torch = torch
            self.ints = lambda values: torch.tensor(values, dtype=torch.int32, device=device)
            self.longs = lambda values: torch.tensor(values, dtype=torch.int64, device=device)
            self.floats = lambda values: torch.tensor(values, dtype=torch.float32, device=device)
            self.zeros = lambda *shape: torch.zeros(shape, device=device)
            self.host = lambda x: x.cpu().numpy()
        else:
            import numpy
            self.ints = lambda values: numpy.array(values, numpy.int32)
            self.longs = lambda values: numpy.array(values, numpy.int64)
            self.floats = lambda values: numpy.array(values, numpy.float32)
            self.zeros = lambda *shape: numpy.zeros(shape, numpy.float32)
            self.host = lambda x: x

    def weights(self, shape, seed):
        import numpy
        w = (numpy.random.default_rng(seed).standard_normal(shape) / shape[0] ** 0.5).astype(numpy.float32)
        return self.torch.from_numpy(w).to(self.device) if self.device == "cuda" else w


class Model:
    def __init__(self, xp):
        self.embedding = xp.weights((VOCAB, HIDDEN), 0) * HIDDEN**0.5
        self.norm = xp.zeros(HIDDEN) + 1
        width = (HEADS + 2 * KV_HEADS) * DIM
        self.layers = [{"qkv": xp.weights((HIDDEN, width), 5 * i + 1), "o": xp.weights((HEADS * DIM, HIDDEN), 5 * i + 2),
                        "gate_up": xp.weights((HIDDEN, 2 * FFN), 5 * i + 3), "down": xp.weights((FFN, HIDDEN), 5 * i + 4)}
                       for i in range(LAYERS)]

    def forward(self, tokens, positions, step, cache, attention):
        """Hidden states of all rows of a step; every layer appends its keys, then attends."""
        x = self.embedding[tokens]
        residual = x * 0
        for layer, (k_cache, v_cache) in zip(self.layers, cache):
            h = fulmen.add_rms_norm(x, residual, self.norm)  # residual += x
            qkv = (h @ layer["qkv"]).reshape(len(h), HEADS + 2 * KV_HEADS, DIM)
            q, k, v = qkv[:, :HEADS], qkv[:, HEADS:HEADS + KV_HEADS], qkv[:, HEADS + KV_HEADS:]
            fulmen.rope(q, k, positions=positions)
            fulmen.append_kv(k, v, k_cache, v_cache, qo_indptr=step["qo_indptr"], kv_len=step["kv_len"], table=step["table"])
            o = attention.run(q, k_cache, v_cache, step["table"])
            h = fulmen.add_rms_norm(o.reshape(len(h), -1) @ layer["o"], residual, self.norm)
            x = fulmen.silu_and_mul(h @ layer["gate_up"]) @ layer["down"]
        return fulmen.add_rms_norm(x, residual, self.norm)


class Request:
    def __init__(self, prompt, max_tokens, seed=0, temperature=0.0):
        self.tokens, self.prompt_len, self.max_len = list(prompt), len(prompt), len(prompt) + max_tokens
        self.seed, self.temperature, self.done, self.pages = seed, temperature, 0, []  # done: tokens in the cache


class Server:
    """Admits requests while pages last, gives each step up to CHUNK tokens of a prompt or one token of an answer."""

    def __init__(self, device="cpu"):
        self.xp = xp = Arrays(device)
        self.model, self.free = Model(xp), list(range(PAGES))
        self.cache = [(xp.zeros(PAGES, PAGE, KV_HEADS, DIM), xp.zeros(PAGES, PAGE, KV_HEADS, DIM)) for _ in range(LAYERS)]
        self.attention = fulmen.Attention(fulmen.Context(device), [fulmen.Group(HEADS, KV_HEADS)],
                                          dtype="f32" if device == "cpu" else "bf16", head_dim=DIM, max_requests=MAX_BATCH,
                                          max_rows=MAX_ROWS, max_qo_len=CHUNK, max_kv_len=MAX_LEN)
        if device == "cuda":  # attention on the GPU is 16-bit
            bf16 = xp.torch.bfloat16
            self.model.embedding, self.model.norm = self.model.embedding.to(bf16), self.model.norm.to(bf16)
            self.model.layers = [{n: w.to(bf16) for n, w in layer.items()} for layer in self.model.layers]
            self.cache = [(k.to(bf16), v.to(bf16)) for k, v in self.cache]
        self.waiting, self.running, self.steps = [], [], 0

    def submit(self, request):
        self.waiting.append(request)
        return request

    def _admit(self):
        while self.waiting and len(self.running) < MAX_BATCH:
            needed = -(-self.waiting[0].max_len // PAGE)  # all that it may ever need: nothing is preempted
            if needed > len(self.free):
                return
            request = self.waiting.pop(0)
            request.pages = [self.free.pop() for _ in range(needed)]
            self.running.append(request)

    def step(self):
        """One step of the batch. False when nothing is left to do."""
        self._admit()
        if not self.running:
            return False
        rows, batch = MAX_ROWS, []
        for request in self.running:
            count = min(CHUNK, len(request.tokens) - request.done, rows)
            if count > 0:
                batch.append((request, count))
                rows -= count
        tokens = [t for r, n in batch for t in r.tokens[r.done:r.done + n]]
        positions = [p for r, n in batch for p in range(r.done, r.done + n)]
        indptr = [0]
        for _, n in batch:
            indptr.append(indptr[-1] + n)
        width, ints = max(len(r.pages) for r, _ in batch), self.xp.ints
        step = {"qo_indptr": ints(indptr), "kv_len": ints([r.done + n for r, n in batch]),
                "table": ints([r.pages + [0] * (width - len(r.pages)) for r, _ in batch])}
        self.attention.plan(step["qo_indptr"], step["kv_len"])
        hidden = self.model.forward(ints(tokens), ints(positions), step, self.cache, self.attention)
        last = hidden[ints([i - 1 for i in indptr[1:]])]
        drawn = self.xp.host(fulmen.sample(last @ self.model.embedding.T,
                                           temperature=self.xp.floats([r.temperature for r, _ in batch]),
                                           seed=self.xp.longs([r.seed for r, _ in batch]),
                                           offset=self.xp.longs([len(r.tokens) for r, _ in batch])))
        for (request, n), token in zip(batch, drawn):
            request.done += n
            if request.done == len(request.tokens):  # else its prompt goes on
                request.tokens.append(int(token))
            if len(request.tokens) >= request.max_len:
                self.free += request.pages
                self.running.remove(request)
        self.steps += 1
        return True


def main(device="cpu"):
    server = Server(device)
    requests = [server.submit(Request(range(1, 4 + 5 * i), 6 + i, seed=i, temperature=0.8 * (i % 2))) for i in range(8)]
    while server.step():
        print(f"step {server.steps:3}: {len(server.running)} running, {len(server.waiting)} waiting, {len(server.free)} pages free")
    for i, request in enumerate(requests):
        print(f"request {i}: {request.tokens[request.prompt_len:]}")
    return requests


if __name__ == "__main__":
    main(*sys.argv[1:])
