"""Prompts and pairs in the form of a chat, as a model's own chat template writes it.

The template, in the language Jinja, is rendered by transformers, in a sandbox. What it writes is text with special
tokens, and ends where the model's turn begins (the generation prompt); a response is what follows. Special tokens count
as such only if the template writes them: in the text of a message they are ordinary text, so that no message can end
its own turn. A response is the model's own text, in which they are tokens, as everywhere.
"""

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path

from common.errors import UserError
from common.files import is_there
from common.json_files import read_json_object
from common.limits import limit_time_and_memory
from common.notes import note
from common.strings import replace_surrogates, shorten, show_control_characters
from lm.boundary import EncodedPair
from lm.roles import require_bos
from lm.weight_files import first_line

SECONDS, MEBIBYTES = 10, 1024  # that a template may take
LONGEST = 1_000_000  # characters that a template may write besides ten times the messages
SHOWN = 2000  # characters of the first prompt in the note that shows it
TEMPLATE = 'chat_template.jinja'
ANSWER = 'lighthouse'  # a response that shows what a template writes around one
REMARKS = {  # on what a template uses
    'strftime_now': 'its chat template writes the date into the prompt, so numbers can differ from day to day',
    'enable_thinking': "its chat template has a setting enable_thinking, which is left at the template's default",
}


class Chat:
    """A model's chat template: messages to the ids of a prompt, and a response after it."""

    def __init__(self, theirs, tokenizer, name, system=None, score_end=False, bos=None):
        """theirs: the tokenizer of transformers, which has the template. name: of the model. bos: see `choose_front`.

        system: the text of a system message before all others. score_end: whether a response includes the token that
        ends its turn. Raises UserError if the template fails, or cannot do what is asked.
        """
        self._theirs, self._tokenizer, self._name, self._system = theirs, tokenizer, name, system
        self._score_end, self._bos = score_end, bos
        self._shown = False  # whether the first prompt has been shown
        added = {token.content for token in theirs.added_tokens_decoder.values() if token.content.strip()}
        added |= {tokenizer.decode_bytes([id]).decode() for id in tokenizer.roles.ends}
        self._added = re.compile('|'.join(map(re.escape, sorted(added, key=len, reverse=True))) or '(?!)')
        self._learn_what_is_around_a_response()
        probe = self._render(self._messages('x'))
        if tokenizer.encode(probe) != theirs.encode(probe, add_special_tokens=False):
            raise UserError(f'{name}: its chat template cannot be used: transformers gives its text other ids')
        if system is not None and replace_surrogates(system).strip() not in probe:
            raise UserError(f'{name}: its chat template leaves out the system message; leave out --system')
        # On another day, a template that writes the date gives other ids, and so another fingerprint.
        self.example = tokenizer.show(self._with_bos(tokenizer.encode(probe)))
        described = repr((theirs.get_chat_template(), self.example, self.style)).encode()
        self.fingerprint = hashlib.sha256(described).hexdigest()

    @property
    def style(self):
        """What the template writes around a response: two of the same style give it the same text."""
        return self._before, self._strips, self._end if self._score_end else ''

    @property
    def template(self):
        """The template, in Jinja."""
        return self._theirs.get_chat_template()

    def encode_prompt(self, prompt):
        """Return the ids of a prompt, a text or a list of messages, up to where the model's turn begins."""
        return self._encode(prompt)[0]

    def split_pair(self, prompt, response, boundary='joint'):
        """Return the EncodedPair of a prompt, a text or a list of messages, and a response in the model's turn.

        boundary: as in `Tokenizer.encode_pair`, between the generation prompt and the response.
        """
        prompt_ids, text = self._encode(prompt)
        response = kept = replace_surrogates(response)
        for strips, strip in zip(self._strips, (str.lstrip, str.rstrip)):
            kept = strip(kept) if strips else kept
        if kept != response:
            note(f'{self._name}: its chat template leaves out white space at the ends of responses, and so it is here')
        written = self._before * bool(kept) + kept + (self._end if self._score_end else '')
        if not written:
            return EncodedPair(prompt_ids, [])
        alone = self._tokenizer.encode_after(prompt_ids, written)
        response_ids, kind, remark = alone, None, None
        if boundary == 'joint' and text is not None:
            own, whole = self._tokenizer.encode(text), self._tokenizer.encode(text + written)
            if whole[: len(own)] == own:
                response_ids = whole[len(own) :]
            else:
                kind = 'split'
                remark = 'the chat template and the response meet inside a token; they were encoded separately'
        spelled = self._tokenizer.decode_bytes(response_ids, prompt_ids)
        if spelled != written.encode():
            kind = 'respelled'
            remark = f'this tokenizer changes the text; scored was {spelled.decode("utf-8", "replace")!r}'
        return EncodedPair(prompt_ids, response_ids, kind, remark)

    def _learn_what_is_around_a_response(self):
        """Find out what the template writes before and after a response, and whether it strips the response."""
        messages = self._messages('x')
        prompt = self._render(messages)
        answer, spaced = (
            self._render([*messages, {'role': 'assistant', 'content': content}], add_generation_prompt=False)
            for content in (ANSWER, f' {ANSWER} ')
        )
        if ANSWER not in answer or ANSWER not in spaced:
            raise UserError(f'{self._name}: its chat template leaves out the messages of the assistant')
        (start, end), (start_of_spaced, end_of_spaced) = (text.rsplit(ANSWER, 1) for text in (answer, spaced))
        self._strips = start_of_spaced == start, end_of_spaced == end
        self._before = start.removeprefix(prompt) if start.startswith(prompt) else None
        if self._before is None or self._before.strip():
            usual = '' if self._before is None else f', without {show_control_characters(self._before)}'
            note(
                f'{self._name}: a response follows the generation prompt directly{usual}; its chat template writes a '
                'finished conversation otherwise'
            )
            self._before = ''
        self._end = self._find_end(end)
        if self._end is None and self._score_end:
            raise UserError(f'{self._name}: its chat template ends a turn with no special token: leave out --score_end')
        id = self._end and self._tokenizer.id_of_text(self._end.strip())
        roles = self._tokenizer.roles
        if id is not None and id not in roles.ends:
            self._tokenizer.roles = roles._replace(ends=(*roles.ends, id))

    def _find_end(self, text):
        """Return the text up to the token that ends a turn, None if there is none."""
        match = self._added.search(text)
        return None if match is None or text[: match.start()].strip() else text[: match.end()]

    def _messages(self, prompt):
        """Return a prompt as a list of messages, with the system message before the others."""
        messages = [{'role': 'user', 'content': prompt}] if isinstance(prompt, str) else list(prompt)
        if self._system is not None:
            if messages[0]['role'] == 'system':
                raise UserError('its messages begin with a system message of their own: leave out --system')
            messages.insert(0, {'role': 'system', 'content': self._system})
        return [{**message, 'content': replace_surrogates(message['content'])} for message in messages]

    def _encode(self, prompt):
        """Return the ids of a prompt, and its text; None if the same text would have other ids elsewhere."""
        messages = self._messages(prompt)
        text = self._render(messages)
        ids = self._tokenizer.encode(text)
        if found := next(filter(None, (self._added.search(message['content']) for message in messages)), None):
            safe = self._render(messages, tokenize=True, return_dict=False, sanitize_control_tokens=True)
            if safe != ids:
                note(
                    f'{self._name}: {found[0]} in a message is ordinary text, not a special token, which only the chat '
                    'template writes'
                )
                ids, text = safe, None
        ids = self._with_bos(ids)
        if not self._shown:
            self._shown = True
            pieces = shorten('│'.join(self._tokenizer.pieces(ids)), SHOWN)
            note(f'{self._name}: with its chat template, the first prompt is {pieces}')
        return ids, text

    def _with_bos(self, ids):
        """Return the ids with or without a BOS, if --bos says so; otherwise the template decides."""
        bos = self._tokenizer.roles.bos
        begins = bool(ids) and ids[0] == bos
        if self._bos is None or begins == self._bos:
            return ids
        return [bos, *ids] if self._bos else ids[1:]

    def _render(self, messages, add_generation_prompt=True, tokenize=False, **options):
        """Return what the template writes. Raises UserError if it fails, or takes too much."""
        options |= {'add_generation_prompt': add_generation_prompt, 'tokenize': tokenize}
        try:
            with limit_time_and_memory(SECONDS, MEBIBYTES):
                written = self._theirs.apply_chat_template(messages, **options)
        except (TimeoutError, MemoryError) as error:
            reason = str(error) or f'it takes more than {MEBIBYTES} MiB'
            raise UserError(f'{self._name}: its chat template cannot be used: {reason}') from error
        except Exception as error:  # of Jinja, or whatever a template can cause
            reason = first_line(error)
            raise UserError(f'{self._name}: its chat template does not take these messages: {reason}') from error
        if len(written) > LONGEST + 10 * sum(len(message['content']) for message in messages):
            raise UserError(f'{self._name}: its chat template cannot be used: it writes {len(written):,} characters')
        return written


def start_chat(tokenizer, folder, name, system=None, score_end=False, bos=None):
    """Let a tokenizer put prompts and pairs through the chat template of a model folder.

    The other arguments are those of `Chat`. Raises UserError if the folder has no template.
    """
    folder = Path(folder)
    if not find_template(tokenizer, folder):
        raise UserError(
            f'{name} has no chat template: no chat_template.jinja, and no chat_template in its tokenizer_config.json. '
            f'Leave out --chat, or copy the chat_template.jinja of a model that writes chats alike into {folder}'
        )
    if bos:
        require_bos(tokenizer, name)
    theirs, template = _load_template(tokenizer, folder, name)
    tokenizer.front = ()  # the template decides what begins a prompt
    tokenizer.chat = Chat(theirs, tokenizer, name, system, score_end, bos)
    for word, remark in REMARKS.items():
        if word in template:
            note(f'{name}: {remark}')


def find_template(tokenizer, folder):
    """Return whether there is a chat template: in a folder, or in what a checkpoint holds of its tokenizer."""
    config = read_json_object(folder / 'tokenizer_config.json', missing={})
    kept = {} if tokenizer.config is None else json.loads(tokenizer.config)
    return bool(config.get('chat_template') or kept.get('chat_template') or is_there(folder / TEMPLATE))


def _load_template(tokenizer, folder, name):
    """Return the tokenizer of transformers with a chat template, and the template."""
    # Imported only here: transformers is slow to import, and GPT-2 does without it.
    from transformers import AutoTokenizer

    from lm.hub_model import quiet_transformers

    with tempfile.TemporaryDirectory() as place, quiet_transformers():
        if not is_there(folder / 'config.json'):  # the folder of a checkpoint, which holds the tokenizer
            tokenizer.save(place)
            if is_there(folder / TEMPLATE):
                shutil.copy(folder / TEMPLATE, place)
            folder = place
        try:
            theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            return theirs, theirs.get_chat_template()
        except Exception as error:  # each class has errors of its own
            raise UserError(f'{name}: transformers cannot load its chat template: {first_line(error)}') from error
