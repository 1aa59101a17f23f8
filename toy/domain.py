"""The mini model's world: some 300 answers, and many ways to ask for each. Text only; `voices.py` speaks it.

    python prepare.py demo --list        # every phrasing, its answer, its kind and its split, as jsonl

A phrasing is carrier x core: "could you tell me {}, please?" x "the capital of France". Every phrasing has one split:

    train        spoken and written in training
    recombined   held out, but its carrier is trained with other cores and its core with other carriers
    wording      its carrier, or the form of its core, is trained with nothing; each word of it is trained elsewhere

What the tokenizer sees: ASCII; questions and answers as one writes them (capital at the start, names with capitals,
full stop or question mark at the end), numbers in words, so that text and speech say the same. A transcript is what can
be heard: lower-case words and apostrophes, nothing else (`spoken`). Typed chat also comes in lower case and without
punctuation. The user's turn of the other tasks: transcription is the speech and TRANSCRIBE, reading aloud is READ_ALOUD
and the text. Everything follows from the seed.
"""
import re
import string
from collections import Counter

import numpy as np

TRANSCRIBE, READ_ALOUD = "Write down what you hear.", "Read aloud: "

# ---- carriers, by what fills them: a noun phrase, an indirect question, a direct one, a topic, a remark -------------

CARRIERS = {
    "thing": ["what is {}?", "what's {}?", "tell me {}.", "please tell me {}.", "do you know {}?",
              "can you tell me {}?", "could you tell me {}, please?", "give me {}.", "I want to know {}.",
              "I would like to know {}.", "so what is {}?", "hey, what is {}?", "now tell me {}.",
              "what is {}, please?"],
    "clause": ["tell me {}.", "please tell me {}.", "do you know {}?", "can you tell me {}?",
               "could you tell me {}, please?", "I want to know {}.", "I would like to know {}.", "now tell me {}."],
    "question": ["{}?", "so {}?", "hey, {}?", "{}, please?", "now {}?", "tell me, {}?"],
    "topic": ["tell me about {}.", "please tell me about {}.", "what do you know about {}?",
              "what can you tell me about {}?", "can you tell me about {}?", "could you tell me about {}, please?",
              "talk about {}.", "I want to know about {}.", "I would like to know about {}.",
              "I want to hear about {}.", "say something about {}.", "tell me something about {}.",
              "now tell me about {}.", "do you know {}?"],
    "talk": ["{}", "hey, {}", "hello, {}", "so, {}"],
}
# Trained with nothing. Their words are: see the tests.
HELD_CARRIERS = {
    "thing": ["could you please tell me {}?", "would you tell me {}?", "can you give me {}?", "now what is {}?"],
    "clause": ["could you please tell me {}?", "would you tell me {}?", "I want you to tell me {}."],
    "question": ["hello, {}?", "please, {}?"],
    "topic": ["could you please tell me about {}?", "would you tell me about {}?", "please say something about {}.",
              "can you talk about {}?"],
    "talk": ["now, {}"],
}

# ---- kinds: the forms of a core, by what carries them; HELD_FORMS are asked in the `wording` split only ------------

FORMS = {
    "capital": {"thing": ["the capital of {x}", "the capital city of {x}"],
                "question": ["which city is the capital of {x}"],
                "clause": ["which city is the capital of {x}"]},
    "plus": {"thing": ["{a} plus {b}", "the sum of {a} and {b}"], "clause": ["how much {a} plus {b} is"],
             "question": ["how much is {a} plus {b}", "what does {a} plus {b} make", "how much is {a} and {b}"]},
    "minus": {"thing": ["{a} minus {b}", "{a} take away {b}"], "clause": ["how much {a} minus {b} is"],
              "question": ["how much is {a} minus {b}", "what does {a} minus {b} make",
                           "how much is {a} take away {b}"]},
    "opposite": {"thing": ["the opposite of {x}", "the opposite of the word {x}"],
                 "question": ["which word is the opposite of {x}", "what word means the opposite of {x}"]},
    "day": {"thing": ["the day {side} {x}", "the day that comes {side} {x}"], "clause": ["which day comes {side} {x}"],
            "question": ["which day comes {side} {x}", "what day comes {side} {x}", "which day is {side} {x}"]},
    "month": {"thing": ["the month {side} {x}", "the month that comes {side} {x}"],
              "clause": ["which month comes {side} {x}"],
              "question": ["which month comes {side} {x}", "what month comes {side} {x}", "which month is {side} {x}"]},
    "legs": {"thing": ["the number of legs of {x}"], "clause": ["how many legs {x} has"],
             "question": ["how many legs does {x} have", "how many legs are there on {x}"]},
    "sound": {"thing": ["the sound of {x}", "the sound that {x} makes"], "clause": ["what {x} says"],
              "question": ["what does {x} say", "what sound does {x} make"]},
    "color": {"thing": ["the color of {x}"], "clause": ["what color {x} is"],
              "question": ["what color is {x}", "which color is {x}"]},
}
HELD_FORMS = {
    "capital": ("question", "what city is the capital of {x}"), "plus": ("question", "how much does {a} plus {b} make"),
    "minus": ("question", "how much does {a} minus {b} make"),
    "opposite": ("question", "which word means the opposite of {x}"),
    "day": ("question", "what day is {side} {x}"), "month": ("question", "what month is {side} {x}"),
    "legs": ("thing", "the number of legs on {x}"), "sound": ("clause", "what sound {x} makes"),
    "color": ("question", "what color does {x} have"),
}

NUMBERS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
           "seventeen eighteen").split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
CAPITALS = {"France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
            "Greece": "Athens", "Austria": "Vienna", "Poland": "Warsaw", "Sweden": "Stockholm", "Norway": "Oslo",
            "Finland": "Helsinki", "Denmark": "Copenhagen", "Ireland": "Dublin", "Belgium": "Brussels",
            "Hungary": "Budapest", "Russia": "Moscow", "Japan": "Tokyo", "Egypt": "Cairo", "Kenya": "Nairobi",
            "Cuba": "Havana", "Peru": "Lima", "Canada": "Ottawa", "Chile": "Santiago", "Iraq": "Baghdad",
            "Scotland": "Edinburgh", "England": "London", "Turkey": "Ankara", "Nepal": "Kathmandu",
            "Lebanon": "Beirut", "Australia": "Canberra"}
OPPOSITES = {"hot": "cold", "big": "small", "tall": "short", "fast": "slow", "happy": "sad", "day": "night",
             "up": "down", "left": "right", "open": "closed", "full": "empty", "hard": "soft", "wet": "dry",
             "old": "young", "early": "late", "good": "bad", "black": "white", "rich": "poor", "heavy": "light",
             "loud": "quiet", "clean": "dirty", "strong": "weak", "true": "false", "first": "last", "push": "pull",
             "love": "hate", "north": "south", "east": "west", "winter": "summer", "front": "back", "sweet": "bitter",
             "thick": "thin", "war": "peace", "always": "never", "buy": "sell", "win": "lose"}
LEGS = {"a spider": "eight", "a dog": "four", "an ant": "six", "a bird": "two", "a fish": "no", "a horse": "four",
        "a snake": "no", "a bee": "six", "a person": "two", "a frog": "four", "a chicken": "two", "a crab": "ten",
        "a table": "four", "an elephant": "four"}
SOUNDS = {"a cow": "moo", "a cat": "meow", "a sheep": "baa", "a duck": "quack", "a pig": "oink", "a lion": "roar",
          "an owl": "hoot", "a mouse": "squeak", "a donkey": "hee haw", "a crow": "caw", "a wolf": "howl",
          "a goose": "honk", "a turkey": "gobble", "a puppy": "woof", "a clock": "tick tock", "a bell": "ding dong"}
COLORS = {"grass": "green", "snow": "white", "the sky": "blue", "blood": "red", "a banana": "yellow", "coal": "black",
          "an orange": "orange", "chocolate": "brown", "a flamingo": "pink", "silver": "gray", "milk": "white",
          "a tomato": "red", "a lemon": "yellow", "a carrot": "orange", "a plum": "purple", "a pea": "green"}

# Answer: a noun phrase, a direct and an indirect question that ask for it.
FACTS = {
    "A week has seven days.": (
        "the number of days in a week", "how many days are in a week", "how many days a week has"),
    "A year has twelve months.": (
        "the number of months in a year", "how many months are in a year", "how many months a year has"),
    "A day has twenty four hours.": (
        "the number of hours in a day", "how many hours are in a day", "how many hours a day has"),
    "An hour has sixty minutes.": (
        "the number of minutes in an hour", "how many minutes are in an hour", "how many minutes an hour has"),
    "A minute has sixty seconds.": (
        "the number of seconds in a minute", "how many seconds are in a minute", "how many seconds a minute has"),
    "A triangle has three sides.": (
        "the number of sides of a triangle", "how many sides does a triangle have", "how many sides a triangle has"),
    "A square has four sides.": (
        "the number of sides of a square", "how many sides does a square have", "how many sides a square has"),
    "A hand has five fingers.": (
        "the number of fingers on a hand", "how many fingers does a hand have", "how many fingers a hand has"),
    "A car has four wheels.": (
        "the number of wheels on a car", "how many wheels does a car have", "how many wheels a car has"),
    "The largest animal is the blue whale.": (
        "the largest animal", "which animal is the largest", "which animal is the largest"),
    "The tallest animal is the giraffe.": (
        "the tallest animal", "which animal is the tallest", "which animal is the tallest"),
    "The fastest animal is the falcon.": (
        "the fastest animal", "which animal is the fastest", "which animal is the fastest"),
    "The largest ocean is the Pacific.": (
        "the largest ocean", "which ocean is the largest", "which ocean is the largest"),
    "The highest mountain is Everest.": (
        "the highest mountain", "which mountain is the highest", "which mountain is the highest"),
    "The largest planet is Jupiter.": (
        "the largest planet", "which planet is the largest", "which planet is the largest"),
    "Hamlet was written by Shakespeare.": ("the writer of Hamlet", "who wrote Hamlet", "who wrote Hamlet"),
    "The first person on the moon was Neil Armstrong.": (
        "the first person on the moon", "who was first on the moon", "who was first on the moon"),
    "Water boils at one hundred degrees.": (
        "the temperature of boiling water", "when does water boil", "when water boils"),
    "Water freezes at zero degrees.": (
        "the temperature of freezing water", "when does water freeze", "when water freezes"),
    "Honey is made by bees.": ("the animal that makes honey", "who makes honey", "who makes honey"),
}
TALK = {
    "Hello! How can I help you?": ["hello.", "hi.", "hi there.", "hello there.", "hello you."],
    "Good morning! Did you sleep well?": ["good morning.", "good morning to you.", "a good morning to you.",
                                          "I wish you a good morning."],
    "Good evening! How was your day?": ["good evening.", "good evening to you.", "a good evening to you.",
                                        "I wish you a good evening."],
    "Good night! Sleep well.": ["good night.", "good night to you.", "I go to bed.", "I want to go to bed now."],
    "Goodbye! See you soon.": ["goodbye.", "bye bye.", "see you soon.", "goodbye to you.", "I have to go now."],
    "You are welcome.": ["thank you.", "thanks.", "thank you very much.", "many thanks.", "thanks for your help."],
    "I am fine, thank you. How are you?": ["how are you?", "how do you do?", "how do you feel?", "are you well?"],
    "I am a small model that can hear, speak and show a face.": [
        "who are you?", "what are you?", "tell me who you are.", "please tell me who you are."],
    "My name is Mini.": ["what is your name?", "what's your name?", "tell me your name.", "do you have a name?",
                         "please tell me your name."],
    "I can answer short questions about the world.": ["what can you do?", "tell me what you can do.",
                                                      "how can you help me?", "what do you know?"],
    "I live in your computer.": ["where do you live?", "where are you?", "tell me where you live.",
                                 "where is your home?"],
    "I was made on a laptop.": ["where were you made?", "how were you made?", "who made you?", "tell me who made you."],
    "I was born when my training ended.": ["how old are you?", "when were you born?", "what is your age?",
                                           "tell me how old you are."],
    "Yes, I can hear you very well.": ["can you hear me?", "do you hear me?", "can you hear me now?",
                                       "do you hear me well?"],
    "No, I am a computer program.": ["are you a person?", "are you human?", "are you a real person?", "are you real?"],
    "I am sorry to hear that.": ["I am sad.", "I feel sad.", "I am very sad.", "I am not happy.", "I feel bad."],
    "That is good to hear.": ["I am happy.", "I feel good.", "I am very happy.", "I feel fine.", "I feel very well."],
    "Why did the chicken cross the road? To get to the other side.": [
        "tell me a joke.", "please tell me a joke.", "do you know a joke?", "can you tell me a joke?",
        "I want to hear a joke."],
    "One, two, three, four, five, six, seven, eight, nine, ten.": [
        "count to ten.", "please count to ten.", "can you count to ten?", "I want you to count to ten.",
        "count to ten for me."],
    "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.": [
        "say the days of the week.", "tell me the days of the week.", "what are the days of the week?",
        "name the days of the week."],
}
TOPICS = {
    "the moon": "The moon goes around the earth once a month. It has no light of its own. What we see is the light "
        "of the sun. The same side always looks at us, and nobody saw the other side for a very long time.",
    "the sun": "The sun is a star. It gives us light and warmth. Without it, nothing could live on the earth, and it "
        "would always be night.",
    "the earth": "The earth is our home. It goes around the sun in one year, and it turns around itself in one day.",
    "stars": "Stars are suns that are very far away. They shine all the time, but we can only see them when the night "
        "is dark.",
    "rain": "The sun warms the sea, and water goes up into the air. There it makes clouds. When the clouds are heavy, "
        "it rains.",
    "wind": "Wind is air that moves. It blows because the sun warms some places more than others. It can push a boat "
        "over the sea.",
    "fire": "Fire needs wood, air and heat. It keeps us warm and cooks our food. Never leave a fire alone.",
    "gold": "Gold is a yellow metal. It is heavy and soft, and it never turns brown. People have made rings of it for "
        "a very long time.",
    "the sea": "The sea covers most of our planet. Its water is full of salt. Many fish live there, and so do "
        "whales. Far down it is always dark, and nobody has ever seen all of it.",
    "rivers": "A river begins in the mountains as a small stream. More and more water flows into it. In the end it "
        "meets the sea.",
    "mountains": "Mountains are high places made of rock. The air up there is cold and thin. On the top there is "
        "often snow.",
    "trees": "Trees drink water with their roots. Their leaves take light from the sun. Some trees live for more than "
        "a thousand years.",
    "flowers": "Flowers are bright because they want to be seen. Bees come to drink from them. Then a fruit can grow.",
    "bees": "Bees live together in a hive. They fly from flower to flower and make honey. A bee that has found a "
        "good place dances to tell the others. In winter they stay at home and keep warm.",
    "cats": "Cats sleep most of the day. They can see very well in the dark. A happy cat purrs when you touch it.",
    "dogs": "Dogs are good friends of people. They love to run and play. A dog can smell things that we can never "
        "smell.",
    "horses": "Horses eat grass and run very fast. They can sleep while they stand. Long ago, people needed them to "
        "travel.",
    "elephants": "Elephants are the largest animals on land. They drink with their long nose. It is said that they "
        "never forget.",
    "whales": "Whales live in the sea, but they are not fish. They must come up to breathe. Some of them sing long "
        "songs.",
    "birds": "Birds have wings and feathers. Most of them can fly. In autumn many birds move to a warm place in the "
        "south.",
    "bread": "Bread is made of flour, water and salt. You mix them, wait for an hour, and bake it in a hot oven.",
    "tea": "Boil some water and pour it over the leaves. Wait for three minutes, but not for more. Then take the "
        "leaves out. Drink it hot with milk, or cold with a slice of lemon and a little sugar.",
    "cheese": "Cheese is made from milk. It can be soft or hard, young or old. The small holes in it come from "
        "bubbles of gas.",
    "apples": "Apples grow on trees and are ripe in autumn. They can be red, green or yellow. People like them in a "
        "pie.",
    "spring": "In spring the days get longer. The snow melts and the first flowers come out. The birds begin to sing "
        "again.",
    "autumn": "In autumn the leaves turn red and yellow. Then they fall from the trees. The nights get long and cold.",
    "sleep": "When we sleep, our body rests and our mind dreams. Children need about ten hours of sleep, and their "
        "parents need eight.",
    "the heart": "The heart is as big as a fist. It beats all day and all night. It moves the blood through our body.",
    "music": "Music is made of sound and time. Some people sing, and some play the piano. It can make us happy or sad.",
    "books": "A book can take you to another world. Some books tell a story, and others teach us how things work.",
    "London": "London is a big city on a river. Millions of people live there. Its red buses and its old clock are "
        "known everywhere.",
    "Africa": "Africa is a very large part of the world. It has deserts, forests and wide rivers. Lions and elephants "
        "live there.",
    "trains": "A train runs on two rails of steel. The first trains had a fire and made a lot of smoke. Today most of "
        "them are quiet.",
    "a fox": "A fox saw some grapes on a high wall. He jumped and jumped, but could not reach them. At last he was "
        "tired. They must be bitter, he said, and he went away without looking back.",
}

# Words that make random sentences, besides the domain's own: frequent, short, and of many sounds.
COMMON = """able above across again age air arm around ask baby ball bank bath beach bed begin behind below bird
birthday boat body book bottle box boy bread bridge bright bring brother build burn bus butter button cake call camp
card care carry catch chair chance change cheap check child church circle city class climb close cloth coat coffee
corner cost could count country cover cup cut dance dark daughter dead deep desk dinner doctor door dream dress drink
drive drop during each ear earth edge egg engine enjoy enough evening every eye face fall family farm father feather
feel fence field fight fill find finger fire fix floor flower food foot forest forget fork forward friend fruit funny
game garden gate gift girl glass glove gold great ground group grow guess guitar hair half hammer hand hang hat head
hear heart help hide hill hole home hope hotel house huge hundred hungry idea inside island jacket job joke judge
juice jump keep key kitchen knee knife lady lake lamp large laugh leaf learn leave letter line listen little long look
lunch machine market match maybe meal meat meet metal middle milk mind mirror money moon morning mother mouth move
much music nail name near neck need new news nice noise nose note number offer oil once only page paint pair paper
parent park part party path pay pen pencil people picture pie piece place plane plant plate play pocket point pool pot
pretty price pull purple put queen question quick rain reach read ready ring river road rock roof room rope round rule
run safe salt sand save school sea seat second shape share sharp shelf ship shirt shoe shop shoulder shout show sign
silver simple sing sister sit skin sleep smile smoke soap song soup space speak spend spoon spring stair stamp stand
star start station stay step stone stop store storm story street strong student such sugar suit sun sure swim table
tail talk taste taxi teach team tell test thank thing think throw thumb ticket tiger time tired today together
tomorrow tooth touch towel town toy train tree trip truck try turn uncle under usual valley very view village visit
voice wait walk wall warm wash watch water wave wear week wheel where wide wife wind window wing wish woman wonder
wood word work world worry write yard year yesterday yet zoo""".split()

# Who, does, what, where: plain sentences to read aloud that answer nothing.
SENTENCES = [
    "my brother|my sister|the teacher|the old man|a young woman|our neighbor|the farmer|her father|the doctor",
    "found|bought|sees|wants|lost|painted|carried|forgot|sold|liked",
    "a blue boat|five fish|the big bag|some brown bread|a pair of shoes|the yellow umbrella|a cup of coffee|"
    "two tall trees|a very old book|the wooden box|a warm coat|three white mice",
    "in the garden|by the river|on Monday morning|at the market|under the bridge|before lunch|last summer|"
    "near the beach|in the kitchen|with a smile|after the storm|for his mother"]


def sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def spoken(text: str) -> str:
    """What can be heard of a text: its words in lower case, with apostrophes, between single spaces."""
    return " ".join(re.sub(r"[^a-z' ]", " ", text.lower()).split())


def items() -> list:
    """(kind, answer, {what carries it: [cores]}, held form of a core as (what carries it, core) or None) of every
    answer."""
    found = []

    def add(kind, answer, **values):
        forms = {carried: [form.format(**values) for form in several] for carried, several in FORMS[kind].items()}
        carried, form = HELD_FORMS[kind]
        found.append((kind, sentence(answer), forms, (carried, form.format(**values))))

    for country, city in CAPITALS.items():
        add("capital", f"the capital of {country} is {city}.", x=country)
    for a in range(1, 10):
        for b in range(1, 6):
            add("plus", f"{NUMBERS[a]} plus {NUMBERS[b]} is {NUMBERS[a + b]}.", a=NUMBERS[a], b=NUMBERS[b])
    for a in range(4, 10):
        for b in range(1, 5):
            add("minus", f"{NUMBERS[a]} minus {NUMBERS[b]} is {NUMBERS[a - b]}.", a=NUMBERS[a], b=NUMBERS[b])
    for word, other in OPPOSITES.items():
        add("opposite", f"the opposite of {word} is {other}.", x=word)
    for kind, names in (("day", DAYS), ("month", MONTHS)):
        for n, name in enumerate(names):
            for side, step in (("after", 1), ("before", -1)):
                add(kind, f"{names[(n + step) % len(names)]} comes {side} {name}.", x=name, side=side)
    for animal, number in LEGS.items():
        add("legs", f"{animal} has {number} legs.", x=animal)
    for animal, sound in SOUNDS.items():
        add("sound", f"{animal} says {sound}.", x=animal)
    for thing, color in COLORS.items():
        add("color", f"{thing} is {color}.", x=thing)
    found += [("fact", answer, {"thing": [thing], "question": [question], "clause": [clause]}, None)
              for answer, (thing, question, clause) in FACTS.items()]
    found += [("talk", answer, {"talk": forms}, None) for answer, forms in TALK.items()]
    found += [("topic", answer, {"topic": [topic]}, None) for topic, answer in TOPICS.items()]
    return found


def phrasings(seed: int = 0, recombined: int = 3) -> list:
    """Every phrasing as {"text", "answer", "kind", "split", "carrier", "core"}. Of each answer's carrier-core pairs
    `recombined` are held out, chosen by the seed; a core keeps at least two carriers."""
    random = np.random.default_rng(seed)
    rows = {}                                               # `spoken` text -> its row; what two pairs spell counts once

    def add(kind, answer, carrier, core, split):
        text = sentence(carrier.format(core))
        row = {"text": text, "answer": answer, "kind": kind, "split": split, "carrier": carrier, "core": core}
        if rows.setdefault(spoken(text), row)["answer"] != answer:
            other = rows[spoken(text)]["answer"]
            raise ValueError(f"{text!r} asks for {other!r} and for {answer!r}: expected one answer")

    for kind, answer, forms, held in items():
        pairs = [(carrier, core) for carried, cores in forms.items() for core in cores for carrier in CARRIERS[carried]]
        pairs = list({spoken(carrier.format(core)): (carrier, core) for carrier, core in pairs}.values())
        left, out = Counter(core for _, core in pairs), set()
        for n in random.permutation(len(pairs)):
            if len(out) < recombined and left[pairs[n][1]] > 3:
                out.add(int(n))
                left[pairs[n][1]] -= 1
        for n, (carrier, core) in enumerate(pairs):
            add(kind, answer, carrier, core, "recombined" if n in out else "train")
        for carried, cores in forms.items():
            for carrier in HELD_CARRIERS[carried]:
                add(kind, answer, carrier, cores[int(random.integers(len(cores)))], "wording")
        if held is not None:
            carried, core = held
            add(kind, answer, CARRIERS[carried][0], core, "wording")
    return list(rows.values())


def typed(text: str, random: np.random.Generator) -> str:
    """A question as people type it: in lower case, without punctuation, or both."""
    text = text if random.random() < 0.3 else text.lower()
    return text if random.random() < 0.3 else text.translate(str.maketrans("", "", string.punctuation.replace("'", "")))


def vocabulary(texts) -> list:
    """The words of some texts, lower-case, in order of the alphabet."""
    return sorted({word for text in texts for word in spoken(text).split()})


def random_strings(count: int, words: list, random: np.random.Generator, least: int = 3, most: int = 10) -> list:
    """`count` strings of `least` to `most` words, 60 % of them out of `words`, the rest common ones: what sentence
    patterns cannot guess."""
    def word():
        source = words if random.random() < 0.6 else COMMON
        return source[int(random.integers(len(source)))]

    return [" ".join(word() for _ in range(random.integers(least, most + 1))) for _ in range(count)]


def plain_sentences(count: int, random: np.random.Generator) -> list:
    """`count` different sentences that answer nothing, such as "The farmer found five fish by the river."."""
    parts, found = [part.split("|") for part in SENTENCES], {}
    while len(found) < count:
        found[sentence(" ".join(str(random.choice(part)) for part in parts)) + "."] = True
    return list(found)
