import re
from collections import Counter

from espalier.simulator.tokenizer import Tokenizer
from espalier.simulator.voice import Voice, chance_of

TOKENIZER = Tokenizer()
NEVER = 10**9


def voice(accuracy: float = 0.6, split_rate: float = 0.05) -> Voice:
    return Voice(TOKENIZER, accuracy=accuracy, long_reply_rate=0.06, split_rate=split_rate)


def answers(speaker: Voice, prompt: str, count: int) -> list[list[int]]:
    ids = TOKENIZER.encode(prompt)
    scripts = [speaker.script(ids, seed, "default") for seed in range(count)]
    return [script.tokens(0, script.answer_length, NEVER) for script in scripts]


def boxed(ids: list[int]) -> int:
    match = re.search(r"\\boxed\{(-?\d+)\}", TOKENIZER.decode(ids))
    assert match is not None
    return int(match.group(1))


def test_script_is_a_pure_function_of_prompt_seed_and_version() -> None:
    prompt = TOKENIZER.encode("What is 17 * 24?")

    def said(seed: int, version: str) -> list[int]:
        return voice().script(prompt, seed, version).tokens(0, 300, NEVER)

    assert said(1, "default") == said(1, "default")
    assert said(1, "default") != said(2, "default")
    assert said(1, "default") != said(1, "v2")


def test_tokens_do_not_depend_on_the_pieces_they_are_taken_in() -> None:
    prompt = TOKENIZER.encode("Tell me something.")
    whole = voice().script(prompt, 5, "default").tokens(0, 200, 40)
    script = voice().script(prompt, 5, "default")
    assert [token for i in range(0, 200, 7) for token in script.tokens(i, min(i + 7, 200), 40)] == whole
    assert whole[40] == TOKENIZER.end_id


def test_accuracy_is_the_share_of_right_answers() -> None:
    speaker = voice(accuracy=0.6)
    right = total = 0
    for a in range(2, 42):
        for ids in answers(speaker, f"What is {a} * 7?", 10):
            right += boxed(ids) == a * 7
            total += 1
    assert 0.5 < right / total < 0.7


def test_full_accuracy_is_always_right_and_none_is_always_wrong() -> None:
    for ids in answers(voice(accuracy=1.0), "What is 8 + 9?", 30):
        assert boxed(ids) == 17
    for ids in answers(voice(accuracy=0.0), "What is 8 + 9?", 30):
        assert boxed(ids) != 17


def test_some_prompts_are_always_right_some_never_and_most_are_mixed() -> None:
    kinds: Counter[str] = Counter()
    speaker = voice()
    for a in range(10, 70):
        right = sum(boxed(ids) == a + 5 for ids in answers(speaker, f"What is {a} + 5?", 8))
        kinds["right" if right == 8 else "wrong" if right == 0 else "mixed"] += 1
    assert kinds["right"] > 0
    assert kinds["wrong"] > 0
    assert kinds["mixed"] > 30


def test_mean_chance_is_the_accuracy() -> None:
    for accuracy in (0.0, 0.25, 0.6, 1.0):
        mean = sum(chance_of(i * 7919, accuracy) for i in range(4000)) / 4000
        assert abs(mean - accuracy) < 0.03


def test_some_tokens_are_not_the_tokenizer_s_own() -> None:
    replies = answers(voice(), "What is 8 + 9?", 60)
    retokenized = [TOKENIZER.encode(TOKENIZER.decode(ids)) == ids for ids in replies]
    assert 5 < sum(retokenized) < 55
    assert all(
        TOKENIZER.encode(TOKENIZER.decode(ids)) == ids
        for ids in answers(voice(split_rate=0.0), "What is 8 + 9?", 5)
    )


def test_lengths_vary_and_some_replies_are_long() -> None:
    lengths = [len(ids) for ids in answers(voice(), "What is 8 + 9?", 200)]
    assert min(lengths) < 50
    assert 1 <= sum(length > 250 for length in lengths) < 40


def test_prompt_without_arithmetic_gets_plain_sentences() -> None:
    for ids in answers(voice(), "Tell me about trees.", 10):
        text = TOKENIZER.decode(ids)
        assert "boxed" not in text
        assert text.endswith(".")
