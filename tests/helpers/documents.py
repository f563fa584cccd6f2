"""Tables and texts, and the documents that are expected from them."""

import csv
import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet

from texts.readers import read_files

TALES = ['The newt went up.\n\n"Oh," it said, “why?”', 'A snail 🐌, slowly.', 'Comma, "quote"\n  and an indent.']


def write_table(path, rows):
    """Write rows, dicts with the same keys, in the format that the file name ends in; return the path."""
    match Path(path).suffix.lower():
        case '.jsonl':
            Path(path).write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
        case '.csv':
            with open(path, 'w', newline='', encoding='utf-8') as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        case '.parquet':
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def texts_in(*names, column='', separator='\n\n\n'):
    """Return the documents of files."""
    return list(read_files([Path(name) for name in names], separator, column))


def split_at_once(text, separator):
    """Return the documents of a whole text: the definition of what split_documents does chunk by chunk."""
    parts = re.sub(r'^[ \t]+$', '', text, flags=re.MULTILINE).split(separator)
    return [part.strip('\n') for part in parts if part.strip('\n')]
