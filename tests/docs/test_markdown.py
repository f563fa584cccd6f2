"""helpers/markdown.py: how commands, outputs and links are found on a page, and when two outputs are the same."""

import pytest
from helpers.markdown import anchors, assert_same_output, commands, links

PAGE = """# A page: `really`

| I want to | command |
| --- | --- |
| two | `python a.py --x="a | b"` (or `b.py`, `c.py`), `--y` |
| nothing | `python a.py ...`, `python`, `snake` |

| `python d.py ...` | draws |
| --- | --- |
| `one` | `python e.py 1` (or `2`) |
| `two`, `three` | |

Prose with `python f.py
--z`, [a link](x/y.md#z "title"), [![](i.png)](http://e.org) and `[no](link)`.

```bash
python3 -m venv .venv && .venv/bin/pip install -r r.txt  # set up
python g.py --x='#1' \\
    --y=2
# nothing
```

1. In a list:

   ```console
   $ python h.py
   out

   more
   $ python i.py  # again
   ```

## A page: really
"""


def test_commands_are_found_in_prose_tables_and_blocks():
    assert [command.text for command in commands(PAGE)] == [
        *('python a.py --x="a | b"', 'python b.py --x="a | b"', 'python c.py --x="a | b"'),
        *('python e.py 1', 'python e.py 2', 'python d.py one', 'python d.py two', 'python d.py three'),
        *('python f.py --z', 'python3 -m venv .venv', 'pip install -r r.txt', "python g.py --x='#1' --y=2"),
        *('python h.py', 'python i.py'),
    ]
    assert [command.output for command in commands(PAGE) if command.output] == ['out\n\nmore\n']


def test_links_and_headings_are_found():
    assert links(PAGE) == ['x/y.md#z', 'i.png']
    assert anchors(PAGE) == {'a-page-really', 'a-page-really-1'}


@pytest.mark.parametrize(
    ('expected', 'actual'),
    [
        ('a\nb', '\na  \nb\n\n'),
        ('logprob -8.3766 (6 tokens)', 'logprob -8.3770 (6 tokens)'),
        ('p = 8.95212e-109', 'p = 8.9531e-109'),
        ('2,676 prefixes in 0.6 s; 1', '2,677 prefixes in 12.25 s; 1'),
        ('a   3 ms   b', 'a 1,234 ms   b'),
        ('saved results/x-20250101-120000/a.png', 'saved results/x-20261231-235959/a.png'),
        ('a\n...\nd', 'a\nb\nc\nd'),
        ('a\n...\nb', 'a\nb'),
        ('...\nb 1\n...', 'b 2\nb 1\nc'),
    ],
)
def test_outputs_that_are_the_same(expected, actual):
    assert_same_output(expected, actual)


@pytest.mark.parametrize(
    ('expected', 'actual'),
    [
        ('a\nb', 'a'),
        ('a', 'a\nb'),
        ('a b', 'a  b'),
        ('logprob -8.37', 'logprob 8.37'),
        ('logprob -8.3766', 'logprob -8.3966'),
        ('12 tokens', '13 tokens'),
        ('1 and 2', '1 and two'),
        ('5 steps in 0.6 s', '6 steps in 0.6 s'),
        ('a\n...\nd', 'a\nb'),
        ('', 'a'),
    ],
)
def test_outputs_that_differ(expected, actual):
    with pytest.raises(AssertionError, match='the page shows'):
        assert_same_output(expected, actual)
