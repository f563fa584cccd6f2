"""The list of texts, checking a copy of them, and building one from the hub."""

import hashlib
import re

import pytest
from helpers.documents import write_table
from helpers.hub import hub_server
from helpers.scripts import PROJECT, assert_friendly_error, run_script

from common.errors import UserError
from lab import corpora
from lab.corpora import CORPORA, Settings, find_seen_documents

STORY = 'A small bear went to the river in the morning and found a silver fish that could sing. ' * 3
TALES = [  # as the rows of FairytaleQA: one per question, with the section or sections it is about
    {'story_name': 'fox', 'story_section': 'A fox lived here.', 'question': 'Who?'},
    {'story_name': 'fox', 'story_section': 'A fox lived here.', 'question': 'Where?'},
    {'story_name': 'fox', 'story_section': 'He was old.', 'question': 'How old?'},
    {'story_name': 'fox', 'story_section': 'A fox lived here.\nHe was old.', 'question': 'What about him?'},
    {'story_name': 'crow', 'story_section': 'A crow\r\n\r\n\r\n\r\nflew.', 'question': 'Who flew?'},
]
CHAPTERS = [f'Line {number} of the first books.' for number in range(400)] + [
    'So it ended.',
    'THE MOUSE AND THE CAT ',
    'A mouse met a cat.',
    'It ran.',
    "THE KING'S SHOE.",
    'A king lost a shoe.',
]


def corpus_called(name):
    return next(corpus for corpus in CORPORA if corpus.name == name)


def documents_in(path):
    return path.read_text(encoding='utf-8').split('\n\n\n')


@pytest.fixture
def folder(tmp_path):
    """A folder with some of the texts, which are not those of the list."""
    for name in ('novels.txt', 'tinystories.txt'):
        (tmp_path / name).write_text(f'{STORY}\n\n\nAnother story about {name}.', encoding='utf-8')
    (tmp_path / 'tinystories_heldout.txt').write_text('A hen had a hat.\n\n\nA dog had a drum.', encoding='utf-8')
    return tmp_path


def test_every_text_is_listed_with_licence_size_and_checksum(capsys):
    corpora.main(Settings())
    listed = capsys.readouterr().out.split('\n\n')
    assert len(listed) == len(CORPORA)
    for lines, corpus in zip(listed, CORPORA):
        assert lines.startswith(f'{corpus.name}: ')
        assert lines.count('licence') == lines.count('where') == len(corpus.sources) >= 1
        assert f'{corpus.size:,}' in lines and corpus.sha256 in lines
        assert re.fullmatch('[0-9a-f]{64}', corpus.sha256)
        assert ('never train on it' in lines) == ('heldout' in corpus.name)


@pytest.mark.parametrize('name', ['tiny', 'tiny-stories'])
def test_the_list_agrees_with_the_model_cards(name):
    card = (PROJECT / 'models' / name / 'README.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| `(\w+\.txt)`.*\| ([\d,]+) \|.*`([0-9a-f]{64})` \|$', card, re.MULTILINE)
    assert rows
    for file, size, sha256 in rows:
        assert (corpus_called(file).size, corpus_called(file).sha256) == (int(size.replace(',', '')), sha256)


def test_a_folder_is_checked_file_by_file(folder, monkeypatch, capsys):
    content = (folder / 'novels.txt').read_bytes()
    same = {'size': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
    changed = [corpus._replace(**same) if corpus.name == 'novels.txt' else corpus for corpus in CORPORA]
    monkeypatch.setattr(corpora, 'CORPORA', changed)
    corpora.main(Settings(check=str(folder)))
    out = capsys.readouterr().out
    assert 'novels.txt: the same file\n' in out
    assert 'fairytales.txt: missing\n' in out
    assert f'tinystories.txt: another text: {(folder / "tinystories.txt").stat().st_size:,} bytes' in out
    for name, count in (('tinystories_heldout.txt', 2), ('data/childrens_stories/childrens_stories.txt', 52)):
        assert f'{name}: of {count} texts, none shares a run of 12 words with the training texts\n' in out


def test_a_measured_text_in_a_training_text_is_an_error(folder):
    novels = folder / 'novels.txt'
    held_out = folder / 'tinystories_heldout.txt'
    held_out.write_text(f'A hen had a hat.\n\n\n{STORY.upper().replace(".", "!")}', encoding='utf-8')
    with pytest.raises(UserError, match='1 of the texts'):
        corpora.main(Settings(check=str(folder)))
    held_out.unlink()
    stories = PROJECT / 'data/childrens_stories/childrens_stories.txt'
    novels.write_text(documents_in(stories)[7], encoding='utf-8')
    with pytest.raises(UserError, match='1 of the texts'):
        corpora.main(Settings(check=str(folder)))


def test_shares_of_seen_runs_are_those_of_brute_force(tmp_path):
    training, measured = 'one two three four five six seven eight', 'zero one, TWO three four five; six nine ten'
    words = ' '.join(f'{word}{number}' for number in range(3) for word in training.split())
    asked = ' '.join(f'{word}{number}' for number in range(2) for word in measured.replace(';', '').split())
    (tmp_path / 'training.txt').write_text(f'{words}\n\n\n{asked[30:200]}', encoding='utf-8')

    def runs(text):
        found = re.findall(r'\w+', text.casefold())
        return [tuple(found[start : start + 12]) for start in range(len(found) - 11)]

    known = {*runs(words), *runs(asked[30:200])}
    texts = [asked, words, 'too short', asked[:150]]
    expected = [sum(run in known for run in runs(text)) / max(1, len(runs(text))) for text in texts]
    assert 0 < expected[0] < 1 == expected[1]
    shares = find_seen_documents({'texts': texts}, [tmp_path / 'training.txt'])['texts']
    assert list(shares) == pytest.approx(expected)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'check': 'nowhere'}, 'no folder nowhere; .*--build=nowhere'),
        ({'check': '.'}, 'none of the training texts'),
        ({'check': '.', 'build': '.'}, 'not both'),
        ({'build': 'here', 'stories': 0}, '--stories=0: it must be at least 1'),
    ],
)
def test_a_wrong_call_is_an_error(settings, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        corpora.main(Settings(**settings))
    assert not list(tmp_path.iterdir())


def hub_rows():
    """Return {(dataset, split): rows} as the hub has them."""
    return {
        ('roneneldan/TinyStories', 'train'): [{'text': f' {text}\n'} for text in (STORY, 'Two.', 'Two.', '', 'Three.')],
        ('roneneldan/TinyStories', 'validation'): [{'text': text} for text in ('Four.', STORY, 'Five.')],
        ('WorkInTheDark/FairytaleQA', 'train'): TALES,
        ('WorkInTheDark/FairytaleQA', 'validation'): TALES[-1:],
        ('deven367/babylm-100M-children-stories', 'train'): [{'text': line} for line in CHAPTERS],
    }


def assert_built(folder):
    assert documents_in(folder / 'tinystories.txt') == [STORY.strip(), 'Two.']
    assert documents_in(folder / 'tinystories_heldout.txt') == ['Four.']  # without the one that is also a training text
    assert documents_in(folder / 'fairytales.txt') == ['A fox lived here.\nHe was old.', 'A crow\n\nflew.']
    assert documents_in(folder / 'fairytales_heldout.txt') == ['A crow\n\nflew.']
    *_, mouse, king = documents_in(folder / 'childrens_stories.txt')
    assert mouse == 'THE MOUSE AND THE CAT \nA mouse met a cat.\nIt ran.'
    assert king == "THE KING'S SHOE.\nA king lost a shoe."


def test_texts_are_built_and_existing_files_kept(tmp_path, monkeypatch, capsys):
    rows = hub_rows()
    monkeypatch.setattr(corpora, 'open_hub_table', lambda name, split, **_: (iter(rows[name, split]), 'c0ffee'))
    corpora.main(Settings(build=str(tmp_path / 'new'), stories=2, heldout_stories=2))
    assert_built(tmp_path / 'new')
    out = capsys.readouterr().out
    assert 'also in the training texts: 1\n' in out
    for name in ('novels.txt', 'simple_stories.txt', 'victorian_children.txt'):
        assert f'{name} is not on the hub' in out
    (tmp_path / 'new/tinystories.txt').write_text('mine')
    corpora.main(Settings(build=str(tmp_path / 'new')))
    assert (tmp_path / 'new/tinystories.txt').read_text() == 'mine'
    assert capsys.readouterr().out.count('exists and is kept') == 5


@pytest.mark.slow
def test_texts_are_built_from_the_hub_and_without_a_network_one_line_says_so(tmp_path):
    for number, ((name, split), rows) in enumerate(hub_rows().items()):
        (tmp_path / 'hub' / name).mkdir(parents=True, exist_ok=True)
        write_table(tmp_path / 'hub' / name / f'{split}-{number}.parquet', rows)
    arguments = ['lab.corpora', f'--build={tmp_path / "new"}', '--stories=2', '--heldout_stories=2']
    process = run_script(*arguments, cwd=tmp_path, env={'HF_HUB_OFFLINE': '1', 'HF_HOME': str(tmp_path / 'empty')})
    assert_friendly_error(process, 'roneneldan/TinyStories', 'connect to the network')
    assert not (tmp_path / 'new').exists()
    with hub_server(tmp_path / 'hub', tmp_path / 'cache') as (_, env):
        process = run_script(*arguments, cwd=tmp_path, env={'HF_HUB_OFFLINE': '0', **env})
    assert process.returncode == 0, process.stderr
    assert_built(tmp_path / 'new')
