"""All documents of a dataset, one after another in a temporary file: they may be larger than the memory."""

import re
from array import array
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

PIECE = 2**18  # characters to tokenize at a time; on longer texts some tokenizers need far too much memory or time


@dataclass
class Corpus:
    """Documents in a file, and where each of them starts and ends, in bytes.

    Only these numbers are in memory: 20 bytes per document, and 80 while duplicates are looked for; 8 more for a pair.
    """

    path: Path
    starts: np.ndarray  # (n,) int64
    ends: np.ndarray  # (n,) int64
    chars: np.ndarray  # (n,) uint32, characters of each
    middles: np.ndarray | None = None  # (n,) int64, where the response begins, if the documents are pairs

    def positions(self, which):
        """Return the positions in the file of the documents with these indices: starts, middles of pairs, ends."""
        found = (self.starts, self.middles, self.ends)
        return tuple(positions[which] for positions in found if positions is not None)

    def texts(self, which):
        """Yield the documents with these indices, in pieces for a tokenizer."""
        return chain.from_iterable(
            map(cut_for_tokenizer, read_documents(self.path, self.starts[which], self.ends[which]))
        )


def gather_documents(documents, path, keep_duplicates, pairs=False):
    """Write documents to a file and return it as a Corpus, and how many documents were left out for which reason.

    Of equal documents the first is kept, unless keep_duplicates. pairs: each document is (prompt, response), and those
    without a response are left out.
    """
    sizes, prompts, chars, digests, empty = array('I'), array('I'), array('I'), bytearray(), 0
    with open(path, 'wb') as file:
        for document in tqdm(documents, desc='reading', unit='document', leave=False, disable=None):
            prompt, text = document if pairs else ('', document)
            if not text:
                empty += 1
                continue
            data = (prompt + text).encode()
            file.write(data)
            sizes.append(len(data))
            chars.append(len(prompt + text))
            if pairs:
                prompts.append(len(prompt.encode()))
            # Two pairs of the same text are equal only if they have the same prompt.
            digests += blake2b(data, digest_size=16, salt=len(prompt).to_bytes(8, 'little')).digest()
    kept = np.arange(len(sizes))
    if kept.size and not keep_duplicates:
        _, first = np.unique(np.frombuffer(digests, 'S16'), return_index=True)
        kept = np.sort(first)
    ends = np.cumsum(sizes, dtype=np.int64)
    corpus = Corpus(path, (ends - sizes)[kept], ends[kept], np.array(chars)[kept])
    if pairs:
        corpus.middles = corpus.starts + np.array(prompts, np.int64)[kept]
    return corpus, {'duplicates_dropped': len(sizes) - len(kept), 'empty_skipped': empty}


def read_documents(path, starts, ends):
    """Yield the documents between these byte positions of a file."""
    with open(path, 'rb') as file:
        for start, end in zip(map(int, starts), map(int, ends), strict=True):
            file.seek(start)
            yield file.read(end - start).decode()


def cut_for_tokenizer(text):
    """Yield a text in pieces of at most PIECE characters that together have the same tokens as the text.

    A byte-level BPE starts a new word before any white space, and no token crosses a word boundary. So it is safe to
    cut there; only a run of PIECE characters without a space is cut elsewhere.
    """
    start = 0
    while len(text) - start > PIECE:
        found = re.compile(r'(?s:.*)\S(?=[ \n])').match(text, start, start + PIECE)
        end = found.end() if found else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]
