"""Read datasets from the Hugging Face hub, row by row as they are needed."""

from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError, is_out_of_memory
from common.files import expand_path
from texts.tables import row_documents


def read_hub(name, config='', split='train', column=''):
    """Return an iterator over the documents of a dataset on the hub, and a dict that describes the source.

    column: the one that contains the text; '' if there is only one. Raises UserError, also while reading, if the hub
    cannot deliver.
    """
    rows, revision = open_hub_table(name, config, split)
    source = {'hf_dataset': name, 'config': config or None, 'split': split, 'revision': revision}
    return row_documents(rows, column, name), source


def open_hub_table(name, config='', split='train', request='', way_out='use --input for local files'):
    """Return an iterator over the rows of a dataset on the hub, dicts by column, and its revision.

    Rows are streamed, all from that revision (None for a local folder in the hub's layout). Raises UserError, also
    while reading, if the hub cannot deliver. request, way_out: what could not be read and what to do, for the message.
    """
    name = name.removeprefix('https://huggingface.co/datasets/')
    if name.startswith('~'):
        name = str(expand_path(name))
    request = request or f'--hf_dataset={name}{f" --hf_config={config}" if config else ""} --hf_split={split}'
    with one_line_errors(request, way_out):
        import datasets  # here, because the import takes a second
        from huggingface_hub import HfApi

        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # errors are printed once, by us
        datasets.disable_progress_bars()
        # Ask the hub first: without an answer, load_dataset keeps trying for half a minute.
        revision = None if Path(name).exists() else HfApi().dataset_info(name).sha
        rows = datasets.load_dataset(name, config or None, split=split, revision=revision, streaming=True)
        if rows.features:
            rows = rows.decode(False)  # leaves pictures and audio in other columns undecoded
    return stream_rows(rows, request, way_out), revision


def stream_rows(rows, request, way_out='use --input for local files'):
    """Yield rows; the network may fail at any of them."""
    with one_line_errors(request, way_out):
        yield from rows


@contextmanager
def one_line_errors(request, way_out):
    """Turn any error of the hub into a UserError of one line."""
    try:
        yield
    except Exception as error:  # almost anything: datasets, huggingface_hub, httpx and pyarrow have their own
        if is_out_of_memory(error):
            raise
        reason = ' '.join(str(error).split())[:300] or type(error).__name__
        raise UserError(f'{request} cannot be read from the Hugging Face hub: {reason}; {way_out}') from error
