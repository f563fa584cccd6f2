"""Suggestions for settings that do not exist and for words on the command line that are not settings."""

import difflib
from pathlib import Path

from common.files import PROJECT, names_file

TABLES = ('.json', '.jsonl', '.csv', '.tsv', '.parquet')
HELP = 'settings are written --key=value, and --help lists them'

# What transformers, llama.cpp and courses call our settings; the first that a script has is meant.
OTHER_NAMES = {
    'start': 'p prompt prompts text input input_text query',
    'init_from': 'm model models model_name model_path model_name_or_path pretrained checkpoint ckpt hf_model',
    'max_new_tokens': 'n n_predict max_length max_tokens length num_tokens tokens generate',
    'num_samples': 'num_return_sequences n_samples samples best_of',
    'temperature': 't temp do_sample greedy',
    'beam_width': 'num_beams beams beam beam_size',
    'most_probable': 'exact search top',
    'fixed_response': 'response completion answer target continuation',
    'show_probs': 'probs probabilities logprobs plot plots charts output_scores',
    'quantize': 'quantization load_in_8bit int8 q',
    'device': 'device_map gpu cuda',
    'dtype': 'torch_dtype precision fp16 bf16 half',
    'input': 'file files input_file path data data_path train_file text corpus',
    'eval_data': 'file files data data_path pairs input input_file test_file dataset',
    'dataset': 'data data_path data_dir input file train_file train_data name output out',
    'text_column': 'column text_field field content_column',
    'train_bpe': 'vocab_size n_vocab bpe',
    'learning_rate': 'lr',
    'epochs': 'epoch num_epochs n_epochs num_train_epochs',
    'max_iters': 'max_steps steps iters iterations num_steps train_steps',
    'batch_size': 'bs per_device_train_batch_size train_batch_size micro_batch_size',
    'block_size': 'context_length context_size seq_len seq_length max_seq_len max_seq_length n_ctx n_positions',
    'n_layer': 'n_layers num_layers layers num_hidden_layers',
    'n_head': 'n_heads num_heads heads num_attention_heads',
    'n_embd': 'd_model hidden_size embed_dim emb_dim dim',
    'lora_rank': 'lora_r lora rank r',
    'eval_interval': 'eval_steps eval_every',
    'out_dir': 'output_dir output out save_dir',
    'save': 'output output_dir out output_path out_dir',
    'compare_to': 'baseline compare base_model reference',
}


def hint_at_setting(key, kinds):
    """Return what may be meant by a setting that does not exist, as the end of a sentence. kinds: name -> type."""
    lower = key.lower().replace('-', '_')
    if lower == 'config':
        return 'a config file is named alone, as in: python train.py config/train_tiny.py'
    if kinds.get(lower.removeprefix('no_')) is bool and lower.startswith('no_'):
        return f'did you mean {lower.removeprefix("no_")}=False?'
    meant = [name for name, others in OTHER_NAMES.items() if lower in others.split()]
    begun = [name for name in kinds if len(lower) > 2 and name.startswith(lower)]
    found = [name for name in (lower, *meant) if name in kinds] or begun[:1]
    found = found or difflib.get_close_matches(lower, kinds, n=1, cutoff=0.67)
    return f'did you mean {found[0]}?' if found else '--help lists all settings'


def hint_at_word(word, before, kinds):
    """Return what may be meant by a word that is neither a setting nor a config file, as the end of a sentence.

    before: (key, value) of the setting in front of it, or None.
    """
    bare = word.strip('“”„"').lstrip('-–—−')  # dashes as word processors make them of two hyphens
    key, equals, _ = bare.partition('=')
    last, value = before or ('', '')
    if word.lower() in ('help', '?', '/?', '-v', '/h', '/help', '-help'):
        return HELP
    if names_file(word) and (hint := hint_at_file(word, kinds)):
        return hint
    if key.replace('-', '_') in kinds:
        return f'did you mean --{bare}?'
    if word.startswith(('-', '–', '—', '−')):
        return hint_at_setting(key, kinds)
    if last and value in ('', '='):
        return f'write it without a space: --{last}={word}'
    if value[:1] in ('“', '„', '”'):
        return f'“ and ” are not quotation marks for a shell; use " or \', as in --{last}="two words"'
    if configs := find_configs(word, kinds):
        return f'did you mean {configs[0]}?'
    if 'init_from' in kinds and word and (word.startswith('gpt2') or word in ('tiny', 'tiny-stories')):
        return f'did you mean --init_from={word}?'
    if last in kinds and str in (kinds[last], *getattr(kinds[last], '__args__', ())):
        return f'several words need quotation marks, as in --{last}="{value} {word}"'
    if 'start' in kinds and not equals:
        return f'did you mean --start="{word}"?'
    return HELP


def hint_at_file(word, kinds):
    """Return how a script is told to read a file, as the end of a sentence; '' if it reads none."""
    if 'input' in kinds:
        return f'did you mean --input={word} --dataset={Path(word).stem}?'
    if 'max_iters' in kinds:
        return f'to train on it, first: python prepare_bin.py --input={word} --dataset={Path(word).stem}'
    if 'eval_data' in kinds:
        return f'did you mean --{"eval_data" if Path(word).suffix.lower() in TABLES else "text"}={word}?'
    return f'did you mean --start=FILE:{word}?' if 'start' in kinds else ''


def find_configs(word, kinds, cutoff=0.6):
    """Return the config files, here and of the project, with a name like this word; [] for scripts that have none."""
    if 'max_iters' not in kinds:
        return []
    names = {path.stem for folder in (Path('config'), PROJECT / 'config') for path in folder.glob('*.py')}
    stem = word.replace('\\', '/').rpartition('/')[2].removesuffix('.py')
    return [f'config/{name}.py' for name in difflib.get_close_matches(stem, sorted(names), n=3, cutoff=cutoff)]
