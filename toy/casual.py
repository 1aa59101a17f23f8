"""Casual typed questions: clipped, in odd word order, overly polite, in the English of a foreigner.

`questions` fills the same forms with known and unknown things, so that a model cannot guess from the wording alone
whether there is an answer. Text only; phrasings that a test holds out are removed later (plan.casual_questions).
"""
import numpy as np

from toy import domain, facts, outside
from toy.facts import sentence
from toy.keyboard import pick

AROUND = """\
{}|{}|{}|{}|{}?|{}?|{} please|{} please|{}, thanks|um, {}|hmm, {}|sorry, {}|ok so {}|so {}|hey mini, {}|yo, {}|
{}, mini|{}, my friend|dear mini, {}|{}, I forgot|I forgot, {}|not sure, {}|quick one: {}|question: {}|
for my homework, {}|my son asks, {}|help me, {}|{}, do you know|do you know, {}|oh, {}|wait, {}|hi, {}|{}, quickly|
{} again|{} really|I have to know, {}|can you help, {}|and {}|one more, {}""".replace("\n", "").split("|")
# The same for later turns, where "so", "and", "now" and "please" are held out for the tests (talks.py).
AROUND_TURN = "um, {}|hmm, {}|wait, {}|oh, {}|{}, mini|{}, do you know|mini, {}|ah, {}|{}, quickly".split("|")
THING = """\
{}|{}|what is {}|what's {}|{} is what|{} is what again|{} would be|{}, what is it|{}... what is it|I need {}|
can you tell me {}|could you kindly tell me {}|kindly give me {}|do you know {}|would you mind telling me {}|
I can't remember {}|remind me what {} is|my teacher wants {}|help me with {}|say {}|give {}|show me {}|explain {}|
tell {}|you know {}|what would {} be|what do you call {}|how is {} called|I am looking for {}|name {}|may I ask {}|
it is about {}|please answer, {}|who knows {}|let me hear {}|what could be {}""".replace("\n", "").split("|")

# Kind -> (noun phrases for a carrier in THING, whole questions); {side} is "after" or "before".
FORMS = {
    "capital": (["{x} capital", "capital of {x}", "capital of {x}", "capital {x}", "capital city of {x}",
                 "capital city {x}", "capital from {x}", "capital in {x}", "{x}'s capital city", "the capital for {x}",
                 "name of the capital of {x}", "the capital town of {x}"],
                ["for {x}, the capital is which city", "{x}, what is its capital", "{x}... its capital is",
                 "in {x}, which city is the capital", "which town is the capital of {x}", "{x} has which capital",
                 "what city is capital in {x}", "what capital does {x} have", "which is the capital of {x}",
                 "what do they call the capital of {x}", "how is the capital of {x} called",
                 "does {x} have a capital", "I go to {x}, which city is the capital", "whose capital is it, {x}",
                 "{x} is a country, its capital is which", "the capital there in {x} is", "I study {x}, its capital"]),
    "plus": (["{a} plus {b}", "{a} and {b} together", "total of {a} and {b}", "sum of {a} and {b}",
              "{a} added up with {b}"],
             ["{a} plus {b} is", "{a} plus {b} is what", "{a} plus {b} equals", "{a} plus {b} makes",
              "{a} plus {b} equals what", "{a} and {b} is how much", "{a} plus {b} makes how many", "add {b} to {a}",
              "calculate {a} plus {b}", "can you do {a} plus {b}", "how much it gives, {a} plus {b}",
              "compute {a} plus {b}", "{a} plus {b} that makes how much", "if you have {a} and get {b} how many is it",
              "I have {a} apples and get {b} more, how many have I", "{a} candies and {b} candies, how many",
              "what will {a} plus {b} give", "put {a} and {b} together, how many", "solve {a} plus {b}",
              "please add {a} and {b} for me", "I add {a} plus {b}, what is it", "how many is {a} plus {b}"]),
    "minus": (["{a} minus {b}", "{a} less {b}", "{a} take away {b}", "the rest of {a} minus {b}"],
              ["{a} minus {b} is", "{a} minus {b} is what", "{a} minus {b} equals", "take {b} off {a}",
               "if I take {b} away from {a}, what is left", "{b} from {a} leaves what", "calculate {a} minus {b}",
               "I have {a} candies and eat {b}, how many left", "{a} minus {b} that makes how much",
               "I had {a} apples and lost {b}, how many now", "can you do {a} minus {b}", "compute {a} minus {b}",
               "how many is {a} minus {b}", "remove {b} from {a}", "there were {a} and {b} went away, how many stay",
               "please subtract {b} from {a} for me", "what will {a} minus {b} give", "solve {a} minus {b}"]),
    "opposite": (["opposite of {x}", "opposite of {x}", "opposite for {x}", "opposite from {x}", "{x} opposite",
                  "opposite word of {x}", "antonym of {x}", "antonym for {x}", "{x} antonym", "an antonym for {x}",
                  "the contrary of {x}", "the reverse of {x}", "the opposite word for {x}", "the opposite to {x}"],
                 ["{x}, opposite", "{x}... and the opposite", "{x} is one thing, what is its opposite",
                  "what do you call the opposite of {x}", "something is not {x} at all, so it is",
                  "which word is the opposite from {x}", "not {x} but the opposite", "opposite word {x}",
                  "I need an antonym for {x}", "what is a word opposite of {x}", "if it is not {x}, what is it"]),
    "order": (["{unit} {side} {x}", "the {unit} just {side} {x}", "the next {unit} {side} {x}",
               "the {unit} we have {side} {x}"],
              ["{side} {x} is what {unit}", "{side} {x} comes which {unit}", "just {side} {x} it is what {unit}",
               "what is {side} {x}", "{x}, what {unit} is {side} it", "which {unit} do we have {side} {x}",
               "what {unit} goes {side} {x}", "right {side} {x} which {unit}", "{side} {x} is", "{side} {x}",
               "what {unit} is it {side} {x} comes", "which {unit} stands {side} {x}", "what's {side} {x}",
               "we have {x}, which {unit} is {side} it", "{unit} that is {side} {x}"]),
    "legs": (["{x} legs", "number of legs {x} has", "the legs of {x}", "legs of {x}", "leg count of {x}"],
             ["{x}, how many legs", "{x}, how many legs has it", "count the legs on {x}", "how much legs does {x} have",
              "{x} got how many legs", "{x} has how many legs", "how many legs on {x}", "how many legs {x} have",
              "how many legs do you count on {x}", "{x} walks on how many legs", "how many feet has {x}"]),
    "sound": (["{x} sound", "sound of {x}", "the noise of {x}", "noise of {x}", "the sound from {x}"],
              ["what noise comes from {x}", "which noise comes from {x}", "{x} goes how", "what does {x} go like",
               "{x} makes what sound", "what sound do {x} make", "which noise does {x} do", "what is {x} saying",
               "make the sound of {x}", "do {x} sound", "{x} says what", "how does {x} go", "{x} is how loud, I mean "
               "what does it say", "when {x} talks, what is it"]),
    "color": (["{x} color", "color of {x}", "the color for {x}", "the paint for {x}"],
              ["{x} is what color", "{x} has which color", "what color has {x}", "{x}, what color is it",
               "which color do we see on {x}", "what is {x} colored", "is {x} of some color, which", "I paint {x}, "
               "which color do I need", "{x} looks what color", "what color you think {x} is"]),
}
LEFT = {"day": {"after": ["if today is {x}, what is tomorrow", "{x} is over, what day comes next", "{x} and then",
                          "today is {x}, so tomorrow is"],
                "before": ["if today is {x}, what was yesterday", "today is {x}, so yesterday was"]},
        "month": {"after": ["{x} is over, what month comes next", "{x} and then", "if it is {x}, what is next month"],
                  "before": ["if it is {x}, what was last month"]},
        "season": {"after": ["{x} is over, what comes next", "{x} and then"], "before": []}}
# Unknown things that resemble these kinds, for a carrier in THING.
LACKS = """\
{small} times {small}|{small} times {small}|{value} times {small}|{small} multiplied by {small}|
{small} divided by {small}|{value} divided by {small}|divide {small} by {small}|multiply {small} by {small}|
{small} plus {small} plus {small}|{small} and {small} and {small} together|{small} plus {small} minus {small}|
all of {small}, {small} and {small} added|another word for {known}|a synonym for {known}|{known} synonym|
what means the same as {known}|the same meaning as {known}|a word like {known}|{known} in {language}|
two {unit}s after {turn}|three {unit}s before {turn}|{unit} between {turn} and {turn}|two {unit}s before {turn}|
the {unit} after tomorrow|the date of {day}|the day before yesterday|how many eyes {beast}|eyes of a {beast}|
wings of a {beast}|arms of a {beast}|food of a {beast}|price of a {beast}|how big is a {beast}|where lives a {beast}|
population of {country}|people in {country}|how many people live in {country}|language of {country}|
what do they speak in {country}|money in {country}|what is the money called in {country}|flag of {country}|
how does the flag of {country} look|president of {country}|king of {country}|river in {country}|how big is {country}|
the longest river in {country}|largest city of {country}|second city of {country}|old capital of {country}|
food in {country}|weather in {country}|which country has the capital {city}|country of {city}|how old is {city}|
people in {city}|deepest lake|smallest lake|longest road|largest {noun}|smallest {noun}|oldest {noun}|fastest {noun}|
wheels of a {noun}|sides of a {noun}|how many {noun}s in a {noun}|who wrote {title}|who painted {title}|
is {known} {known}|is a {beast} {known}|is {country} {known}|rhyme for {known}|how do you spell {known}|
{known} or {known}|what is {known}|is {day} a good day|how long is {month}|days in {month}|is {month} {known}|
what happens in {month}|what do we do on {day}|{country}|{city}|{beast}|{known}|{day}|{month}|{value}|
{small} {small} {small}|{country} and {country}|legs of a {beast} and a {beast}|weight of a {beast}|young of a {beast}|
who lives in {country}|who is the {noun} of {country}|capital of a {noun}|the first capital|capital|the capital|
opposite|the opposite|opposite of it|legs|sound|color|plus|minus""".replace("\n", "").split("|")
SYNONYMS = (("largest", "biggest"), ("smallest", "tiniest"), ("highest", "tallest"), ("fastest", "quickest"),
            ("how many", "how much"), ("a year", "one year"), ("a week", "one week"), ("a day", "one day"),
            ("an hour", "one hour"), ("a minute", "one minute"), (" have", " got"), (" are in", " is in"),
            (" are in", " are there in"), ("which ", "what "), ("who wrote", "who is it that wrote"))
TALK = {
    "Hello! How can I help you?": ["hiya", "hey", "hey there", "yo", "hey mini", "hello hello", "heya", "hi friend"],
    "Goodbye! See you soon.": ["bye", "ok bye", "bye for now", "gotta go", "cya", "see ya", "I am leaving, bye",
                               "bye mini", "have a nice day, bye"],
    "You are welcome.": ["thx", "thx a lot", "cheers, thank you", "ok thanks", "thank you so much", "thank you dear",
                         "great, thank you", "thank you ever so much"],
    "I am fine, thank you. How are you?": ["how are things", "how r you doing", "everything fine with you",
                                           "how is your day going", "you ok", "how are you my friend"],
    "My name is Mini.": ["what do they call you", "your name", "how do you call yourself", "name please",
                         "who am I talking to, what is your name", "how are you called"],
    "I am a small model that can hear, speak and show a face.": ["who r you", "what are you exactly", "what r u",
                                                                 "who is this", "what kind of thing are you"],
    "Why did the chicken cross the road? To get to the other side.": [
        "make me laugh", "make me laugh, tell a joke", "joke please", "a joke", "tell me something funny",
        "tell a good joke", "say a joke"],
    "I can answer short questions about the world.": ["what do you do", "what can I say", "what are your skills",
                                                      "how do I use you", "what is it you can do"],
    "I was made on a laptop.": ["who built you", "who is your maker", "who created you", "where do you come from"],
    "No, I am a computer program.": ["are you a robot or a human", "are you alive", "is there a person",
                                     "am I talking to a human"],
    "I am sorry to hear that.": ["I am so sad", "I feel so bad today", "I am sad today"],
    "That is good to hear.": ["I am so happy", "I feel great", "I am happy today"],
}


def without_articles(text: str, random: np.random.Generator) -> str:
    """The text with most of its articles left out."""
    return " ".join(word for word in text.split() if word not in ("the", "a", "an") or random.random() < 0.3)


def form(kind: str, values: dict, random: np.random.Generator, odd: bool = False) -> str:
    """A question of a kind, its slots filled with `values`. odd: only forms that name the kind, for values without an
    answer: "the day after spring" has none, but "after spring" alone would."""
    things, others = FORMS["order" if kind in LEFT else kind]
    if kind in LEFT:
        others = [one for one in others if "{unit}" in one] if odd else [*others, *LEFT[kind][values["side"]]]
    if random.random() < 0.5:
        return pick(THING, random).format(pick(things, random).format(**values))
    return pick(others, random).format(**values)


def odd_values(kind: str, random: np.random.Generator) -> dict:
    """Values for the slots of a kind's forms such that the question has no answer."""
    if kind not in ("plus", "minus"):
        return {"x": outside.odd(kind, random), "unit": kind, "side": pick(["after", "before"], random)}
    small, value = pick(facts.NUMBERS[:11], random), outside.filler("value", random, "")
    other = outside.filler("value", random, "")
    if kind == "minus" and random.random() < 0.4:
        return {"a": outside.filler("less", random, ""), "b": outside.filler("more", random, "")}
    return dict(zip("ab", pick([(small, value), (value, small), (value, other)], random)))


def bare(text: str) -> str:
    """`domain.spoken` without articles."""
    return " ".join(word for word in domain.spoken(text).split() if word not in ("the", "a", "an"))


def lacks(answered: set, random: np.random.Generator) -> str:
    """A question from LACKS, or about an unknown topic. answered: the `bare` cores that do have an answer."""
    if random.random() < 0.15:
        return pick(THING, random).format(outside.odd("topic", random))
    unit = pick(list(LEFT), random)
    turns = {"day": facts.DAYS, "month": facts.MONTHS, "season": facts.SEASONS}[unit]
    template = pick(LACKS, random).replace("{unit}", unit)
    while "{turn}" in template:
        template = template.replace("{turn}", pick(turns, random), 1)
    core = outside.filled(template, random, "")
    return lacks(answered, random) if bare(core) in answered else pick(THING, random).format(core)


def questions(count: int, random: np.random.Generator):
    """Yield `count` tuples (text, answer, kind): known and unknown things, facts, topics, small talk."""
    known, items = domain.known(), domain.items()
    kinds = [*(kind for kind in FORMS if kind != "order"), "capital", "plus", "opposite", *LEFT]
    told = [(answer, kind, forms) for kind, answer, forms, _ in items if kind in ("fact", "topic")]
    answered = {bare(core) for _, _, forms, _ in items for cores in forms.values() for core in cores}
    for _ in range(count):
        which = random.random()
        if which < 0.5:
            kind = pick(kinds, random)
            values, answer = pick(known[kind], random)
            text = form(kind, values, random)
        elif which < 0.7:
            kind, answer = pick(kinds, random), domain.UNKNOWN
            text, kind = form(kind, odd_values(kind, random), random, True), "near"
        elif which < 0.82:
            text, answer, kind = lacks(answered, random), domain.UNKNOWN, "near"
        elif which < 0.95:
            answer, kind, forms = pick(told, random)
            carried, cores = pick(list(forms.items()), random)
            text = pick(cores, random)
            for word, other in SYNONYMS:
                text = text.replace(word, other) if random.random() < 0.4 else text
            text = pick(THING, random).format(text) if carried in ("thing", "topic") else text
        else:
            answer, kind = pick(list(TALK), random), "talk"
            text = pick(TALK[answer], random)
        text = pick(AROUND, random).format(text)
        yield sentence(without_articles(text, random) if random.random() < 0.35 else text), answer, kind
