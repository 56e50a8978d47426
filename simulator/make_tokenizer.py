"""Make the simulated model's tokenizer: `python -m espalier.simulator.make_tokenizer`.

A byte-level BPE of 1,500 tokens, the whole byte alphabet among them, digits one by one, trained on arithmetic
word problems and plain sentences that are made here. The same script always makes the same files.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from .dice import Dice
from .phrases import ANSWER_LINES, FILLER, OPENERS

VOCABULARY_SIZE = 1500
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Their ids are 0, 1 and 2."""

CHAT_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\\nFunctions to call, a JSON object each:\\n<tools>\\n' }}"
    "{% for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}"
    "{{ '</tools>\\nA call is a JSON object with name and arguments between <tool_call> and </tool_call>.' }}"
    "{{ '<|im_end|>' + '\\n' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'tool' %}"
    "{% set before = loop.previtem or {} %}{% set after = loop.nextitem or {} %}"
    "{% if before['role'] != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\\n<tool_response>\\n' + message['content'] + '\\n</tool_response>' }}"
    "{% if after['role'] != 'tool' %}{{ '<|im_end|>' + '\\n' }}{% endif %}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Turns as Qwen marks them. Tools are listed before them; what they answer is told in the user's name."""

_NAMES = "Tom Anna Ben Carla David Emma Felix Grace Henry Iris Jack Kate Liam Mia Noah Olivia Paul Rosa"
_ITEMS = (
    "apples oranges pencils marbles books stickers coins cookies stamps cards flowers shells buttons eggs "
    "candies balloons bottles ribbons tickets stones pages toys cups plates"
)
_GAINS = ("buys", "gets", "finds", "receives", "picks", "collects", "bought", "found")
_LOSSES = ("gives away", "loses", "eats", "sells", "uses", "breaks", "gave away", "sold")
_BOXES = ("boxes", "bags", "baskets", "shelves", "packs", "jars")
_COMMON = (
    "about above across again against almost alone along already also although always among another "
    "anything around because become before behind below beneath between beyond both bring build called "
    "cannot certain change children city clear close color come common complete consider could country "
    "course during early earth either energy enough error even every example false family father figure "
    "finally following food form found friend function general given government great ground group half "
    "happen hard heart help high history house however hundred idea important include increase indeed "
    "inside instead interest kind language large later learn least less letter level life likely line "
    "list little live local long look machine main make many matter maybe mean measure member might mind "
    "minute model moment money month most mother move much music must name nature near need never next "
    "night nothing notice number object often once only open order other others outside over page part "
    "pattern people perhaps period person picture piece place plan plant play point position possible "
    "power present price probably problem process product program question quick quite rather reach read "
    "ready real reason record remember rest return right river room round same school science second seem "
    "sentence service several shape should show side simple since single size slow small social something "
    "sometimes soon sound special stand start state still stop story street strong study subject such "
    "sure surface system table take teach tell test thank their themselves then theory there these thing "
    "think third those though thought thousand three through time today together tomorrow towards travel "
    "true try turn twenty under understand unit until upon usually value variable various very voice wait "
    "walk want warm watch water week weight well west what when where whether which while white whole "
    "whose window winter within without woman wonder word work world would write wrong year young"
)
"""Frequent English words, so that plain text is not spelled letter by letter."""

_PROMPTS = (
    "Answer the question and put the number into \\boxed{}.",
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "You are a helpful assistant. user system assistant",
    "def main():\n    return [value for value in range(10)]\nimport os\n",
)


def corpus() -> Iterator[str]:
    """Yield the training texts, always the same ones."""
    dice = Dice(20)
    names, things = _NAMES.split(), _ITEMS.split()
    yield from _PROMPTS * 4
    for phrase in (*OPENERS, *FILLER, *ANSWER_LINES):
        yield from [phrase] * 4
    for word in _COMMON.split():
        yield from [f" {word}"] * 3
    for _ in range(1500):
        name, other = dice.pick(names), dice.pick(names)
        items, gain, loss, boxes = (dice.pick(words) for words in (things, _GAINS, _LOSSES, _BOXES))
        a, b, c = (dice.between(2, 99) for _ in range(3))
        yield f"{name} has {a} {items} and {gain} {b} more. How many {items} does {name} have now?"
        yield f"{name} had {a} {items}. She {loss} {b} and he {gain} {c} more. How many {items} are left?"
        yield f"There are {a} {boxes} with {b} {items} each. {other} {loss} {c} of them. What is the total?"
        yield f"What is {a} * {b} + {c}? Compute the value of {a} + {b} - {c}."


def make() -> HuggingFaceTokenizer:
    """Return the trained tokenizer."""
    tokenizer = HuggingFaceTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def configuration() -> dict[str, object]:
    """Return what stands in tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
        "chat_template": CHAT_TEMPLATE,
    }


def write(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json to `folder`."""
    make().save(str(folder / "tokenizer.json"), pretty=False)
    config = json.dumps(configuration(), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).parent)
