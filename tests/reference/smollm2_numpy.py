#!/usr/bin/env python3
"""Forward pass of SmolLM2-135M-Instruct in numpy, fp32: what the engine's tests compare with.

Plainly written, shares no code with the engine: the GGUF is read by PyPI's `gguf`, the prompts are cut into
tokens by a few lines below that know ASCII only. Written again with

    python3 -m venv /tmp/reference && /tmp/reference/bin/pip install gguf==0.19.0 numpy==2.4.6
    /tmp/reference/bin/python tests/reference/smollm2_numpy.py .fulmen/model/smollm2-135m-instruct.gguf \\
        tests/data/smollm2_golden.json

(under a minute on 2 cores; --quick does one prompt of each kind and prints instead of writing).

The file written, all numbers of fp32 with 7 digits:
    model_sha256        of the GGUF
    vocab_ids[V]        the vocabulary positions whose logits are kept: every 96th, 512 in all
    prefill[8]          prompts of exactly 64 tokens, run in one pass
      tokens[64]
      positions[P]      of the prompt whose logits are kept; the last is 63
      logits[P][V]      at vocab_ids
      min[P], max[P]    over the whole vocabulary; max - min is the range that errors are measured by
      argmax[64]        best next token at every position (lowest id of equals)
      gap[64]           its logit less the second best one
    greedy[8]           prompts continued by 64 tokens, always the best; the end of text does not end it
      text              what the tokens say, special tokens by name: encode with parse_special
      prompt_tokens[]
      tokens[64]
      gap[64]           best less second best logit at each step: where it is at most 1e-3 another choice is as
                        right, and from there on the rest can't be compared
"""
import hashlib
import json
import re
import sys

import numpy as np
from gguf import GGUFReader, dequantize

SYSTEM = ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n")

CHAT = [
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about the sea.",
    "List three uses of a paper clip.",
    "What is 17 + 25? Show the steps.",
    "Write a Python function that returns the n-th Fibonacci number.",
]
PLAIN = [
    "The history of the steam engine begins in the first century, when",
    "def quicksort(items):\n    if len(items) < 2:\n        return items\n",
]

LONG = [
    "A library is a place where books are kept, but it is also a place where people meet. In many towns the library is "
    "the only building that is open to everyone, costs nothing to enter, and asks no questions. Children do their homework "
    "there, old people read the newspapers, and in winter it is warm. The books themselves are only one part of it.",
    "To make bread you need flour, water, salt and yeast. Mix the flour with the water and let it rest for half an hour; "
    "then add the salt and the yeast and knead it until the dough is smooth. Let it rise in a warm place until it has "
    "doubled in size, shape it into a loaf, let it rise once more, and bake it in a hot oven for forty minutes.",
    "for (int i = 0; i < n; ++i) {\n  for (int j = 0; j < n; ++j) {\n    float sum = 0.0f;\n    for (int k = 0; k < n; ++k) {\n"
    "      sum += a[i * n + k] * b[k * n + j];\n    }\n    c[i * n + j] = sum;\n  }\n}\n// The loop order matters for the cache.\n",
    "On 12 April 1961 Yuri Gagarin flew once around the Earth in 108 minutes. On 20 July 1969 Neil Armstrong and Buzz Aldrin "
    "walked on the Moon for 2 hours and 31 minutes, while Michael Collins stayed in orbit. They had travelled about 384,400 km "
    "in a little more than 3 days; the computer on board had about 4 KB of memory that could be written.",
    "Dear Sir or Madam,\n\nI am writing to complain about the washing machine (model WM-2000) that I bought from your shop on "
    "Monday. It makes a loud noise, it doesn't drain, and the door can't be opened after a cycle.\n\nI'd like to have it repaired "
    "or replaced within two weeks.\n\nYours faithfully,\nA. Customer\n",
    SYSTEM + "<|im_start|>user\nCan you tell me how plants make sugar from light? I'm ten years old, so please keep it simple, "
    "and use an example from the garden.<|im_end|>\n<|im_start|>assistant\nOf course! Imagine a tiny kitchen inside every leaf.",
    "{\"name\": \"widget\", \"price\": 12.5, \"tags\": [\"small\", \"blue\"], \"stock\": {\"berlin\": 4, \"paris\": 17}}\n"
    "{\"name\": \"gadget\", \"price\": 99.0, \"tags\": [], \"stock\": {\"berlin\": 0, \"paris\": 2}}\n"
    "{\"name\": \"gizmo\", \"price\": 3.75, \"tags\": [\"red\"], \"stock\": {}}\n",
    "Question: A train leaves the station at nine o'clock and travels at sixty miles per hour. Another train leaves the same "
    "station an hour later and travels at ninety miles per hour in the same direction. When does the second train catch up "
    "with the first one, and how far from the station are they then?\nAnswer: The first train",
]


class Tokenizer:
    """ASCII text to tokens: special names, then words, then merges by rank."""

    def __init__(self, fields):
        self.tokens = fields["tokenizer.ggml.tokens"].contents()
        types = fields["tokenizer.ggml.token_type"].contents()
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        self.ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(fields["tokenizer.ggml.merges"].contents())}
        names = [token for token, kind in zip(self.tokens, types) if kind == 3]
        self.special = re.compile("(" + "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) + ")")
        self.word = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s+(?![^\s0-9])|\s+")

    def encode(self, text):
        assert text.isascii()
        out = []
        for part in self.special.split(text):
            if self.special.fullmatch(part):
                out.append(self.ids[part])
                continue
            for word in self.word.findall(part):
                out += [self.ids[token] for token in self.merge(word)]
        return out

    def merge(self, word):
        pieces = [c if "!" <= c <= "~" else chr(256 + ord(c)) for c in word]  # space, tab, line break
        while len(pieces) > 1:
            ranks = [self.ranks.get(pair, 1 << 30) for pair in zip(pieces, pieces[1:])]
            best = min(ranks)
            if best == 1 << 30:
                break
            i = ranks.index(best)
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
        return pieces


class Model:
    def __init__(self, reader):
        field = lambda key: reader.fields["llama." + key].contents()
        self.layers = field("block_count")
        self.heads = field("attention.head_count")
        self.kv_heads = field("attention.head_count_kv")
        self.epsilon = np.float32(field("attention.layer_norm_rms_epsilon"))
        self.head_dim = field("embedding_length") // self.heads
        self.theta = field("rope.freq_base")
        self.weights = {t.name: dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}

    def rms_norm(self, x, name):
        scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return x * scale * self.weights[name]

    def rope(self, x, start):
        """x[token, head, dim]; llama GGUFs hold q and k permuted so that neighbouring elements are a pair."""
        pairs = self.head_dim // 2
        frequency = self.theta ** (-np.arange(pairs, dtype=np.float64) * 2 / self.head_dim)
        angle = (start + np.arange(len(x)))[:, None] * frequency
        cos, sin = (f(angle).astype(np.float32)[:, None, :] for f in (np.cos, np.sin))
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2] = even * cos - odd * sin
        out[..., 1::2] = even * sin + odd * cos
        return out

    def attention(self, x, layer, cache):
        tokens = len(x)
        project = lambda what, heads: (x @ self.weights[f"blk.{layer}.attn_{what}.weight"].T).reshape(tokens, heads, self.head_dim)
        start = 0 if cache[layer] is None else len(cache[layer][0])
        q, k, v = self.rope(project("q", self.heads), start), self.rope(project("k", self.kv_heads), start), project("v", self.kv_heads)
        if cache[layer] is not None:
            k, v = (np.concatenate(pair) for pair in zip(cache[layer], (k, v)))
        cache[layer] = (k, v)
        group = self.heads // self.kv_heads
        out = np.empty((tokens, self.heads, self.head_dim), np.float32)
        visible = np.arange(len(k))[None, :] <= start + np.arange(tokens)[:, None]
        for head in range(self.heads):
            scores = q[:, head] @ k[:, head // group].T / np.float32(np.sqrt(self.head_dim))
            scores = np.where(visible, scores, np.float32(-np.inf))
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[:, head] = weights @ v[:, head // group] / weights.sum(axis=-1, keepdims=True)
        return out.reshape(tokens, -1) @ self.weights[f"blk.{layer}.attn_output.weight"].T

    def mlp(self, x, layer):
        weight = lambda what: self.weights[f"blk.{layer}.ffn_{what}.weight"].T
        gate = x @ weight("gate")
        return (gate / (1 + np.exp(-gate)) * (x @ weight("up"))) @ weight("down")

    def forward(self, tokens, cache):
        """Logits [token, vocabulary] of tokens that follow those in the cache."""
        embedding = self.weights["token_embd.weight"]
        x = embedding[tokens]
        for layer in range(self.layers):
            x = x + self.attention(self.rms_norm(x, f"blk.{layer}.attn_norm.weight"), layer, cache)
            x = x + self.mlp(self.rms_norm(x, f"blk.{layer}.ffn_norm.weight"), layer)
        return self.rms_norm(x, "output_norm.weight") @ embedding.T  # the output matrix is the embedding

    def empty_cache(self):
        return [None] * self.layers


def best_and_gap(logits):
    best = int(np.argmax(logits))
    return best, float(logits[best] - np.delete(logits, best).max())


def short(values):
    return [float(f"{float(v):.7g}") for v in values]


def prefill_case(model, tokens, vocab_ids):
    logits = model.forward(tokens, model.empty_cache())
    positions = [0, 21, 42, 63]
    best = [best_and_gap(row) for row in logits]
    return {
        "tokens": tokens,
        "positions": positions,
        "logits": [short(logits[p][vocab_ids]) for p in positions],
        "min": short(logits[p].min() for p in positions),
        "max": short(logits[p].max() for p in positions),
        "argmax": [b for b, _ in best],
        "gap": short(g for _, g in best),
    }


def greedy_case(model, text, prompt, count=64):
    cache = model.empty_cache()
    tokens, gaps = [], []
    feed = prompt
    while len(tokens) < count:
        best, gap = best_and_gap(model.forward(feed, cache)[-1])
        tokens.append(best)
        gaps.append(gap)
        feed = [best]
    return {"text": text, "prompt_tokens": prompt, "tokens": tokens, "gap": short(gaps)}


def main(path, output):
    reader = GGUFReader(path)
    tokenizer, model = Tokenizer(reader.fields), Model(reader)
    vocab_ids = list(range(0, 49152, 96))
    texts = [SYSTEM + f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n" for q in CHAT] + PLAIN
    longs = LONG
    if output == "--quick":
        texts, longs = texts[:1], longs[:1]
    prefill = []
    for text in longs:
        tokens = tokenizer.encode(text)[:64]
        assert len(tokens) == 64, f"{len(tokens)} tokens: {text[:40]}"
        prefill.append(prefill_case(model, tokens, vocab_ids))
    greedy = [greedy_case(model, text, tokenizer.encode(text)) for text in texts]
    if output == "--quick":
        show = lambda tokens: "".join(tokenizer.tokens[t] for t in tokens).replace("\u0120", " ").replace("\u010a", "\n")
        print(greedy[0], show(greedy[0]["tokens"]), prefill[0]["gap"], sep="\n")
        return
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    golden = {"model_sha256": digest, "vocab_ids": vocab_ids, "prefill": prefill, "greedy": greedy}
    with open(output, "w") as file:
        file.write(re.sub(r"(?<=\d), ", ",", json.dumps(golden, indent=None)).replace(', "', ',\n"') + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:3])
