"""Statistics of a text: words, sentences, dialogue, and the words that set it apart from another text."""

import math
import re
from collections import Counter

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # letters, with an apostrophe between them
# A sentence ends with . ! or ?, possibly a closing quotation mark, and white space before a capital letter.
SENTENCE_END = re.compile(r'(?<=[.!?])\s?["”’\')\]]*\s+(?=["“‘\'(\[]*[A-Z])')
TITLE = re.compile(r'\b(?:Mr|Mrs|Ms|Dr|St|Messrs|Capt|Col|Rev|Esq|No|Vol)\.$')  # no sentence ends after these
# Speech: from a quotation mark before a word to one after a word. An unclosed mark is skipped, since the next one opens
# again. Single marks are apostrophes too, so speech between them must end with punctuation: a comma, a full stop, ...
QUOTED = re.compile(
    r'(?:(?<=[\s(—-])|(?<![\s\S]))'  # after a space, a bracket, a dash, or at the very beginning
    r"""(?:["“](?=\S)[^"“”]*["”](?!\w)|['‘](?=\w)[^"“”]{,2000}?[.,!?;:—-]['’](?!\w))"""
)


def words_of(text):
    """Return the words of a text in lower case; `don't` is one word, numbers are not words."""
    return [word.lower() for word in WORD.findall(text.replace('’', "'"))]


def sentences_of(text):
    """Return the sentences of a text; an empty line also ends one."""
    sentences = []
    for paragraph in re.split(r'\n\s*\n', text):
        pending = ''
        for part in SENTENCE_END.split(paragraph.strip()):
            pending = f'{pending} {part}' if pending else part
            if not TITLE.search(pending):
                sentences.append(pending)
                pending = ''
        if pending:
            sentences.append(pending)
    return [sentence for sentence in sentences if WORD.search(sentence)]


def dialogue_share(text):
    """Return the share of a text's words that are spoken: between quotation marks, double or single."""
    return sum(len(WORD.findall(found)) for found in QUOTED.findall(text)) / max(1, len(WORD.findall(text)))


def describe_text(text, sample=10_000):
    """Return the statistics of one text, a dict.

    distinct_words is the mean number of different words in stretches of `sample` words: longer texts have more of
    them, so only stretches of equal length can be compared. It is None if the text is shorter than that.
    """
    words, sentences = words_of(text), sentences_of(text)
    lengths = sorted(len(WORD.findall(sentence)) for sentence in sentences)
    stretches = [len(set(words[start : start + sample])) for start in range(0, len(words) - sample + 1, sample)]
    return {
        'bytes': len(text.encode()),
        'words': len(words),
        'sentences': len(sentences),
        'words_per_sentence': len(words) / max(1, len(sentences)),
        'median_words_per_sentence': lengths[len(lengths) // 2] if lengths else 0,
        'letters_per_word': sum(map(len, words)) / max(1, len(words)),
        'distinct_words': sum(stretches) / len(stretches) if stretches else None,
        'dialogue_share': dialogue_share(text),
    }


def common_opening(documents, length=5):
    """Return how documents most often begin: with which `length` words, with which sentence, and how many do.

    A dict: `documents`, how many there are; `words` and `count`; `sentence` and `sentence_count`.
    """
    documents = list(documents)
    first_words = Counter(' '.join(words_of(document)[:length]) for document in documents)
    first_sentences = Counter(sentence for document in documents for sentence in sentences_of(document[:1000])[:1])
    ((words, count),) = first_words.most_common(1)
    ((sentence, sentence_count),) = first_sentences.most_common(1)
    return {
        'documents': len(documents),
        'words': words,
        'count': count,
        'sentence': sentence,
        'sentence_count': sentence_count,
    }


def keywords(text, other, count=20, prior=0.01):
    """Return the words that set a text apart from another: [(word, z, per million here, per million there)].

    z is the log-odds ratio with an informative Dirichlet prior, in standard deviations (Monroe, Colaresi & Quinn 2008,
    "Fightin' Words", eq. 16, 20 and 22); a raw ratio of frequencies would favour the rarest words. The prior gives each
    word `prior` times its count in both texts together. Returns the `count` words with the highest z.
    """
    here, there = Counter(words_of(text)), Counter(words_of(other))
    n, m = here.total(), there.total()
    both = here + there
    alpha_0 = prior * both.total()
    if len(both) < 2:
        return []  # a single word sets nothing apart
    found = []
    for word, total in both.items():
        alpha, y, x = prior * total, here[word], there[word]
        delta = math.log((y + alpha) / (n + alpha_0 - y - alpha)) - math.log((x + alpha) / (m + alpha_0 - x - alpha))
        z = delta / math.sqrt(1 / (y + alpha) + 1 / (x + alpha))
        found.append((word, z, 1e6 * y / max(1, n), 1e6 * x / max(1, m)))
    return sorted(found, key=lambda row: -row[1])[:count]
