"""export.py: a model as a folder for transformers, its card, and pushing it to the hub."""

import json
import re

import pytest
import torch
import transformers
from helpers.hub import TOKEN, hub_server
from helpers.models import needs_gpt2_vocabulary, random_gpt
from helpers.scripts import PROJECT, assert_friendly_error, run_script
from helpers.world import call_well
from huggingface_hub import ModelCard

import export
from common.errors import UserError
from lm import checkpoint as checkpoints
from lm.checkpoint import load_model, save_checkpoint
from lm.tokenizer import CharTokenizer, GPT2Tokenizer, train_bpe

TEXT = 'Once upon a time there was a cat, and the cat was happy.\n'
CONFIG = {
    'init_from': 'scratch',
    'dataset': 'cats',
    'batch_size': 4,
    'gradient_accumulation_steps': 2,
    'block_size': 16,
    'learning_rate': 1e-3,
    'dropout': 0.0,
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run_export(capsys):
    """Run export.py in this process, which saves starting Python; return what it printed."""

    def run(**settings):
        export.main(export.Settings(**settings))
        return capsys.readouterr().out

    return run


def bpe():
    return train_bpe([TEXT] * 9, 280)


def assert_same_as_transformers(folder, model, tokenizer, text=TEXT, atol=1e-4):
    """Check that transformers loads the folder, tokenizes as we do, and computes the same logprobs."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text)['input_ids']
    assert ids == tokenizer.encode(text)
    assert transformers.AutoTokenizer.from_pretrained(folder).decode(ids) == text
    ids = torch.tensor([ids[: model.config.block_size]])
    with torch.no_grad():
        expected = theirs(ids).logits.log_softmax(-1)
        ours = model(ids, ids)[0][..., : model.n_ids].log_softmax(-1)
    assert expected.shape == ours.shape
    assert (expected - ours).abs().max() < atol


@pytest.mark.parametrize(
    ('kind', 'bias'),
    [
        ('bpe', True),
        ('char', False),
        pytest.param('gpt2', True, marks=[needs_gpt2_vocabulary, pytest.mark.slow]),
    ],
)
def test_transformers_loads_an_exported_checkpoint(tmp_path, run_export, kind, bias):
    tokenizer = {'bpe': bpe, 'char': lambda: CharTokenizer(sorted(set(TEXT))), 'gpt2': GPT2Tokenizer}[kind]()
    model = random_gpt(vocab_size=tokenizer.vocab_size + 7, n_ids=tokenizer.vocab_size, bias=bias)  # padded
    more = {'config': CONFIG, 'iter_num': 1500, 'best_val_loss': 1.25, 'begun_from': 'scratch'}
    save_checkpoint(tmp_path / 'out' / 'ckpt.pt', model, tokenizer, **more)
    out = run_export(out_dir='out', license='mit', about='Cats {wrote} it.')
    assert 'differs by more than 0\n' in out
    assert_same_as_transformers(tmp_path / 'out-export', model, tokenizer)
    again, same, _ = load_model(tmp_path / 'out-export', device='cpu')
    assert same.fingerprint == tokenizer.fingerprint
    assert again.n_ids == model.n_ids

    card = ModelCard.load(tmp_path / 'out-export' / 'README.md')
    assert card.data.license == 'mit'
    assert card.data.library_name == 'transformers'
    assert card.data.base_model is None
    assert 'Trained from random weights.' in card.text
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out-export').num_parameters()
    assert not bias or f'A GPT-2 of {theirs / 1e6:.2f} million parameters' in card.text  # else it counts zero biases
    assert '| steps | 1,500 of 128 tokens |' in card.text
    assert '1.2500 nats per token (perplexity 3.49)' in card.text
    assert 'dropout' not in card.text
    assert 'Cats {wrote} it.' in card.text and export.UNKNOWN_TEXTS not in card.text


def test_half_precision_has_half_the_size_and_nearly_the_same_logprobs(tmp_path, run_export):
    out = run_export(init_from='tiny', dtype='bfloat16', folder='half/of/it')
    difference = float(re.search(r'by more than ([\d.e-]+)', out)[1])
    assert 0 < difference < 0.5
    folder, shipped = tmp_path / 'half' / 'of' / 'it', PROJECT / 'models' / 'tiny'
    sizes = [(place / 'model.safetensors').stat().st_size for place in (folder, shipped)]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)  # the shipped one has 16 bits too
    assert json.loads((folder / 'config.json').read_text())['dtype'] == 'bfloat16'
    model, tokenizer, _ = load_model(folder, device='cpu')
    assert_same_as_transformers(folder, model, tokenizer)
    assert 'The weights are those of `tiny`, which comes with' in (folder / 'README.md').read_text()


@pytest.mark.parametrize(
    ('begun_from', 'base', 'sentence'),
    [
        ('gpt2', 'openai-community/gpt2', 'Fine-tuned from [openai-community/gpt2](https://huggingface.co/openai'),
        ('distilgpt2', 'distilbert/distilgpt2', 'Fine-tuned from [distilbert/distilgpt2]'),
        ('someone/fake', 'someone/fake', 'Fine-tuned from [someone/fake]'),
        ('someone/fake@v1.0', 'someone/fake', '[someone/fake](https://huggingface.co/someone/fake), revision `v1.0`.'),
        ('tiny-stories', None, 'Fine-tuned from `tiny-stories`, which comes with'),
        ('/home/me/private', None, ''),
        ('./mine', None, ''),
        ('C:/mine', None, ''),
        (None, None, ''),
    ],
)
def test_the_card_names_the_base_model_but_no_local_path(tmp_path, begun_from, base, sentence):
    settings = export.Settings(init_from='resume', out_dir='/home/me/out')
    checkpoint = {'begun_from': begun_from, 'config': {**CONFIG, 'init_from': 'resume'}}
    text = export.write_card('cats', random_gpt(), CharTokenizer('abc'), checkpoint, settings)
    assert ModelCard(text).data.base_model == base
    assert sentence in text
    assert 'Fine-tuned' in text or not sentence
    assert '/home' not in text


@pytest.mark.slow
def test_a_resumed_run_knows_its_base_model(tmp_path, run_export):
    settings = ['--dataset=cats', '--out_dir=out', '--block_size=16', '--batch_size=2', '--device=cpu']
    settings += ['--gradient_accumulation_steps=1', '--eval_iters=1', '--eval_interval=2', '--learning_rate=1e-4']
    (tmp_path / 'cats.txt').write_text('\n\n\n'.join(TEXT * (n + 2) for n in range(9)))
    prepare = ['--input=cats.txt', '--dataset=cats', '--tokenizer=tiny', '--val_fraction=0.4']
    assert run_script('prepare_bin.py', *prepare, cwd=tmp_path).returncode == 0
    for more in (['--init_from=tiny', '--max_iters=2'], ['--init_from=resume', '--max_iters=4']):
        process = run_script('train.py', *settings, *more, cwd=tmp_path)
        assert process.returncode == 0, process.stderr
    checkpoint = load_model('resume', tmp_path / 'out', device='cpu')[2]
    assert (checkpoint['iter_num'], checkpoint['begun_from']) == (4, 'tiny')
    run_export(out_dir='out', folder='cats')
    assert 'Fine-tuned from `tiny`' in (tmp_path / 'cats' / 'README.md').read_text()


def test_overwrite_replaces_an_older_model_completely(tmp_path, run_export):
    letters = CharTokenizer(sorted(set(TEXT)))
    save_checkpoint(tmp_path / 'out' / 'ckpt.pt', random_gpt(vocab_size=letters.vocab_size), letters)
    run_export(out_dir='out')
    (tmp_path / 'out-export' / 'notes.txt').write_text('mine')
    (tmp_path / 'out-export' / 'characters.json').write_text('{}')  # of an older model
    before = {path.name: path.read_bytes() for path in (tmp_path / 'out-export').iterdir()}
    with pytest.raises(UserError, match=r'out-export contains config\.json.*--overwrite=True'):
        run_export(init_from='tiny')
    assert {path.name: path.read_bytes() for path in (tmp_path / 'out-export').iterdir()} == before
    run_export(init_from='tiny', overwrite=True)
    assert not (tmp_path / 'out-export' / 'characters.json').exists()
    assert (tmp_path / 'out-export' / 'notes.txt').read_text() == 'mine'
    tokenizer = load_model(tmp_path / 'out-export', device='cpu')[1]
    assert tokenizer.fingerprint == load_model('tiny', device='cpu')[1].fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'out-export']  # and nothing half-written


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'init_from': 'nothing/here/either'}, 'nothing/here/either'),
        ({'out_dir': 'nowhere'}, 'nowhere'),
        ({'dtype': 'int8'}, 'int8 is not one of .*bfloat16'),
        ({'folder': 'file'}, '--folder=file is a file'),
        ({'folder': 'file/below'}, 'file/below'),
        ({'out_dir': 'none'}, 'no tokenizer'),
        ({'push_to': 'no such name'}, '--push_to=no such name'),
        ({'push_to': 'a/b/c'}, '--push_to=a/b/c'),
        ({'init_from': 'own', 'folder': 'own', 'overwrite': True}, 'is the folder of the model itself'),
    ],
)
def test_errors_name_what_cannot_be_exported(tmp_path, monkeypatch, settings, words):
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    (tmp_path / 'file').write_text('')
    save_checkpoint(tmp_path / 'none' / 'ckpt.pt', random_gpt(), None)
    checkpoints.save_pretrained(random_gpt(vocab_size=280), tmp_path / 'own', bpe())
    with pytest.raises(UserError, match=words):
        export.main(export.Settings(**settings))
    assert not (tmp_path / 'out-export').exists()


# The hub ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pushing(tmp_path):
    """A hub to push to, the folder of its models, and the environment of a user with permission."""
    with hub_server(tmp_path / 'hub', tmp_path / 'cache') as (server, env):
        yield server, tmp_path / 'hub', {**env, 'HF_TOKEN': TOKEN}


@pytest.mark.slow
def test_a_pushed_model_can_be_sampled_by_its_name(tmp_path, pushing, capsys):
    server, held, env = pushing
    process = run_script('export.py', '--init_from=tiny-stories', '--push_to=stories', cwd=tmp_path, env=env)
    assert process.returncode == 0, process.stderr
    assert f'pushed to {server.endpoint}/someone/stories/commit/' in process.stdout
    assert TOKEN not in process.stdout + process.stderr
    folder = tmp_path / 'out-export'
    for path in folder.iterdir():
        assert (held / 'someone' / 'stories' / path.name).read_bytes() == path.read_bytes()
        assert TOKEN.encode() not in path.read_bytes()
    assert "from_pretrained('someone/stories'" in (folder / 'README.md').read_text()
    assert server.created['someone/stories'].get('visibility') != 'private'

    sampling = ['--start=The cat', '--max_new_tokens=5', '--device=cpu']
    pushed = run_script('sample.py', '--init_from=someone/stories', *sampling, cwd=tmp_path, env=env)
    own = call_well(capsys, 'sample.py', '--init_from=tiny-stories', *sampling)
    assert (pushed.returncode, pushed.stdout) == (0, own), pushed.stderr


@pytest.mark.slow
def test_pushing_again_replaces_the_model_completely(tmp_path, pushing):
    server, held, env = pushing
    letters = CharTokenizer(sorted(set(TEXT)))
    save_checkpoint(tmp_path / 'out' / 'ckpt.pt', random_gpt(vocab_size=letters.vocab_size), letters)
    (held / 'club' / 'stories').mkdir(parents=True)
    (held / 'club' / 'stories' / 'characters.json').write_text('{"kind": "char", "chars": ["a"]}')  # of an older model
    server.created['club/stories'] = {'visibility': 'private'}
    sampling = ['--init_from=club/stories', '--start=the cat', '--max_new_tokens=5', '--device=cpu']
    for which in ('--out_dir=out', '--init_from=tiny-stories'):
        settings = [which, '--push_to=club/stories', '--private', '--overwrite', '--dtype=float16']
        process = run_script('export.py', *settings, cwd=tmp_path, env=env)
        assert process.returncode == 0, process.stderr
        files = {path.name: path.read_bytes() for path in (tmp_path / 'out-export').iterdir()}
        assert {path.name: path.read_bytes() for path in (held / 'club' / 'stories').iterdir()} == files
        said = [run_script('sample.py', *sampling, cwd=tmp_path, env=env) for _ in range(2)]
        own = run_script('sample.py', '--init_from=out-export', *sampling[1:], cwd=tmp_path)
        assert [process.stdout for process in said] == 2 * [own.stdout], said[0].stderr


@pytest.mark.slow
def test_a_private_model_is_not_pushed_to_a_public_one(tmp_path, pushing):
    server, held, env = pushing
    (held / 'someone' / 'open').mkdir(parents=True)
    settings = ['--init_from=tiny', '--push_to=open', '--private']
    process = run_script('export.py', *settings, cwd=tmp_path, env=env)
    assert_friendly_error(process, 'someone/open', 'is public', 'nothing was pushed')
    assert not list((held / 'someone' / 'open').iterdir())
    settings = ['--init_from=tiny', '--push_to=closed', '--private', '--overwrite']
    assert run_script('export.py', *settings, cwd=tmp_path, env=env).returncode == 0
    assert server.created['someone/closed']['visibility'] == 'private'


@pytest.mark.slow
def test_without_a_token_nothing_is_written(tmp_path, pushing):
    server, _, env = pushing
    env = {**env, 'HF_TOKEN': '', 'HUGGING_FACE_HUB_TOKEN': ''}
    process = run_script('export.py', '--init_from=tiny', '--push_to=stories', cwd=tmp_path, env=env)
    assert_friendly_error(process, 'HF_TOKEN', 'write permission')
    assert not (tmp_path / 'out-export').exists()
    assert not server.requests


@pytest.mark.slow
def test_a_token_without_permission_is_not_printed_and_the_folder_remains(tmp_path, pushing):
    _, _, env = pushing
    wrong = 'hf_anotherSecretWithoutPermission'
    settings = ['--init_from=tiny', '--push_to=stories']
    process = run_script('export.py', *settings, cwd=tmp_path, env={**env, 'HF_TOKEN': wrong})
    assert_friendly_error(process, 'the model is in out-export', 'could not be pushed to stories', '--overwrite=True')
    assert wrong not in process.stdout + process.stderr
    assert load_model(tmp_path / 'out-export', device='cpu')[0].n_ids == 8192


@pytest.mark.slow
def test_an_unreachable_hub_is_an_error_after_writing_the_folder(tmp_path):
    env = {'HF_ENDPOINT': 'http://127.0.0.1:9', 'HF_TOKEN': TOKEN, 'HF_HOME': str(tmp_path / 'cache')}
    process = run_script('export.py', '--init_from=tiny', '--push_to=stories', cwd=tmp_path, env=env)
    assert_friendly_error(process, 'the model is in out-export', 'could not be pushed')
    assert TOKEN not in process.stdout + process.stderr
