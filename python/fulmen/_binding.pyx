# cython: language_level=3, binding=False, embedsignature=True
"""The binding: tensors and arguments in, the C ABI called, errors out. Names and defaults stand in ops.py."""
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

include "_c.pxi"
include "_tensors.pxi"
include "_attention.pxi"
include "_ops.pxi"
include "_prepare.pxi"
