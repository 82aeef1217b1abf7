"""Sentences by a small grammar, so that synthetic speech needs no text from elsewhere; many of p, b and m."""

from __future__ import annotations

import numpy as np

PEOPLE = (
    *("Bob", "Emma", "Peter", "Mabel", "Sam", "Phoebe", "Tom", "Abby", "Joyce", "Hugh", "Pam", "Victor", "Beth"),
    *("my mother", "your brother", "the baker", "a young poet", "the pilot", "our boss", "the old farmer", "nobody"),
)
ACTIONS = (
    *("bought", "painted", "dropped", "measured", "opened", "put away", "remembered", "wanted", "shook", "mended"),
    *("washed", "borrowed", "broke", "chose", "found", "used", "thought about", "jumped over", "pushed", "kept"),
    *("moved", "sampled", "whispered about", "threw", "believed in", "pulled", "hummed to", "watched", "sewed"),
)
QUALITIES = (
    *(
        "big",
        "purple",
        "broken",
        "shiny",
        "simple",
        "warm",
        "very old",
        "beautiful",
        "yellow",
        "cheap",
        "huge",
        "empty",
    ),
    *(
        "quiet",
        "smooth",
        "rough",
        "tiny",
        "famous",
        "wooden",
        "brown",
        "bumpy",
        "good",
        "blue",
        "thick",
        "pure",
        "damp",
    ),
)
THINGS = (
    *("paper cup", "apple", "boat", "lamp", "piano", "map", "table", "shoe", "umbrella", "pumpkin", "chair", "garage"),
    *("bubble", "window", "bottle", "measure of rope", "camera", "book", "bridge", "thumb", "toy", "jam", "vase"),
    *("room", "poem", "bamboo box", "watch", "feather", "mop", "tooth", "kite", "church bell", "puppy", "group", "web"),
)
PLACES = (
    *(
        "by the river",
        "in the basement",
        "at home",
        "on a Monday morning",
        "under the bridge",
        "before lunch",
        "in May",
    ),
    *("above the shop", "without any help", "for a moment", "on the beach", "in the big room", "with both hands"),
    *("near the pump", "from top to bottom", "after the show", "while it rained", "among friends", "at three o'clock"),
)
CLAUSES = (
    *("I am happy about it", "maybe you should come", "but nobody believed it", "so we stopped at once"),
    *("and they laughed", "although it was too much", "because people love music", "and that was the problem"),
    *("which surprised everybody", "and I hope it never happens again", "or so he thought", "please be patient"),
)
SHAPES = (
    "{person} {action} the {quality} {thing} {place}.",
    "{person} {action} a {quality} {thing}, {clause}.",
    "Did {person} {place} see the {quality} {thing}?",
    "The {thing} {place} was {quality}, {clause}.",
    "Give me the {quality} {thing}, {clause}!",
    "Why would {person} put the {thing} {place}?",
    "{person} and {other} {action} the {thing}.",
    "My {quality} {thing} and your {other_thing}: {clause}.",
)


def make_sentences(count: int, *, seed: int) -> list[str]:
    """So many different sentences; more of them begin with the same ones.

    Raises: ValueError if there are more than the grammar gives.
    """
    most = len(THINGS) * len(QUALITIES) * len(PLACES)
    if count > most:
        raise ValueError(f"{count} sentences, expected at most {most}; bring a text of your own")
    random = np.random.default_rng(seed)
    made: dict[str, None] = {}

    def draw(words: tuple[str, ...]) -> str:
        return words[random.integers(len(words))]

    while len(made) < count:
        shape = SHAPES[len(made) % len(SHAPES)]
        sentence = shape.format(
            person=draw(PEOPLE),
            other=draw(PEOPLE),
            action=draw(ACTIONS),
            quality=draw(QUALITIES),
            thing=draw(THINGS),
            other_thing=draw(THINGS),
            place=draw(PLACES),
            clause=draw(CLAUSES),
        )
        made[sentence[0].upper() + sentence[1:]] = None
    return list(made)
