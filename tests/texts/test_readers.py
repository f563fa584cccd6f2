"""Which files an input names."""

from pathlib import Path

from texts.readers import files_below, input_paths


def test_a_folder_stands_for_all_readable_files_in_it_sorted():
    names = ['b/2.txt', 'a.jsonl', 'b/1.csv', 'c.parquet', 'b/deep/0.TXT', 'notes.md', '.hidden/d.txt', 'b/.e.txt']
    for name in names:
        path = Path('texts', name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('')
    expected = [Path('texts', name) for name in ('a.jsonl', 'b/1.csv', 'b/2.txt', 'b/deep/0.TXT', 'c.parquet')]
    assert files_below(Path('texts')) == expected
    assert input_paths('texts') == expected
    assert input_paths('texts/b/2.txt,texts') == [Path('texts/b/2.txt'), *(e for e in expected if e.name != '2.txt')]
    assert input_paths('tex*') == expected
