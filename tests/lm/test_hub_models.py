"""Names, revisions, shards and permissions of models on the hub, against a server that answers as the hub does."""

import json
import shutil

import huggingface_hub.constants
import pytest
import torch
from helpers.hub import TOKEN, hub_server
from helpers.models import random_gpt
from helpers.networks import random_network
from helpers.piece_tokenizers import save_llama_tokenizer

from common.errors import UserError
from lm.checkpoint import load_model, save_pretrained
from lm.hub_download import DownloadError
from lm.locate import locate_model
from lm.tokenizer import CharTokenizer
from lm.tokenizer_names import tokenizer_from_name

pytestmark = pytest.mark.slow
LETTERS = CharTokenizer('abcdefghij')
NAME = 'someone/llama'


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
    """A folder with a Llama in three shards and its tokenizer, and what nobody needs beside it."""
    folder = tmp_path_factory.mktemp('llama')
    n_ids = save_llama_tokenizer(folder)
    random_network('llama', vocab_size=n_ids).save_pretrained(folder, max_shard_size='130KB')
    assert len(list(folder.glob('model-*.safetensors'))) == 3
    for name in ('pytorch_model.bin', 'tf_model.h5', 'model.onnx', 'llama.Q4_K_M.gguf', 'README.md', 'modeling.py'):
        (folder / name).write_text('not needed')
    for name in ('consolidated.safetensors', 'tokenizer.model'):
        (folder / name).write_text('the same in another form')
    return folder


@pytest.fixture
def hub(llama, tmp_path, monkeypatch):
    """The server, which has that model; huggingface_hub in this process asks it, without a token."""
    shutil.copytree(llama, tmp_path / 'served' / NAME)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('HF_TOKEN', raising=False)
    with hub_server(tmp_path / 'served', tmp_path / 'cache') as (server, _):
        server.folder = tmp_path / 'served' / NAME
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, 'ENDPOINT', server.endpoint)
        monkeypatch.setattr(
            constants, 'HUGGINGFACE_CO_URL_TEMPLATE', server.endpoint + '/{repo_id}/resolve/{revision}/{filename}'
        )
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
        monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'token'))
        monkeypatch.setattr(constants, 'HF_STORED_TOKENS_PATH', str(tmp_path / 'tokens'))
        monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
        yield server


def downloaded(server):
    """Return the names of the files that were sent."""
    return {path.rsplit('/', 1)[-1] for method, path, _ in server.requests if method == 'GET' and '/resolve/' in path}


def logits_of(name):
    model = load_model(name, device='cpu')[0]
    idx = torch.arange(20)[None] % model.n_ids
    return model.logits(model.hidden(idx))


def stop(server):
    server.shutdown()
    server.server_close()


def test_a_model_in_shards_is_fetched_once_without_what_is_not_needed(hub):
    expected = logits_of(str(hub.folder))
    assert torch.equal(logits_of(NAME), expected)
    shards = {path.name for path in hub.folder.glob('model-*.safetensors')}
    small = {'config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json'}
    needed = {'model.safetensors.index.json', *shards, *(name for name in small if (hub.folder / name).exists())}
    assert downloaded(hub) == needed
    stop(hub)
    hub.requests.clear()
    assert torch.equal(logits_of(NAME), expected)  # from the cache, without a network
    assert tokenizer_from_name(NAME).fingerprint == load_model(str(hub.folder), device='cpu')[1].fingerprint


@pytest.mark.parametrize(
    'name', [f'{NAME}@v1.0', f'{NAME}@refs/pr/2', f'{NAME}@{"c" * 40}', f'https://huggingface.co/{NAME}/tree/v1.0']
)
def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, tmp_path, name):
    save_pretrained(random_gpt(vocab_size=10), tmp_path / 'older', LETTERS)
    for revision in ('v1.0', 'refs/pr/2'):
        hub.revisions[NAME, revision] = ('c' * 40, tmp_path / 'older')
    assert load_model(name, device='cpu')[0].n_ids == 10
    assert json.loads((locate_model(NAME) / 'config.json').read_text())['model_type'] == 'llama'  # the newest
    if name.endswith('v1.0'):
        assert tokenizer_from_name(f'{NAME}@v1.0').contents == LETTERS.contents
        stop(hub)
        assert load_model(name, device='cpu')[0].n_ids == 10  # each revision has its place in the cache


def test_a_revision_that_the_model_does_not_have(hub):
    with pytest.raises(UserError, match=rf"'{NAME}' has no revision 'v2'; .*https://huggingface\.co/{NAME}/tree/main"):
        locate_model(f'{NAME}@v2')


def test_a_gated_model_needs_a_token(hub, monkeypatch):
    hub.gated.add(NAME)
    with pytest.raises(UserError, match=rf'accept its terms at https://huggingface\.co/{NAME}, .*HF_TOKEN') as error:
        locate_model(NAME)
    assert '\n' not in str(error.value)
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    assert (locate_model(NAME) / 'model.safetensors.index.json').exists()


def test_a_private_model_is_like_one_that_does_not_exist_until_there_is_a_token(hub, monkeypatch):
    hub.private.add(NAME)
    for name in (NAME, 'someone/else'):
        with pytest.raises(
            UserError, match=rf"'{name}' .*no model of that name on the hub \(if it is private, .*HF_TOKEN"
        ):
            locate_model(name)
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    assert (locate_model(NAME) / 'config.json').exists()


def keep_only(hub, *names):
    """Delete the files of the model on the hub but for its config.json, its tokenizer.json and these."""
    for path in hub.folder.iterdir():
        if path.name not in ('config.json', 'tokenizer.json', *names):
            path.unlink()


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (['pytorch_model.bin'], r"only safetensors are read of a model of type 'llama'.*@refs/pr/NUMBER"),
        (['llama.Q4_K_M.gguf'], r'its weights are \.gguf files .*converted from'),
        (['model.onnx', 'tf_model.h5'], r'its weights are \.onnx and \.h5 files'),
        (['consolidated.safetensors'], r'its weights are \.safetensors files under names that are not read here'),
        (['README.md'], 'it has no weights'),
    ],
    ids=['bin', 'gguf', 'onnx', 'original', 'none'],
)
def test_weights_in_another_form_are_refused_before_they_are_fetched(hub, names, message):
    keep_only(hub, *names)
    with pytest.raises(UserError, match=message) as error:
        locate_model(NAME)
    assert not isinstance(error.value, DownloadError)
    assert '\n' not in str(error.value)
    assert downloaded(hub) <= {'config.json'}


def test_code_that_comes_with_a_model_is_neither_fetched_nor_executed(hub):
    config = json.loads((hub.folder / 'config.json').read_text())
    auto_map = {'AutoConfig': 'modeling.Config', 'AutoModelForCausalLM': 'modeling.Model'}
    (hub.folder / 'modeling.py').write_text('raise SystemExit("this was executed")')
    (hub.folder / 'config.json').write_text(json.dumps(config | {'auto_map': auto_map}))
    assert load_model(NAME, device='cpu')[0].config.model_type == 'llama'  # transformers has that itself
    own = config | {'auto_map': auto_map, 'model_type': 'of_their_own', 'architectures': ['Model']}
    shutil.copytree(hub.folder, hub.folder.parent / 'own')
    (hub.folder.parent / 'own' / 'config.json').write_text(json.dumps(own))
    with pytest.raises(UserError, match='Python code that comes with the model, which is never executed') as error:
        load_model('someone/own', device='cpu')
    assert '\n' not in str(error.value)
    assert not {name for name in downloaded(hub) if name.endswith('.py')}


def test_an_interrupted_download_goes_on_where_it_ended(hub, monkeypatch):
    import huggingface_hub.file_download

    monkeypatch.setattr(huggingface_hub.file_download.time, 'sleep', lambda seconds: None)  # between attempts
    monkeypatch.setattr(huggingface_hub.constants, 'DOWNLOAD_CHUNK_SIZE', 256)  # written at a time; mostly 10 MB
    shard = 'model-00002-of-00003.safetensors'
    hub.cuts[shard] = [0] * 100
    with pytest.raises(DownloadError, match=f"'{NAME}'"):
        locate_model(NAME)
    hub.requests.clear()
    hub.cuts[shard] = [1000, 1000, 300]  # the connection fails, but not for long
    folder = locate_model(NAME)
    assert downloaded(hub) == {shard}  # the others are there
    assert len(hub.ranges) == 3 and 0 < hub.ranges[0] < hub.ranges[1] < hub.ranges[2]
    for path in folder.glob('model-*.safetensors'):
        assert path.read_bytes() == (hub.folder / path.name).read_bytes()


def test_half_a_model_in_the_cache_is_completed_or_named(hub):
    folder = locate_model(NAME)
    for name in ('model-00002-of-00003.safetensors', 'tokenizer.json'):
        (folder / name).unlink()
    hub.requests.clear()
    assert locate_model(NAME) == folder
    assert (folder / 'tokenizer.json').exists() and (folder / 'model-00002-of-00003.safetensors').exists()
    assert not downloaded(hub) & {'model-00001-of-00003.safetensors', 'model-00003-of-00003.safetensors'}
    for name in ('model-00002-of-00003.safetensors', 'tokenizer.json'):
        (folder / name).unlink()
    stop(hub)
    with pytest.raises(
        DownloadError, match=r'without model-00002-of-00003\.safetensors, tokenizer\.json\. Without a network'
    ):
        locate_model(NAME)


def test_a_tokenizer_is_fetched_in_the_form_that_there_is(hub):
    keep_only(
        hub, 'tokenizer.model', 'model.safetensors.index.json', *(path.name for path in hub.folder.glob('model-*'))
    )
    (hub.folder / 'tokenizer.json').unlink()
    assert (locate_model(NAME) / 'tokenizer.model').exists()
    stop(hub)
    locate_model(NAME)  # it is complete
