"""Chat templates in several styles, and small tokenizers and models that have them."""

import json

from tokenizers import processors
from transformers import AutoTokenizer

from helpers.networks import random_network
from helpers.piece_tokenizers import bpe_with_bytes, save_tokenizer
from helpers.tokenizers import CODE, PROSE
from lm.tokenizer import train_bpe

CHATML = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""

LLAMA3 = """
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""

GEMMA = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- raise_exception('this model knows no system role') }}
    {%- endif %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<start_of_turn>' ~ role ~ '\n' ~ message.content | trim ~ '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\n' }}
{%- endif %}"""

LLAMA2 = """
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- bos_token + '[INST] ' + message.content.strip() + ' [/INST]' }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content.strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}"""

THINKING = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' and loop.last %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
    {{- message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""

# Of each style: the template, its special tokens, and the token that ends a turn.
STYLES = {
    'chatml': (CHATML, ['<|im_start|>', '<|im_end|>'], '<|im_end|>'),
    'llama3': (LLAMA3, ['<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'], '<|eot_id|>'),
    'gemma': (GEMMA, ['<start_of_turn>', '<end_of_turn>'], '<end_of_turn>'),
    'llama2': (LLAMA2, [], '</s>'),
    'thinking': (THINKING, ['<|im_start|>', '<|im_end|>', '<think>', '</think>'], '<|im_end|>'),
}


def save_chat_tokenizer(folder, style):
    """Write a tokenizer with a chat template into a folder, in the form that models of that style have."""
    template, special, _ = STYLES[style]
    if style in ('gemma', 'llama2'):
        tokenizer = bpe_with_bytes(prepend=style == 'llama2')
        tokenizer.add_special_tokens(special)
        save_tokenizer(tokenizer, folder, 'GemmaTokenizer' if style == 'gemma' else 'LlamaTokenizer')
    else:
        tokenizer = train_bpe([PROSE, CODE], 400)._tokenizer
        tokenizer.add_special_tokens([*special, '<|begin_of_text|>'])
        roles = {'eos_token': '<|endoftext|>'}
        if style == 'llama3':
            bos = roles['bos_token'] = '<|begin_of_text|>'
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f'{bos} $A', special_tokens=[(bos, tokenizer.token_to_id(bos))]
            )
        folder.mkdir(exist_ok=True)
        tokenizer.save(str(folder / 'tokenizer.json'))
        config = {'tokenizer_class': 'PreTrainedTokenizerFast', **roles}
        (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    (folder / 'chat_template.jinja').write_text(template)
    (folder / 'config.json').write_text('{"model_type": "llama"}')


def save_chat_model(folder, style, kind='llama'):
    """Write a small random model with such a tokenizer into a folder."""
    save_chat_tokenizer(folder, style)
    theirs = AutoTokenizer.from_pretrained(folder)
    roles = {'bos_token_id': theirs.bos_token_id, 'eos_token_id': theirs.eos_token_id}
    sizes = {'vocab_size': len(theirs), 'max_position_embeddings': 256, 'num_hidden_layers': 2}
    random_network(kind, **sizes, **roles).save_pretrained(folder)


def apply_template(folder, messages, **settings):
    """Return transformers' own ids of messages, up to where the assistant's turn begins."""
    theirs = AutoTokenizer.from_pretrained(folder)
    settings = {'tokenize': True, 'add_generation_prompt': True, 'return_dict': False, **settings}
    return theirs.apply_chat_template(messages, **settings)
