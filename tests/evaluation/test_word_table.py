"""eval.py --words: a table of an experiment in, the same table with surprisals out."""

import csv
import math

import pytest
from helpers.evaluation import evaluate

from common.errors import UserError
from lm import checkpoint
from lm.scoring import score
from lm.words import score_words

SENTENCES = [
    {'item': '1', 'condition': 'good', 'sentence': 'The king had a hat.', 'frequency': '3'},
    {'item': '1', 'condition': 'bad', 'sentence': 'The king have a hat.', 'frequency': '2,5'},
]
WORDS = [
    {'item': item, 'word': word, 'region': region}
    for item, words in (('a', ['The', 'old king', 'laughed.']), ('b', ['The', 'young kings', 'laugh.']))
    for region, word in zip('xyz', words)
]


def write_table(path, rows):
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_table(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def test_each_word_of_a_sentence_gets_a_row_with_the_columns_of_its_sentence(here, capsys):
    write_table('items.csv', SENTENCES)
    evaluate(init_from='one', words=True, items='items.csv', save='kept')
    rows = read_table('results/kept/words.csv')
    assert [row['word'] for row in rows] == [word for row in SENTENCES for word in row['sentence'].split()]
    assert [row['word_number'] for row in rows] == ['1', '2', '3', '4', '5'] * 2
    assert [row['frequency'] for row in rows] == ['3'] * 5 + ['2,5'] * 5
    model, tokenizer, _ = checkpoint.load_model('one', device='cpu')
    for sentence, part in ((SENTENCES[0], rows[:5]), (SENTENCES[1], rows[5:])):
        total = -score(model, [[tokenizer.eot]], [tokenizer.encode(sentence['sentence'])])[0].sum().item()
        bits = sum(float(row['surprisal_sum_bits']) for row in part)
        assert bits == pytest.approx(total / math.log(2), rel=1e-4)
    assert 'Pimentel' in capsys.readouterr().out


def test_a_table_of_words_keeps_its_rows(here):
    write_table('words.csv', WORDS)
    evaluate(init_from='one', compare_to='other', words=True, items='words.csv', save='kept')
    rows = read_table('results/kept/words.csv')
    assert [{name: row[name] for name in WORDS[0]} for row in rows] == WORDS
    for suffix, name in (('', 'one'), ('_before', 'other')):
        model, tokenizer, _ = checkpoint.load_model(name, device='cpu')
        words = list(score_words(model, tokenizer, ['The old king laughed.', 'The young kings laugh.']))
        for of_text, part in zip(words, (rows[:3], rows[3:]), strict=True):
            middle = of_text[1].surprisal + of_text[2].surprisal
            assert float(part[1][f'surprisal_sum_bits{suffix}']) == pytest.approx(middle, rel=1e-4)
            assert float(part[1][f'entropy_bits{suffix}']) == pytest.approx(of_text[1].entropy, rel=1e-4)
            assert part[2][f'rank{suffix}'] == str(of_text[3].rank)


def test_two_readers_of_an_item_are_two_texts_and_torn_texts_are_said(here, capsys):
    read = [{**row, 'subject': subject} for row in WORDS[:3] for subject in '12']  # as sorted by word
    write_table('torn.csv', read)
    write_table('whole.csv', sorted(read, key=lambda row: row['subject']))
    whole, _ = evaluate(init_from='one', words=True, items='whole.csv')
    said = capsys.readouterr().err
    assert 'with the same item, subject are one text, so there are 2' in said
    assert 'torn' not in said
    surprisals = [row['surprisal_sum_bits'] for row in whole]
    assert surprisals[:3] == surprisals[3:]
    evaluate(init_from='one', words=True, items='torn.csv')
    assert 'so there are 6\n' in (said := capsys.readouterr().err)
    assert '4 of them are like an earlier one' in said


def test_a_row_without_a_word_has_no_numbers(here):
    (here / 'words.json').write_text('[{"item": 1, "word": "The"}, {"item": 1}, {"item": 1, "word": "fox"}]')
    rows, _ = evaluate(init_from='one', words=True, items='words.json')
    assert [row['tokens'] > 0 for row in rows] == [True, False, True]


def test_a_text_is_measured_word_by_word(here):
    (here / 'text.txt').write_text('A fox ran.\n\n\nThe hen (she) sat.')
    rows, _ = evaluate(init_from='one', words=True, text='text.txt', punctuation='apart')
    assert [row['word'] for row in rows] == ['A', 'fox', 'ran', '.', 'The', 'hen', '(', 'she', ')', 'sat', '.']
    assert len(list((here / 'results').glob('words-one-*/words.csv'))) == 1


def test_short_sentences_are_texts_and_nothing_is_overwritten(here, capsys):
    write_table('short.csv', [{'item': '1', 'sentence': 'Dogs bark.'}, {'item': '1', 'sentence': 'Cats bark.'}])
    rows, _ = evaluate(init_from='one', words=True, items='short.csv', save='kept')
    assert [(row['word'], row['word_number']) for row in rows] == [('Dogs', 1), ('bark.', 2), ('Cats', 1), ('bark.', 2)]
    assert "each row is a text, in the column 'sentence'" in capsys.readouterr().err
    with pytest.raises(UserError, match='choose another --save'):
        evaluate(init_from='one', words=True, items='short.csv', save='kept')
    write_table('clash.csv', [{'item': '1', 'sentence': 'Dogs bark.', 'rank': '7'}])
    with pytest.raises(UserError, match='the columns rank, which this writes'):
        evaluate(init_from='one', words=True, items='clash.csv')


def test_what_cannot_be_measured_is_named(here):
    write_table('words.csv', [{'id': '7', 'sentense': 'a b c d e'}])
    for settings, says in (
        ({'words': True}, '--words needs --text=FILE or --items'),
        ({'items': 'words.csv'}, '--items needs --words'),
        ({'words': True, 'items': 'words.csv'}, 'no column word or .* its columns are id, sentense'),
        ({'words': True, 'items': 'no.csv'}, 'there is no file .*no.csv'),
        ({'words': True, 'text': 'words.csv', 'punctuation': 'off'}, 'neither attached nor apart'),
    ):
        with pytest.raises(UserError, match=says):
            evaluate(init_from='one', **settings)
    write_table('alone.csv', [{'word': 'a', 'region': 'x'}, {'word': 'b', 'region': 'y'}])
    with pytest.raises(UserError, match='to tell the texts apart'):
        evaluate(init_from='one', words=True, items='alone.csv')
