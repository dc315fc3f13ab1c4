"""Prompts of many kinds, made from templates, that a language model answers itself.

What it answers is replayed while it is fine-tuned on images, so that it keeps its language. None of them is
one of the general questions (`general_questions`), and none asks for the same capital, sum or subject.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, zip_longest

from .general_questions import ARITHMETIC, GENERAL_QUESTIONS


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


COUNTRIES = _words(
    "Norway, Sweden, Finland, Denmark, Poland, Austria, Hungary, Ireland, Belgium, Switzerland, Turkey, "
    "India, Thailand, Vietnam, Indonesia, South Korea, Mexico, Peru, Chile, Argentina, Cuba, Morocco, "
    "Nigeria, Ethiopia, Ghana, Iran, Iraq, Israel, Pakistan, Nepal, Mongolia, Iceland, Ukraine, Romania, "
    "Bulgaria, Colombia, Venezuela, Tunisia, Uganda, Bolivia"
)
SUBJECTS = _words(
    "a horse, a bicycle, a mountain, the forest, summer, autumn, a teacher, a doctor, a library, a "
    "bridge, a boat, the desert, snow, a storm, breakfast, coffee, bread, a clock, a painting, a farmer, "
    "the city, a village, an island, a bird, a whale, a lion, a bear, a spider, a bee, an apple, a tree, "
    "a flower, a chair, a window, a letter, a game, football, a holiday, a hospital, an airport, a "
    "market, a kitchen, history, science, friendship, courage, patience, sleep, language, money"
)
THINGS = _words(
    "volcano, glacier, planet, comet, atom, molecule, cell, virus, vitamin, muscle, heart, brain, engine, "
    "battery, computer, keyboard, telescope, microscope, compass, map, novel, poem, essay, orchestra, "
    "violin, democracy, republic, constitution, bank, tax, contract, budget, harvest, irrigation, "
    "earthquake, tornado, rainbow, tide, eclipse, season"
)
TASKS = _words(
    "boil an egg, bake a cake, plant a tree, clean a window, learn a new language, write a letter, save "
    "money, tie a knot, repair a bicycle, prepare for an exam, fall asleep, wash a shirt, make a cup of "
    "tea, read a map, take a good photo, prepare for a race, grow tomatoes, pack a suitcase, find a book in "
    "a library, make a friend"
)
PLURALS = _words(
    "vegetables, animals, birds, cities, lakes, musical instruments, sports, tools, kinds of "
    "furniture, kinds of trees, drinks, subjects taught in school, kinds of weather, professions, parts "
    "of a car, parts of the body, things in a kitchen, insects, metals, planets"
)
WORDS = _words(
    "big, fast, happy, dark, old, strong, early, quiet, rich, easy, empty, wet, tall, clean, brave, kind, "
    "light, soft, wide, young, open, sharp, deep, warm, full"
)
FACTS = (
    ("fish", "breathe under water"),
    ("cows", "eat grass"),
    ("plants", "need light"),
    ("spiders", "have eight legs"),
    ("stones", "float on water"),
    ("people", "need sleep"),
    ("cars", "have wheels"),
    ("penguins", "live in hot deserts"),
    ("books", "have pages"),
    ("ships", "sail on water"),
    ("bees", "make honey"),
    ("clouds", "bring rain"),
)
SENTENCES = (
    "she go to school every day",
    "the weather were very cold yesterday",
    "he don't like apples",
    "we was late for the meeting",
    "i has two brothers",
    "they is playing in the park",
    "it rain a lot in this month",
    "my friend have a new car",
    "the children eats lunch at noon",
    "there is many books on the table",
)
OPENINGS = (
    "Hello!",
    "Good morning.",
    "How are you today?",
    "What can you do?",
    "Who are you?",
    "Can you help me?",
    "Thank you for your help.",
    "I am bored. What should I do?",
    "I feel tired today.",
    "Tell me something interesting.",
    "Tell me a joke.",
    "What should I cook for dinner?",
    "I have an exam tomorrow. Any advice?",
    "Which book should I read next?",
    "Goodbye!",
)
PEOPLE = _words(
    "a friend, a neighbour, my teacher, a colleague, my grandmother, a customer, my manager, a child"
)
OCCASIONS = _words("a birthday, a new job, a wedding, an invitation to dinner, a late delivery, a lost key")
_ASKED = [set(map(int, re.findall(r"\d+", question))) for question in ARITHMETIC]
NUMBERS = tuple((a, b) for a in range(3, 31, 2) for b in (2, 3, 4, 6, 9, 11) if {a, b} not in _ASKED)


def _families() -> Iterator[list[str]]:
    """Lists of prompts, each of one kind."""
    yield [f"What is the capital of {country}?" for country in COUNTRIES]
    yield [f"Which language do people speak in {country}?" for country in COUNTRIES[::2]]
    yield [f"On which continent is {country}?" for country in COUNTRIES[1::2]]
    yield [f"What is {a} + {b}?" for a, b in NUMBERS]
    yield [f"What is {a + b} - {b}?" for a, b in NUMBERS]
    yield [f"What is {a} times {b}?" for a, b in NUMBERS[::2]]
    yield [f"Tom has {a} apples and buys {b} more. How many has he now?" for a, b in NUMBERS[1::3]]
    yield [f"Write one sentence about {subject}." for subject in SUBJECTS]
    yield [f"Describe {subject} in one sentence." for subject in SUBJECTS[::2]]
    yield [f"Write two sentences about {subject}." for subject in SUBJECTS[1::2]]
    yield [f"Write a very short story about {subject}." for subject in SUBJECTS[::3]]
    yield [f"Write a short poem about {subject}." for subject in SUBJECTS[1::3]]
    yield [f"Write a question about {subject}." for subject in SUBJECTS[2::3]]
    yield [f"What is {_article(thing)} {thing}?" for thing in THINGS]
    yield [f"Explain in simple words what {_article(thing)} {thing} is." for thing in THINGS[::2]]
    yield [f"How do I {task}?" for task in TASKS]
    yield [f"Give me one tip: how do I {task}?" for task in TASKS[::2]]
    yield [f"Make a numbered list of {count} {plural}." for plural in PLURALS for count in ("three", "four")]
    yield [f"Name two {plural}." for plural in PLURALS]
    yield [f"List three {plural}, separated by commas." for plural in PLURALS[::2]]
    yield [f"Write the numbers from {a} to {a + b}, separated by commas." for a, b in NUMBERS[2::4] if a > 1]
    yield [f'What is the opposite of "{word}"?' for word in WORDS]
    yield [f'Give a word that means the same as "{word}".' for word in WORDS[::2]]
    yield [f'Use the word "{word}" in a sentence.' for word in WORDS[1::2]]
    yield [f'Translate the word "{word}" into Spanish.' for word in WORDS[::3]]
    yield [f"Answer yes or no: do {who} {what}?" for who, what in FACTS]
    yield [f"Is it true that {who} {what}?" for who, what in FACTS]
    yield [f"Correct this sentence: {sentence}." for sentence in SENTENCES]
    yield [
        f"Rewrite this more politely: give me {thing} now." for thing in ("water", "the book", "an answer")
    ]
    yield list(OPENINGS)
    yield [f"Write a short message to {person} about {event}." for person in PEOPLE for event in OCCASIONS]
    yield [f'Begin your answer with "Today" and write about {subject}.' for subject in SUBJECTS[::4]]


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def prompts() -> list[str]:
    """All prompts, always in the same order, in which the kinds alternate."""
    asked = {question.prompt for question in GENERAL_QUESTIONS}
    rows = chain.from_iterable(zip_longest(*_families()))
    return list(dict.fromkeys(prompt for prompt in rows if prompt is not None and prompt not in asked))
