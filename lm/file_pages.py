"""Giving back the memory of weights that lie in a mapped file, while a model is loaded.

safetensors maps a file: the system reads each part of it when it is first used. Once a weight has been stored in
another way (matrices.py), its part of the file is not needed any more, but stays in memory as long as the file is
mapped. So the whole model would be in memory twice. On Linux the system can be told; elsewhere nothing is done.

What is given back is read from the file again when it is used again. So the weights must still be as in the file.
"""

import bisect
import ctypes
import mmap
import sys

AT_A_TIME = 2**26  # bytes after which `page_out_read` acts
DONT_NEED = 4  # MADV_DONTNEED of Linux: the file stays in the system's own cache, for the next program that loads it


def page_out(tensors):
    """Give back the memory of those tensors that lie in a mapped file, and what the C library holds but does not use.

    tensors: as they are in the file. They can still be read.
    """
    if not sys.platform.startswith('linux'):
        return
    try:
        library = ctypes.CDLL(None)
        advise, trim, mapped = library.madvise, library.malloc_trim, _mapped_files()
    except (AttributeError, OSError, ValueError):  # another C library than glibc
        return
    trim(0)
    for tensor in tensors:
        start, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        place = bisect.bisect(mapped, (start, sys.maxsize)) - 1
        if place < 0 or start + size > mapped[place][1]:
            continue  # ordinary memory, which is free when nothing refers to it
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages: others share the first and the last
        last = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), DONT_NEED)


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
