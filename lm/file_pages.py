"""Giving back the memory of weights that lie in a mapped file, while a model is loaded.

safetensors maps a file: the system reads each part of it when it is first used. Once a weight has been stored in
another way (matrices.py), its part of the file is not needed any more, but stays in memory as long as the file is
mapped. So the whole model would be in memory twice. On Linux the system can be told; elsewhere nothing is done.
"""

import bisect
import ctypes
import mmap
import sys

AT_A_TIME = 2**26  # bytes after which `page_out_read` acts
PAGE_OUT = 21  # MADV_PAGEOUT of Linux 5.4: unlike MADV_DONTNEED, it never loses anything


def page_out(tensors):
    """Give back the memory of those tensors that lie in a mapped file; they can still be read, from the file."""
    if not sys.platform.startswith('linux'):
        return
    try:
        advise, mapped = ctypes.CDLL(None).madvise, _mapped_files()
    except (AttributeError, OSError, ValueError):
        return
    for tensor in tensors:
        start, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        place = bisect.bisect(mapped, (start, sys.maxsize)) - 1
        if place < 0 or start + size > mapped[place][1]:
            continue  # ordinary memory, which is free when nothing refers to it
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages: others share the first and the last
        last = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), PAGE_OUT)


def page_out_read(tensors):
    """Yield (name, tensor) one after the other, and give back the memory of those that were read before.

    tensors: {name: tensor}.
    """
    read, size = [], 0
    for name, tensor in tensors.items():
        yield name, tensor
        read.append(tensor)
        size += tensor.nbytes
        if size > AT_A_TIME:
            page_out(read)
            read, size = [], 0
    page_out(read)


def _mapped_files():
    """Return [(start, end)] of the addresses at which files are mapped, in order."""
    found = []
    with open('/proc/self/maps', encoding='utf-8', errors='replace') as file:
        for line in file:
            addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
            if inode != '0':
                start, _, end = addresses.partition('-')
                found.append((int(start, 16), int(end, 16)))
    return sorted(found)
