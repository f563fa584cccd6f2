"""TODO."""

from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError
from texts.tables import row_documents


def read_hub(name, config='', split='train', column=''):
    """Return the documents of a dataset on the hub, an iterator of text, and a dict that says where they are from.

    Raises UserError, also while reading, for whatever the hub cannot give.
    """
    rows, revision = hub_table(name, config, split)
    source = {'hf_dataset': name, 'config': config or None, 'split': split, 'revision': revision}
    return row_documents(rows, column, name), source


def hub_table(name, config='', split='train'):
    """Return the rows of a dataset on the hub, an iterator of dicts by column, and the revision that they are of.

    Rows are streamed as they are needed, always those of that revision (None for a local folder, which may stand in for
    a name). Raises UserError, also while reading, for whatever the hub cannot give.
    """
    asked = f'--hf_dataset={name}{f" --hf_config={config}" if config else ""} --hf_split={split}'
    with hub_errors(asked):
        import datasets  # here, because it takes a second
        from huggingface_hub import HfApi

        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what goes wrong is said once, by us
        datasets.disable_progress_bars()
        # The hub's answer is asked for first: load_dataset tries for half a minute before it says that there is none.
        revision = None if Path(name).exists() else HfApi().dataset_info(name).sha
        rows = datasets.load_dataset(name, config or None, split=split, revision=revision, streaming=True)
        if rows.features:
            rows = rows.decode(False)  # pictures and sounds in other columns stay as they are
    return hub_rows(rows, asked), revision


def hub_rows(rows, asked):
    """Yield rows; the network may go at any of them."""
    with hub_errors(asked):
        yield from rows


@contextmanager
def hub_errors(asked):
    """Make whatever goes wrong at the hub one line."""
    try:
        yield
    except Exception as error:  # almost anything: datasets, huggingface_hub, httpx and pyarrow have their own
        reason = ' '.join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f'{asked} cannot be read from the Hugging Face hub: {reason}; files on this disk are read with --input'
        ) from error
