#!/usr/bin/env python3
"""Writes docs/performance.md and docs/plots/*.svg from the committed result files, and from nothing else.

    docs/gpu-results/DATE-GPU-COMMIT.json   runs on real GPUs
    docs/cpu-results/DATE-CPU-COMMIT.json   runs of `make bench`

The newest file that holds a case wins; the caption under each figure names GPU, date and command. The output is
byte-reproducible: the same files give the same page and pictures.
"""
import glob
import json
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GPU_COMMAND = "bench/gpu/bench.py"
CPU_COMMAND = "make bench"
INK, MUTED, FULMEN, PEER = "#1b1f24", "#8c959f", "#c2410c", "#94a3b8"


class Results:
    """Cases of all result files of a folder, the newest of each (op, case) with the file it came from."""

    def __init__(self, folder):
        self.rows, self.files = {}, []
        for path in glob.glob(os.path.join(ROOT, folder, "*.json")):
            with open(path) as file:
                self.files.append((os.path.relpath(path, ROOT), json.load(file)))
        self.files.sort(key=lambda entry: (entry[1]["date"], entry[1].get("time_utc", ""), entry[0]))
        for path, result in self.files:
            for row in result.get("cases", []):
                if "us" in row:
                    self.rows[row["op"], row["case"]] = dict(row, machine=result.get("gpu") or result.get("cpu"),
                                                             date=result["date"], read_gbps=result.get("read_gbps"))

    def of(self, op):
        return {case: row for (o, case), row in self.rows.items() if o == op}

    def ops(self):
        return sorted({op for op, _ in self.rows})


def caption(rows, command):
    machines = sorted({f"{r['machine']}, {r['date']}" for r in rows})
    return f"{'; '.join(machines)}; `{command}`"


# ------------------------------------------------------------------------------------------------ drawing
def new_figure(title, width=7.2, height=3.4):
    import matplotlib
    matplotlib.use("Agg")
    matplotlib.rcParams.update({
        "svg.hashsalt": "fulmen", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED, "axes.labelcolor": INK,
        "xtick.color": INK, "ytick.color": INK, "axes.titlesize": 10.5, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "legend.frameon": False})
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.set_title(title, color=INK)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def save(figure, name):
    import matplotlib.pyplot as plt
    os.makedirs(os.path.join(ROOT, "docs/plots"), exist_ok=True)
    path = os.path.join(ROOT, "docs/plots", name)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return f"plots/{name}"


def bars(axes, labels, series):
    """series: [(name, values or None, colour)]"""
    width = 0.8 / len(series)
    for s, (name, values, colour) in enumerate(series):
        at = [i - 0.4 + width * (s + 0.5) for i, v in enumerate(values) if v is not None]
        axes.bar(at, [v for v in values if v is not None], width * 0.92, label=name, color=colour)
    axes.set_xticks(range(len(labels)), labels)
    if len(series) > 1:
        axes.legend(ncols=len(series), loc="upper left", bbox_to_anchor=(0, 1.0))
    axes.margins(y=0.18)


# ------------------------------------------------------------------------------------------------ the figures
def plot_prefill(gpu):
    rows = gpu.of("attention.prefill")
    if not rows:
        return None
    best = max(rows.values(), key=lambda r: r.get("ratio", 0))
    figure, axes = new_figure(f"Prefill reaches {best['ratio']:.2f} of cuBLAS ({best['case']})")
    for d, style in ((64, ":"), (128, "-"), (256, "--")):
        for kind, colour in (("full", MUTED), ("causal", FULMEN)):
            points = []
            for case, row in rows.items():
                match = re.fullmatch(rf"d{d} {kind} \d+x(\d+)x\d+", case)
                if match and "ratio" in row:
                    points.append((int(match[1]), row["ratio"]))
            if points:
                points.sort()
                axes.plot(*zip(*points), style, color=colour, marker="o", markersize=3, label=f"d{d} {kind}")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens per request (16,384 in all)")
    axes.set_ylabel("share of cuBLAS bf16 8192³")
    axes.set_ylim(0, 1.05)
    axes.legend(ncols=3, fontsize=8)
    return save(figure, "prefill.svg"), caption(rows.values(), GPU_COMMAND + " prefill")


def plot_decode(gpu):
    rows = {c: r for c, r in gpu.of("attention.decode").items() if re.fullmatch(r"\d+x\d+ 32/8 d128", c)}
    if not rows:
        return None
    order = sorted(rows, key=lambda c: int(c.split("x")[0]) * int(re.match(r"\d+x(\d+)", c)[1]))
    best = max(rows.values(), key=lambda r: r["ratio"])
    figure, axes = new_figure(f"Decode streams the cache at {best['ratio']:.2f} of a plain read ({best['case'].split()[0]})")
    bars(axes, [c.split()[0] for c in order], [("Fulmen", [rows[c]["ratio"] for c in order], FULMEN)])
    axes.axhline(1.0, color=INK, linewidth=0.8)
    axes.set_xlabel("requests x cached tokens, 32/8 heads of 128, page 16")
    axes.set_ylabel("KV bytes/s over read probe")
    return save(figure, "decode.svg"), caption(rows.values(), GPU_COMMAND + " decode")


def plot_uneven(gpu):
    rows = gpu.of("attention.uneven")
    if len(rows) < 2:
        return None
    order = [c for c in ("uniform", "one long", "zipf") if any(k.startswith(c) for k in rows)]
    us = [next(r["us"] for k, r in rows.items() if k.startswith(c)) for c in order]
    figure, axes = new_figure(f"Uneven batches cost at most {max(us) / us[0] - 1:+.0%} over uniform", 4.6)
    bars(axes, order, [("Fulmen", us, FULMEN)])
    axes.set_ylabel("microseconds, 262,144 tokens in 64 requests")
    return save(figure, "uneven.svg"), caption(rows.values(), GPU_COMMAND + " uneven")


def plot_gpu_ops(gpu):
    names = [("rms_norm", "8192 tokens"), ("add_rms_norm", "8192 tokens"), ("silu_and_mul", "8192 tokens"),
             ("rope", "8192 tokens"), ("append_kv", "8192 tokens")]
    rows = [(op, gpu.rows.get((op, case))) for op, case in names]
    rows = [(op, r) for op, r in rows if r and "ratio" in r]
    if not rows:
        return None
    figure, axes = new_figure(f"The small ops run at {min(r['ratio'] for _, r in rows):.2f} of a plain read or better", 6)
    bars(axes, [op for op, _ in rows], [("Fulmen", [r["ratio"] for _, r in rows], FULMEN)])
    axes.axhline(1.0, color=INK, linewidth=0.8)
    axes.set_ylabel("bytes/s over read probe, 8192 tokens")
    return save(figure, "gpu_ops.svg"), caption([r for _, r in rows], GPU_COMMAND + " stream_ops")


def plot_cpu(cpu):
    """Every case on one scale: 1 is its bar; beyond 2 the bar is cut. Where the bar is a limit, its inverse is drawn."""
    def score(row):
        return row["bar"] / row["ratio"] if row.get("at_most") else row["ratio"] / row["bar"]
    rows = [(f"{op} {case}", r) for (op, case), r in sorted(cpu.rows.items()) if r.get("ratio") and r.get("bar") is not None]
    if not rows:
        return None
    met = sum(score(r) >= 1 for _, r in rows)
    figure, axes = new_figure(f"CPU: {met} of {len(rows)} cases reach their bar", 7.2, 0.2 * len(rows) + 0.9)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.8)
    axes.barh(range(len(rows)), [min(2, score(r)) for _, r in rows][::-1], 0.7,
              color=[FULMEN if score(r) >= 1 else PEER for _, r in rows][::-1])
    axes.axvline(1.0, color=INK, linewidth=1.2)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows][::-1], fontsize=7)
    axes.set_xlim(0, 2)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel("measured over bar; longer bars are cut at 2")
    return save(figure, "cpu.svg"), caption([r for _, r in rows], CPU_COMMAND)


# ------------------------------------------------------------------------------------------------ the page
def table(results, op):
    rows = results.of(op)
    peers = sorted({p for r in rows.values() for p in r.get("peers", {})})
    unit = "TFLOP/s" if any("tflops" in r for r in rows.values()) else "GB/s"
    lines = [f"### {op}", "", "| case | us | " + unit + " | ratio | bar | " + "".join(f"{p}, us | " for p in peers) + "spread | date |",
             "|---|---|---|---|---|" + "---|" * len(peers) + "---|---|"]
    for case, r in rows.items():
        rate = r.get("tflops", r.get("gbps", ""))
        bar = "" if r.get("bar") is None else r["bar"]
        peer_cells = "".join(f"{r.get('peers', {}).get(p, '')} | " for p in peers)
        lines.append(f"| {case} | {r['us']} | {rate} | {r.get('ratio', '')} | {bar} | {peer_cells}{r.get('spread', '')} | {r['date']} |")
    return lines + [""]


def page():
    gpu, cpu = Results("docs/gpu-results"), Results("docs/cpu-results")
    lines = ["# Performance", "",
             "Generated by `scripts/performance.py` from the files of `docs/gpu-results/` and `docs/cpu-results/`.",
             "A ratio divides by a yardstick measured in the same process: cuBLAS bf16 8192³ (prefill), a plain read of",
             "4 GB (everything bound by memory) on a GPU; the machine's own read, copy or GEMM rate on a CPU.", ""]
    for title, results, plots in (("GPU", gpu, (plot_decode, plot_prefill, plot_uneven, plot_gpu_ops)),
                                  ("CPU", cpu, (plot_cpu,))):
        lines += [f"## {title}", ""]
        if not results.files:
            lines += ["No result file yet.", ""]
            continue
        for plot in plots:
            made = plot(results)
            if made:
                lines += [f"![{made[0]}]({made[0]})", "", f"*{made[1]}*", ""]
        lines += ["| file | machine | yardsticks |", "|---|---|---|"]
        for path, result in results.files:
            yardsticks = ", ".join(f"{k} {result[k]}" for k in ("cublas_tflops", "read_gbps", "copy_gbps", "gemm_gflops")
                                   if result.get(k))
            lines.append(f"| `{path}` | {result.get('gpu') or result.get('cpu')} | {yardsticks} |")
        lines.append("")
        for op in results.ops():
            lines += table(results, op)
    return "\n".join(lines).rstrip() + "\n"


def main():
    target = os.path.join(ROOT, "docs/performance.md")
    text = page()
    if "--check" in sys.argv:
        current = open(target).read() if os.path.exists(target) else ""
        sys.exit("docs/performance.md is stale: run scripts/performance.py" if current != text else 0)
    with open(target, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main()
