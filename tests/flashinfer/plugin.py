"""The pytest plugin of run.py: upstream's tests see fulmen.flashinfer, every call is compared with the oracle, cases
are chosen, and each one's outcome becomes a line of JSON. Its configuration is the JSON in FULMEN_FLASHINFER_RUN."""
import json
import os
import random
import re
import signal
import time
from collections import Counter

import pytest
import torch

import cases
from oracle import Oracle

CONFIG = json.loads(os.environ["FULMEN_FLASHINFER_RUN"])
ON_CPU = CONFIG["device"] == "cpu"
DEADLINE = time.time() + CONFIG["seconds"] if CONFIG.get("seconds") else None
CASE_SECONDS = CONFIG.get("case_seconds", 60)
KEEP_BYTES = 1 << 30
NO_MEMORY = "out of the GPU's memory"

import fulmen.flashinfer  # noqa: E402

fulmen.flashinfer.install()
if ON_CPU:
    import on_cpu
    on_cpu.install()
oracle = Oracle(CONFIG.get("mutant"))
import oracle_attention  # noqa: E402
import oracle_ops  # noqa: E402

oracle_attention.install(oracle)
oracle_ops.install(oracle)

collected, left_out, chosen, generated = 0, Counter(), 0, set()
done = set()
if CONFIG.get("resume") and os.path.exists(CONFIG["out"]):
    with open(CONFIG["out"]) as lines:
        done = {case.get("id") for case in map(json.loads, lines) if case.get("reason") != NO_MEMORY}
out = open(CONFIG["out"], "a" if done else "w", buffering=1)


def write(**line):
    out.write(json.dumps(line) + "\n")


class TooSlow(Exception):
    """A case beyond its time."""


# ------------------------------------------------------------------------------------------ which cases
def too_large_for_a_cpu(name, params):
    rows = max([v for k, v in params.items() if k in ("batch_size", "num_rows") and isinstance(v, int)], default=1)
    width = max([v for k, v in params.items() if k in ("vocab_size", "hidden_size", "dim", "max_len") and isinstance(v, int)], default=1)
    return ON_CPU and (rows * width > 4e6 or ("freq" in name and width > 1000) or ("trail" in name))


def reason_to_leave_out(name, params):
    return cases.excluded(name, params) or ("too large for a dry run" if too_large_for_a_cpu(name, params) else None)


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc):
    """Leaves out and samples before items are made: some files have a hundred thousand cases."""
    global collected
    calls = metafunc._calls
    if not calls:
        return
    generated.add(metafunc.definition.nodeid)
    collected += len(calls)
    kept = []
    for call in calls:
        reason = reason_to_leave_out(metafunc.function.__name__, call.params)
        if reason:
            left_out[reason] += 1
        else:
            kept.append(call)
    most = CONFIG.get("per_test")
    if most and len(kept) > most:
        kept = random.Random(CONFIG["seed"]).sample(kept, most)
    if not kept:  # pytest would make one case without parameters
        kept = calls[:1]
        kept[0].marks.append(pytest.mark.left_out)
    metafunc._calls[:] = kept


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    global collected, chosen
    keep = []
    for item in items:
        name = getattr(item, "originalname", None) or item.name
        if item.get_closest_marker("left_out") is not None:
            continue
        if getattr(item, "callspec", None) is None:
            collected += 1
            reason = reason_to_leave_out(name, {})
            if reason:
                left_out[reason] += 1
                continue
        keep.append(item)
    chosen = len(keep)
    keep = [item for item in keep if item.nodeid not in done]
    random.Random(CONFIG["seed"]).shuffle(keep)
    items[:] = keep
    write(collected=collected, left_out=dict(left_out), chosen=chosen)


# ------------------------------------------------------------------------------------------ one case
def _alarm(number, frame):
    raise TooSlow(f"took more than {CASE_SECONDS} s")


signal.signal(signal.SIGALRM, _alarm)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    if DEADLINE is not None and time.time() > DEADLINE:
        item.session.shouldstop = "out of time"
        return True  # nothing else runs for this item
    oracle.begin()
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    signal.alarm(CASE_SECONDS)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        if torch.cuda.is_initialized() and torch.cuda.memory_reserved() > KEEP_BYTES:
            torch.cuda.empty_cache()  # other files run beside this one


def _ran_out_of_memory(error):
    """Also in a comparison, which reports it as an error of its own."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


def _reason(error):
    text = str(error).strip() or type(error).__name__
    if isinstance(error, AssertionError):
        wrong = re.search(r"Mismatched elements.*", text)
        text = wrong.group(0) if wrong else text.splitlines()[0]
    else:
        text = f"{type(error).__name__}: {text.splitlines()[0]}"
    return re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?(e-?\d+)?", "N", text)[:160]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    error = call.excinfo.value if call.excinfo is not None else None
    line = {"id": item.nodeid, "compared": oracle.compared, "seconds": round(call.duration, 3)}
    if ON_CPU and error is not None and type(error).__name__ == "DryRunSkip":
        report.outcome, report.longrepr = "skipped", ("", 0, f"only on a GPU: {error}")
    if _ran_out_of_memory(error):  # the GPU is shared with the other files
        report.outcome, report.longrepr = "skipped", ("", 0, NO_MEMORY)
    if isinstance(error, TooSlow):
        report.outcome, report.longrepr = "skipped", ("", 0, str(error))
    if report.skipped:
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(error)
        write(**line, outcome="skipped", reason=str(text).removeprefix("Skipped: ")[:160])
    elif call.when == "call" or report.failed:
        if report.failed:
            write(**line, outcome="failed", by="upstream", reason=_reason(error))
        elif oracle.faults:
            report.outcome, report.longrepr = "failed", "\n".join(oracle.faults)
            write(**line, outcome="failed", by="oracle", reason="; ".join(oracle.faults)[:300])
        else:
            write(**line, outcome="passed")
    return report


def pytest_sessionfinish(session, exitstatus):
    write(status=fulmen.flashinfer.status(), wrapped=oracle.wrapped, torch=torch.__version__)
