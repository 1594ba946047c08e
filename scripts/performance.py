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


def plot_roofline(gpu):
    """Prefill of d128 over cuBLAS, decode over the read probe, by tokens of a request."""
    series = []
    for label, op, pattern, style, colour in (
            ("prefill full", "attention.prefill", r"d128 full \d+x(\d+)x\d+", "-", MUTED),
            ("prefill causal", "attention.prefill", r"d128 causal \d+x(\d+)x\d+", "--", MUTED),
            ("decode, 1 request", "attention.decode", r"1x(\d+) 32/8 d128", "-", FULMEN),
            ("decode, 64 requests", "attention.decode", r"64x(\d+) 32/8 d128", "--", FULMEN)):
        rows = [(int(m[1]), r) for c, r in gpu.of(op).items() if "ratio" in r and (m := re.fullmatch(pattern, c))]
        if rows:
            series.append((label, sorted(rows, key=lambda row: row[0]), style, colour))
    if not series:
        return None
    figure, axes = new_figure("Share of the machine's limit against length, head size 128")
    for label, rows, style, colour in series:
        axes.plot([n for n, _ in rows], [r["ratio"] for _, r in rows], style, color=colour, marker="o", markersize=3, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens of a request")
    axes.set_ylabel("over cuBLAS (prefill), read probe (decode)")
    axes.set_ylim(0, 1.05)
    axes.legend(ncols=2, fontsize=8)
    return save(figure, "roofline.svg"), caption([r for _, rows, *_ in series for _, r in rows], GPU_COMMAND + " prefill decode")


def plot_batch(gpu):
    rows = {**gpu.of("attention.decode"), **gpu.of("attention.decode.batch")}
    figure, axes, shown = None, None, []
    for length, colour in ((1024, MUTED), (4096, FULMEN)):
        points = sorted((int(m[1]), r) for c, r in rows.items() if (m := re.fullmatch(rf"(\d+)x{length} 32/8 d128", c)) and "gbps" in r)
        if len(points) < 2:
            continue
        if figure is None:
            figure, axes = new_figure("Decode bandwidth against batch")
        axes.plot([b for b, _ in points], [r["gbps"] for _, r in points], color=colour, marker="o", markersize=3, label=f"{length:,} tokens each")
        shown += [r for _, r in points]
    if figure is None:
        return None
    axes.axhline(shown[-1]["read_gbps"], color=INK, linewidth=0.8, label="plain read of 4 GB")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("requests, 32/8 heads of 128, page 16")
    axes.set_ylabel("GB/s of keys and values")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return save(figure, "decode_batch.svg"), caption(shown, GPU_COMMAND + " decode batch")


def plot_first_call(gpu):
    """FlashInfer's times are those recorded with the rows: 16 cores, from its sources."""
    marks, rows = [], gpu.of("first_call")
    for case, row in rows.items():
        name = case.split(",")[0]
        theirs = next((us for peer, us in row.get("peers", {}).items() if peer.startswith("flashinfer")), None)
        disk = next((r for c, r in rows.items() if c.startswith(f"{name}, from disk")), None)
        if theirs:
            marks += [(f"{name}: FlashInfer", theirs, PEER), (f"{name}: Fulmen, cold", row["us"], FULMEN)]
            marks += [(f"{name}: Fulmen, from disk", disk["us"], FULMEN)] if disk else []
    if not marks:
        return None
    figure, axes = new_figure("What comes before the first result", 7.2, 0.4 * len(marks) + 1.0)
    axes.grid(axis="y", visible=False)
    axes.barh(range(len(marks)), [us / 1e6 for _, us, _ in marks][::-1], 0.7, color=[colour for *_, colour in marks][::-1])
    for i, (_, us, _) in enumerate(reversed(marks)):
        axes.text(us / 1e6 * 1.1, i, f"{us / 1e6:.3g} s", va="center", fontsize=8, color=INK)
    axes.set_xscale("log")
    axes.set_xlim(1e-4, 10 * max(us for _, us, _ in marks) / 1e6)
    axes.set_yticks(range(len(marks)), [name for name, *_ in marks][::-1])
    axes.set_xlabel("seconds")
    return save(figure, "first_call.svg"), caption([r for r in rows.values()], "bench/gpu/first_call.py")


def worker_shares(schedule):
    """-> for each worker a list of (request, share of a worker's load). Worker w has the units from w C / W on, up to (w + 1) C / W, of the line on
    which the requests lie one after another, each head by head; all units cost the same, since each request has one row a head."""
    units = [schedule["kv_heads"] * -(-n // schedule["unit_keys"]) for n in schedule["lengths"]]
    total, workers = sum(units), schedule["workers"]
    shares, request, at, used = [], 0, 0, 0
    for w in range(workers):
        end, mine = -(-(w + 1) * total // workers), []
        while at < end:
            take = min(end - at, units[request] - used)
            if take:
                mine.append((request, take * workers / total))
            at, used = at + take, used + take
            if used == units[request]:
                request, used = request + 1, 0
        shares.append(mine)
    return shares


def plot_schedule(gpu):
    rows = [(c, r) for c, r in gpu.of("attention.uneven").items() if "schedule" in r and not c.startswith("uniform")]
    if not rows:
        return None
    case, row = next(((c, r) for c, r in rows if c.startswith("zipf")), rows[0])
    schedule = row["schedule"]
    figure, axes = new_figure(f"An uneven batch over {schedule['workers']} blocks: {case.split(' 64')[0]} lengths, equal shares")
    lengths = schedule["lengths"]
    shades = {r: 0.15 + 0.8 * i / max(1, len(lengths) - 1) for i, r in enumerate(sorted(range(len(lengths)), key=lambda r: lengths[r]))}
    import matplotlib
    colours = matplotlib.colormaps["YlOrBr"]
    for w, mine in enumerate(worker_shares(schedule)):
        bottom = 0
        for request, share in mine:
            axes.bar(w, share, 1.0, bottom=bottom, color=colours(shades[request]), edgecolor="white", linewidth=0.3)
            bottom += share
    axes.set_xlim(-0.7, schedule["workers"] - 0.3)
    axes.set_xlabel(f"block; a colour is a request, the darker the longer ({min(lengths):,} to {max(lengths):,} tokens)")
    axes.set_ylabel("load over the mean")
    return save(figure, "schedule.svg"), caption([row], GPU_COMMAND + " uneven")


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
    for title, results, plots in (("GPU", gpu, (plot_roofline, plot_decode, plot_batch, plot_prefill, plot_uneven, plot_schedule, plot_gpu_ops,
                                                  plot_first_call)),
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
