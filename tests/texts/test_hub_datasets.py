"""Datasets on the hub; a local folder in the same layout needs no network."""

import pytest
from helpers.documents import TALES, write_table

from common.errors import UserError
from texts.hub_datasets import read_hub, stream_rows


@pytest.fixture
def hub(tmp_path):
    """A folder in the layout of a hub dataset: two splits, one of them in two files."""
    (tmp_path / 'hub').mkdir()
    for number in range(2):
        rows = [{'number': 10 * number + n, 'text': f'Tale {n} of {number}.'} for n in range(10)]
        write_table(tmp_path / 'hub' / f'train-{number}.parquet', rows)
    write_table(tmp_path / 'hub' / 'test-0.parquet', [{'number': 99, 'text': 'The last tale.'}])
    return str(tmp_path / 'hub')


def test_a_hub_dataset_is_read_row_by_row(hub):
    texts, source = read_hub(hub)
    assert list(texts) == [f'Tale {n} of {number}.' for number in range(2) for n in range(10)]
    assert source == {'hf_dataset': hub, 'config': None, 'split': 'train', 'revision': None}
    texts, source = read_hub(hub, config='default', split='test', column='text')
    assert list(texts) == ['The last tale.']
    assert (source['config'], source['split']) == ('default', 'test')


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'split': 'dev'}, ['--hf_split=dev', 'train', 'test']),
        ({'config': 'large'}, ['--hf_config=large', 'default']),
        ({'column': 'story'}, ['--text_column=story', 'number, text']),
        ({'name': 'no such name!'}, ['--hf_dataset=no such name!', '--input']),
    ],
)
def test_what_a_hub_dataset_lacks_is_an_error(hub, arguments, words):
    with pytest.raises(UserError) as error:
        list(read_hub(**{'name': hub} | arguments)[0])
    for word in words:
        assert word in str(error.value)
    assert '\n' not in str(error.value)


def test_all_rows_come_from_one_revision(monkeypatch):
    import datasets
    import huggingface_hub

    seen = {}

    def load_dataset(*arguments, **rest):
        seen.update(arguments=arguments, **rest)
        return datasets.Dataset.from_dict({'text': TALES}).to_iterable_dataset()

    monkeypatch.setattr(huggingface_hub.HfApi, 'dataset_info', lambda self, name: type('Info', (), {'sha': 'c0ffee'}))
    monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
    texts, source = read_hub('someone/tales', 'short', 'validation')
    assert list(texts) == TALES
    assert seen == {
        'arguments': ('someone/tales', 'short'),
        'split': 'validation',
        'revision': 'c0ffee',
        'streaming': True,
    }
    assert source['revision'] == 'c0ffee'


def test_a_network_that_fails_while_reading_is_an_error():
    def rows():
        yield {'text': 'one'}
        raise ConnectionError('connection lost')

    found = stream_rows(rows(), '--hf_dataset=tales')
    assert next(found) == {'text': 'one'}
    with pytest.raises(UserError, match=r'--hf_dataset=tales .* connection lost'):
        next(found)
