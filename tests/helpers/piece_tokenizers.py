"""Small tokenizers in the manner of SentencePiece, trained on a little prose and code."""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from helpers.tokenizers import CODE, PROSE

SPECIAL = ['<pad>', '<s>', '</s>', '<unk>']
BYTES = [f'<0x{byte:02X}>' for byte in range(256)]


def train(model, trainer, normalizer, pre_tokenizer, decoder):
    """Return a tokenizer trained on a little prose and code, which puts <s> before each text."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, pre_tokenizer, decoder
    tokenizer.train_from_iterator([PROSE, CODE], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single='<s> $A', pair='<s> $A <s> $B', special_tokens=[('<s>', tokenizer.token_to_id('<s>'))]
    )
    return tokenizer


def bpe_with_bytes(prepend):
    """Return a BPE over pieces that spells what it has no piece for in bytes, as Llama 2's and Gemma's."""
    model = models.BPE(byte_fallback=True, fuse_unk=True, unk_token='<unk>')
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL + BYTES, show_progress=False)
    spaces = [normalizers.Replace(' ', '▁')]
    trained = train(model, trainer, normalizers.Sequence(spaces), pre_tokenizers.Split('▁', 'merged_with_next'), None)
    described = json.loads(trained.to_str())
    described['added_tokens'] = [token for token in described['added_tokens'] if token['content'] in SPECIAL]
    described['pre_tokenizer'] = None
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend('▁')] * prepend + spaces)
    strip = [decoders.Strip(' ', 1, 0)] * prepend
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def unigram():
    """Return a Unigram model, as XLM's or T5's, which has no piece for most characters of the world."""
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token='<unk>', show_progress=False)
    return train(models.Unigram(), trainer, None, pre_tokenizers.Metaspace(), decoders.Metaspace())


def save_tokenizer(tokenizer, folder, name):
    """Write a tokenizer into a folder as one of transformers' class `name`."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / 'tokenizer.json'))
    roles = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>', 'pad_token': '<pad>'}
    (folder / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': name, **roles}))


def save_llama_tokenizer(folder):
    """Write a tokenizer like Llama 2's into a folder; return how many ids it has."""
    tokenizer = bpe_with_bytes(prepend=True)
    save_tokenizer(tokenizer, folder, 'LlamaTokenizer')
    return tokenizer.get_vocab_size()
