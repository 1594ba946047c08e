"""What outlives what: handles, contexts, tensors, threads, processes."""
import ctypes
import gc
import glob
import os
import resource
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from on_device import ATTENTION_DTYPE, NUMPY_DTYPE, context, fulmen, needs_cpu

RNG = np.random.default_rng(3)


def handle(**limits):
    return fulmen.Attention(context(), [fulmen.Group(2, 1)], dtype=ATTENTION_DTYPE, head_dim=16,
                            **{"max_requests": 1, "max_rows": 4, "max_kv_len": 8, **limits})


def attend(att):
    q, k, v = (RNG.standard_normal(s).astype(NUMPY_DTYPE) for s in ((4, 2, 16), (2, 4, 1, 16), (2, 4, 1, 16)))
    att.plan(np.array([0, 4], np.int32), np.array([8], np.int32))
    return att.run(q, k, v, np.array([[1, 0]], np.int32))


def test_a_handle_keeps_its_context():
    att = handle()  # its context has no other name
    gc.collect()
    assert np.isfinite(attend(att)).all()


@needs_cpu
def test_arguments_are_let_go():
    x = np.zeros((2, 8), np.float32)
    gone = weakref.ref(x)
    fulmen.rms_norm(x, np.ones(8, np.float32))
    del x
    assert gone() is None


def test_nothing_leaks():
    def work(n):
        for _ in range(n):
            attend(handle(max_requests=4, max_kv_len=4096))
            try:
                fulmen.rms_norm(np.zeros((1, 4), np.float32), np.zeros(3, np.float32))
            except fulmen.InvalidArgument:
                pass
    work(40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work(200)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "kB for 200 contexts and handles"


def test_contexts_of_several_threads_agree():
    results = [None] * 6

    def work(i):
        own = context(num_threads=1 + i % 3)
        x = np.arange(4096, dtype=np.float32).reshape(8, 512)
        for _ in range(20):
            results[i] = fulmen.softmax(x, context=own)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert all(np.array_equal(r, results[0]) for r in results)


@needs_cpu
def test_fork_after_use():
    want = fulmen.softmax(np.eye(64, dtype=np.float32))
    child = os.fork()
    if child == 0:
        same = np.array_equal(fulmen.softmax(np.eye(64, dtype=np.float32)), want)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_cpu
def test_interpreter_exits_with_live_handles_and_busy_threads():
    code = """
import threading, numpy as np, fulmen
x = np.zeros((64, 512), np.float32)
keep = fulmen.Context("cpu"), fulmen.Attention(fulmen.Context("cpu"), [fulmen.Group(1, 1)], dtype="f32", head_dim=8,
                                               max_requests=1, max_rows=1, max_kv_len=1)
def work():
    while True:
        fulmen.softmax(x, context=keep[0])
threading.Thread(target=work, daemon=True).start()
fulmen.softmax(x)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


@needs_cpu
def test_wrong_device_is_named():
    class OnGpu:  # a tensor that says where it lies
        dtype, shape = np.dtype("float32"), (2, 8)

        def __dlpack_device__(self):
            return (2, 0)

        def __dlpack__(self, **_):
            raise AssertionError("never asked for")
    if glob.glob("/dev/nvidia[0-9]*"):
        pytest.skip("there is a GPU here")
    with pytest.raises(fulmen.FulmenError, match="(?i)cuda"):
        fulmen.rms_norm(OnGpu(), OnGpu(), out=OnGpu())


@needs_cpu
def test_another_gpu_than_the_context_s_is_named():
    class View(ctypes.Structure):  # DLPack's DLManagedTensor
        _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32),
                    ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16), ("shape", ctypes.c_void_p),
                    ("strides", ctypes.c_void_p), ("byte_offset", ctypes.c_uint64), ("context", ctypes.c_void_p),
                    ("deleter", ctypes.c_void_p)]
    shape = (ctypes.c_int64 * 2)(2, 8)
    view = View(0, 2, 3, 2, 2, 32, 1, ctypes.addressof(shape))
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

    class OnFourthGpu:
        dtype, shape = np.dtype("float32"), (2, 8)

        def __dlpack_device__(self):
            return (2, 3)

        def __dlpack__(self, **_):
            return capsule(ctypes.addressof(view), b"dltensor", None)
    x = np.zeros((2, 8), np.float32)
    with pytest.raises(fulmen.InvalidArgument, match="expected device 0, the context's, found cuda:3"):
        fulmen.rms_norm(x, OnFourthGpu(), out=x)


@given(rows=st.integers(1, 6), width=st.integers(1, 40), step=st.sampled_from([1, 2, 3]), flip=st.booleans(),
       dtype=st.sampled_from(["float32", "float16"]))
@settings(max_examples=60, deadline=None)
def test_row_strides_and_refused_inner_strides(rows, width, step, flip, dtype):
    wide = RNG.standard_normal((rows * step, width * 2)).astype(dtype)
    x = wide[::-step if flip else step, :width]
    exact = np.exp(x.astype(np.float64) - x.astype(np.float64).max(1, keepdims=True))
    try:
        got = fulmen.softmax(x)
    except fulmen.InvalidArgument as error:
        assert flip and "stride" in str(error)
    else:
        np.testing.assert_allclose(got, exact / exact.sum(1, keepdims=True), rtol=3e-3 if dtype == "float16" else 1e-5, atol=1e-6)
    if width > 1:
        with pytest.raises(fulmen.InvalidArgument, match="stride"):
            fulmen.softmax(wide[::step, ::2])
