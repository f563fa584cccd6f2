"""The task of prompting.py: sentences after which a person knows at once whether everyone feels happy or sad.

They were written for this lesson, so no model has seen them. Many come in twos about the same things, such as a kite
that flies and a kite that is torn, so that the things alone do not give the feeling away. The first EXAMPLES of each
feeling may be shown to a model or train it; only the others are asked about. Both halves of a two are on the same side.
"""

import random
import re
from itertools import chain
from typing import NamedTuple

import torch

EXAMPLES = 16  # of each feeling: for prompts and for fine-tuning
FEELINGS = ('happy', 'sad')
FORMS = {'words of stories': '{} Everyone was very', 'a new form': '{} Feeling:'}
CONDITIONS = {  # how many examples, the feeling of those that come last, whether all are wrong
    'no example': (0, None, False),
    **{f'{n} example{"s" * (n > 1)}': (n, None, False) for n in (1, 2, 4, 8)},
    **{f'8 examples, {feeling} last': (8, feeling, False) for feeling in FEELINGS},
    '8 examples, all wrong': (8, None, True),
}


class Item(NamedTuple):
    """A sentence and how everyone feels after it."""

    sentence: str
    feeling: str


class Answer(NamedTuple):
    """What was answered about a sentence."""

    feeling: str | None  # None: neither word was found in a reply
    both: float | None = None  # the model's probability of the two words together; None for a chat model


HAPPY = [
    'Mum gave Lily a new red ball.',
    'Tom found his lost dog in the garden.',
    'Grandma baked a big cake for Ben.',
    'The sun came out and they all went swimming.',
    'Anna won the race at school.',
    'Sam got a kitten for his birthday.',
    'Dad came home early and played with Mia.',
    'Max learned to ride his bike.',
    'The little bird could fly again.',
    "Sue's best friend came to stay.",
    'The class sang a song for Leo.',
    'Mia picked ripe berries and ate them all.',
    'The lost sheep came back to the farm.',
    "Ben's drawing was put up on the wall.",
    'Lucy hugged her mother after a long trip.',
    'The boys built a tall tower and cheered.',
    'Tim caught his first fish.',
    'They danced around the tree all evening.',
    "The old man's garden was full of flowers.",
    'Kate opened the box and saw a puppy.',
    'The snow fell and the children made a snowman.',
    'Jack shared his sweets with a new friend.',
    'The doctor said that the cat was well again.',
    'Everyone clapped when Emma finished her song.',
    'The king gave the poor boy a bag of gold.',
    "Rose's tooth stopped hurting.",
    'The bunny reached the top of the hill and laughed.',
    'Sara got a letter from her brother.',
    'The baby bear smiled at his mother.',
    "Pip's kite flew high in the blue sky.",
    'After the rain there was a bright rainbow.',
    'The teacher said that Nick had done well.',
    'They went to the zoo and saw the monkeys play.',
    'The hungry mouse found a piece of cheese.',
    "Amy's wish came true.",
    'The two friends made up and played again.',
    'Grandpa told a funny story.',
    'The duck found her lost egg.',
    "Tom's mother kissed him good night.",
    'The farmer had a good harvest.',
    'Ella jumped into the warm water with a giggle.',
    'The frog made a new friend at the pond.',
    'Bob got the toy that he wanted.',
    'The picnic was fun and the food was yummy.',
    'Lily helped an old lady, and the lady thanked her.',
    'The prince and the princess got married.',
    "Jane's team won the game.",
    'The boy ate a sweet ice cream in the park.',
]
SAD = [
    "Lily's new red ball broke.",
    'Tom lost his dog in the forest.',
    "Nobody came to Ben's party.",
    'It rained and they could not go swimming.',
    'Anna fell down in the race.',
    "Sam's kitten ran away.",
    'Dad was ill and could not play with Mia.',
    'Max fell off his bike and cut his knee.',
    'The little bird hurt its wing.',
    "Sue's best friend moved far away.",
    'The class laughed at Leo.',
    'Mia dropped all her berries in the mud.',
    'The wolf took a sheep from the farm.',
    "Ben's drawing was torn to pieces.",
    'Lucy missed her mother and cried.',
    "The tall tower fell on the boys' toys.",
    "Tim's only fish died.",
    'They had to stay in bed all evening with a fever.',
    "The old man's flowers were all dead.",
    'Kate opened the box, and it was empty.',
    'The snowman melted away.',
    'Jack had no one to play with.',
    'The doctor said that the cat was very sick.',
    'Emma forgot her song and ran off the stage.',
    "The king took the poor boy's last coin.",
    "Rose's tooth hurt all night.",
    'The bunny was lost and all alone.',
    'Sara heard that her brother would not come home.',
    'The baby bear could not find his mother.',
    "Pip's kite was stuck in a tree and torn.",
    'The storm broke the roof of their house.',
    'The teacher was angry with Nick.',
    'They could not go to the zoo.',
    'The hungry mouse found nothing to eat.',
    "Amy's doll was gone.",
    'The two friends had a bad fight.',
    'Grandpa had to go to the hospital.',
    "The duck's egg was cracked.",
    "Tom's mother yelled at him.",
    "The farmer's plants all died.",
    'Ella slipped and fell into the cold water.',
    'The frog had no friends at the pond.',
    "Bob's toy was taken by a mean boy.",
    'The ants ate all the food of the picnic.',
    'An old lady shouted at Lily.',
    'The princess had to say goodbye to the prince.',
    "Jane's team lost the game.",
    "The boy's ice cream fell on the ground.",
]


def split_items(n_test):
    """Return the Items to learn from, and n_test of each feeling to ask about, both alternately happy and sad."""
    twos = [[Item(sentence, feeling) for sentence, feeling in zip(two, FEELINGS)] for two in zip(HAPPY, SAD)]
    return list(chain(*twos[:EXAMPLES])), list(chain(*twos[EXAMPLES : EXAMPLES + n_test]))


def swap_feeling(item):
    """Return the Item with the wrong feeling."""
    return item._replace(feeling=FEELINGS[item.feeling == FEELINGS[0]])


def choose_examples(items, n, rng, last=None):
    """Return n Items in random order, half of them happy; last: the feeling of those that come last, None for any."""
    happy, sad = ([item for item in items if item.feeling == feeling] for feeling in FEELINGS)
    more, fewer = rng.sample([happy, sad], 2)
    chosen = rng.sample(more, (n + 1) // 2) + rng.sample(fewer, n // 2)
    rng.shuffle(chosen)
    return sorted(chosen, key=lambda item: item.feeling == last)


def build_prompt(form, sentence, examples=()):
    """Return the prompt that asks about a sentence, with the examples before it, a line each."""
    return ''.join(f'{form.format(each.sentence)} {each.feeling}.\n' for each in examples) + form.format(sentence)


def build_prompts(form, items, known, condition, seed):
    """Return a prompt for each item under one of the CONDITIONS; each has examples of its own from the known items."""
    (n, last, wrong), rng, prompts = CONDITIONS[condition], random.Random(seed), []
    for item in items:
        examples = choose_examples(known, n, rng, last)
        prompts.append(build_prompt(form, item.sentence, map(swap_feeling, examples) if wrong else examples))
    return prompts


def find_feeling(reply):
    """Return the last of the two words in a reply, None if it has neither; "unhappy" is not one of them."""
    found = re.findall(rf'\b(?:{"|".join(FEELINGS)})\b', reply.lower())
    return found[-1] if found else None


@torch.no_grad()
def write_step(model, tokenizer, sentence, longest=20):
    """Return the sentence and the likeliest next one (greedy, at most `longest` tokens), as a step to the answer."""
    prompt, ids = torch.tensor([tokenizer.encode_prompt(sentence)], device=model.device), []
    for step in model.steps(prompt, longest, temperature=0):
        if step.ids.item() in tokenizer.roles.ends:
            break
        ids.append(step.ids.item())
        if tokenizer.decode(ids).rstrip(' "”')[-1:] in ('.', '!', '?'):
            break
    return sentence + tokenizer.decode(ids).rstrip()
