"""Files and folders that may not be read, also for root."""

import ctypes
import os
import sys
from contextlib import contextmanager

VERSION = 0x20080522  # of the structures of capget(2)
OVERRIDES = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@contextmanager
def forbid(path):
    """Take all permissions for a file or folder away while the block runs.

    Root, for whom they do not count, gives up the capabilities that make it so, for as long.
    """
    before = path.stat().st_mode
    path.chmod(0)
    try:
        with _obeying_permissions():
            yield
    finally:
        path.chmod(before)


@contextmanager
def _obeying_permissions():
    if not sys.platform.startswith('linux') or os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()  # data[0]: the effective ones, 0 to 31
    assert libc.capget(header, data) == 0
    effective = data[0]
    data[0] &= ~OVERRIDES
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0] = effective
        assert libc.capset(header, data) == 0
