"""The option that an answer selects, by the rules of MMBench, ScienceQA, SEED-Bench and MMMU.

None means that the rule finds no option. Official scripts then ask GPT or pick at random; here the answer
counts as incorrect and unparsed, or (MMBench) a judge may be asked.
"""

import re
from collections.abc import Mapping, Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
    "Failed to obtain answer via API",
)
_MMBENCH_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
# In an answer of more words, a single "A" may be the article.
_LETTER_ANSWER_WORDS = 3

_MATCHING = (
    "You are an AI assistant who will help me to match an answer with several options of a single-choice "
    "question. You are provided with a question, several options, and an answer, and you need to find which "
    "option is most similar to the answer. If the meaning of all options are significantly different from "
    "the answer, output Z. Your should output a single uppercase character in A, B, C, D (if they are valid "
    "options), and Z. \nExample 1: \nQuestion: What is the main object in image?\n"
    "Options: A. teddy bear B. rabbit C. cat D. dog\nAnswer: a cute teddy bear\nYour output: A\n"
    "Example 2: \nQuestion: What is the main object in image?\n"
    "Options: A. teddy bear B. rabbit C. cat D. dog\nAnswer: Spider\nYour output: Z\n"
    "Example 3: \nQuestion: {}?\nOptions: {}\nAnswer: {}\nYour output: "
)
_MATCHING_CN = (
    "你是一个帮助我匹配答案与单选题中多个选项的 AI 助手。"
    "你会被提供：一个问题，多个选项，一个答案。你的任务是找到与答案意义最相近的选项。"
    "如果所有选项的意义都与答案显著不同，则输出 Z。"
    "你应该输出一个单个的大写字母，例如 A, B, C, D（如果它们是有效选项），或 Z。"
    "例 1:问题: 图中最主要的物体是什么?\n"
    "选项: A. 泰迪熊 B. 兔子 C. 猫 D. 狗\n答案: 一只可爱的泰迪熊\n输出: A\n"
    "例 2: \n问题: 图中最主要的物体是什么?\n选项: A. 泰迪熊 B. 兔子 C. 猫 D. 狗\n答案: 蜘蛛\n输出: Z\n"
    "例 3: \n问题: {}?\n选项: {}\n答案: {}\n输出: "
)


def letters_for(options: Sequence[str]) -> dict[str, str]:
    """Options by letter, from A."""
    return dict(zip(LETTERS, options, strict=False))


def mmbench_option(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that MMBench's rules find in an answer: by letter, else by the option's text.

    By letter: with . ( ) [ ] , : ; ! * # { } replaced by blanks, exactly one option's capital letter is a
    separate word ("(B)", "Answer: B", "B. a dog"); "A" in an answer of more than three words is the article.
    By text: the lower-cased answer contains the text of exactly one option and is at most twice as long as
    all options together. Refusals select nothing. Source: open-compass/VLMEvalKit,
    vlmeval/utils/matching_util.py (can_infer); the guard for "A" is that of OpenCompass's eval_mmbench.py
    (VLMEvalKit has it under VERBOSE only, and drops "A. a cat sits" with it).
    """
    if mmbench_refuses(answer, options):
        return None
    words = answer.translate(_MMBENCH_BLANKS).split()
    return _letter_alone(answer, words, options) or _text_inside(answer, options)


def mmbench_refuses(answer: str, options: Mapping[str, str]) -> bool:
    """Whether an answer refuses to select an option: it is incorrect, and no judge is asked."""
    if any(refusal in answer for refusal in REFUSALS):
        return True
    words = answer.translate(_MMBENCH_BLANKS).split()
    # "Z" is how MMBench's judge replies that no option is meant.
    return "Z" in words and not any(letter in words for letter in options)


def matching_prompt(question: str, options: Mapping[str, str], answer: str) -> str:
    """The prompt of MMBench's judge about an answer in which rules find no option.

    Source: open-compass/VLMEvalKit, vlmeval/dataset/utils/multiple_choice.py (build_prompt, build_prompt_cn;
    the latter for questions with a Chinese character) and build_option_str.
    """
    listed = "".join(f"{letter}. {text}\n" for letter, text in options.items())
    form = _MATCHING_CN if re.search("[\u4e00-\u9fff]", question) else _MATCHING
    return form.format(question, f"There are several options: \n{listed}", answer)


def matched_letter(reply: str) -> str | None:
    """The option that the judge names, "Z" for no option; None unless exactly one capital is a word."""
    words = reply.translate(_MMBENCH_BLANKS).split()
    found = {word for word in words if word in LETTERS}
    return found.pop() if len(found) == 1 else None


def _letter_alone(answer: str, words: Sequence[str], options: Mapping[str, str]) -> str | None:
    found = [letter for letter in options if letter in words]
    if len(found) != 1:
        return None
    article = found[0] == "A" and len(words) > _LETTER_ANSWER_WORDS and "A" in answer.split()
    return None if article else found[0]


def _text_inside(answer: str, options: Mapping[str, str]) -> str | None:
    if len(answer) > 2 * sum(len(text) for text in options.values()):
        return None
    found = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return found[0] if len(found) == 1 else None


def circular_accuracy(right: Mapping[str, bool], question_of: Mapping[str, str]) -> dict[str, float]:
    """1 for each question whose rotations are all correct, else 0.

    `right` and `question_of` are by row id; a question's rows are its rotations. Source: Liu et al.,
    arXiv 2307.06281, section 4.1 (CircularEval).
    """
    questions: dict[str, float] = {}
    for row, is_right in right.items():
        question = question_of[row]
        questions[question] = min(questions.get(question, 1.0), float(is_right))
    return questions


def scienceqa_option(answer: str, count: int) -> str | None:
    """The letter in an answer to a ScienceQA question with `count` choices.

    The answer is only a letter; or it starts with a letter, a full stop and a blank; or it has the words
    "The answer is X". Line breaks count as ". ". Letters are capitals, those past the choices are ignored.
    Source: lupantech/ScienceQA, models/run_gpt3.py ("The answer is X."), as extended for chat models in
    haotian-liu/LLaVA, llava/eval/eval_science_qa.py.
    """
    text = answer.replace("\n", ". ")
    stated = r"The answer is ([A-E])"
    patterns = (r"\A\s*([A-E])\s*\Z", r"\A([A-E])\. ", rf"{stated}\.", stated)
    found = next(filter(None, (re.search(pattern, text) for pattern in patterns)), None)
    return found[1] if found and found[1] in LETTERS[:count] else None


def exact_letter(answer: str, options: Sequence[str] = LETTERS[:4]) -> str | None:
    """The answer if it is only an option's letter; "A." and "a" are not.

    Source: haotian-liu/LLaVA, scripts/convert_seed_for_submission.py (SEED-Bench by letter).
    """
    return answer.strip() if answer.strip() in list(options) else None


def mmmu_option(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of an MMMU multiple-choice answer.

    , . ! ? ; : ' are removed from both ends. Letters in brackets, "(B)", take precedence over letters between
    blanks. Without either, in an answer of more than five words, the options' texts are searched, ignoring
    case. The last occurrence wins. Source: MMMU-Benchmark/MMMU, eval/eval_utils.py,
    parse_multi_choice_response, which picks at random where this returns None.
    """
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    answer = f" {answer} "
    for pattern in ("({})", " {} "):
        if letter := _last({letter: answer.rfind(pattern.format(letter)) for letter in options}):
            return letter
    if len(answer.split()) <= 5:
        return None
    return _last({letter: answer.lower().rfind(text.lower()) for letter, text in options.items()})


def _last(positions: Mapping[str, int]) -> str | None:
    """The letter at the last position; None if all are -1, not found."""
    last = max(positions, key=lambda letter: positions[letter], default=None)
    return None if last is None or positions[last] < 0 else last


def likeliest(log_likelihoods: Sequence[float], options: Sequence[str] = LETTERS) -> str | None:
    """The letter of the greatest log-likelihood, the first of equals; None if one is NaN.

    Source: AILab-CVC/SEED-Bench, eval.py (the option of the smallest loss; losses are sums over an option's
    tokens, so log-likelihoods are not divided by length).
    """
    values = list(log_likelihoods)
    if not values or any(value != value for value in values):
        return None
    return options[values.index(max(values))]
