"""Questions without an answer, made by templates from word lists: far from the mini model's world, and near it.

    far     weather, news, people, food, feelings, orders, code, other languages, nonsense
    near    the world's own forms with unknown things (the capital of a made-up country, the opposite of a noun, sums of
            three numbers or beyond the range), and unknown facts about its countries and animals

For the tests every 6th template and every 5th word of each list are held out. `held` is "words" (trained templates,
held-out words), "forms" (held-out templates, any words) or "" (training).
"""
import functools
import re

import numpy as np

from toy import facts
from toy.forms import CARRIERS, FORMS

LISTS = {name: text.replace("\n", " ").split(", ") for name, text in {
    "place": """\
New York, Chicago, Barcelona, Munich, Milan, Texas, California, Florida, Africa, Europe, Asia, Alaska, Hawaii,
Bavaria, Sydney, Boston, Mumbai, Shanghai, Hamburg, Lyon, Marseille, Naples, Venice, Seville, Osaka, Toronto,
Vancouver, Montreal, Dubai, Istanbul, Rio, Zurich, Geneva, Manchester, Liverpool, Glasgow, Cork, Antarctica,
Scandinavia, South America, North America, Oceania, Siberia, Tibet, Sicily, Crete, Corsica, Ohio, Arizona, Nevada,
Oregon, Utah, Virginia, Los Angeles, San Francisco, Miami, Detroit, Seattle, Denver, Dallas, Houston,
Atlanta, Tuvalu, Palau, Nauru, Kiribati, Vanuatu, Andorra, Liechtenstein, San Marino, Dominica, Grenada, Brunei,
Bolivia, South Africa, Sri Lanka, Myanmar, Greenland, Puerto Rico, Hong Kong, Saint Lucia, Catalonia, Normandy,
Tuscany, Andalusia, Queensland, Quebec, Ontario, the moon, Mars, the sea, the Alps, the world, my village, this town,
Paris, London, Berlin, Rome, Madrid, Tokyo, Moscow""",
    "name": """\
Peter, Mary, Anna, Thomas, Einstein, Newton, Mozart, Beethoven, Bach, Picasso, Napoleon, Caesar, Cleopatra,
Shakespeare, Obama, Lincoln, Washington, Gandhi, Churchill, Darwin, Columbus, Galileo, Plato, Socrates, Aristotle,
Marie Curie, Tesla, Edison, Van Gogh, Rembrandt, Michelangelo, Goethe, Dickens, Tolstoy, Hemingway, Kafka, Elvis,
Madonna, Michael Jackson, the Beatles, Messi, Ronaldo, Federer, Harry Potter, Batman, Superman, Sherlock Holmes,
Robin Hood, Santa Claus, Sarah, David, Lisa, Paul, Susan, John, James, Robert, Linda, Emma, Oliver, Sophie, Daniel,
Laura, Jack, Julia, Martin, Alice""",
    "noun": """\
garden, bottle, bridge, kitchen, guitar, hammer, pencil, basket, ladder, window, pillow, candle, mirror, carpet,
umbrella, lamp, table, spoon, fork, knife, plate, cup, bowl, towel, soap, shirt, shoe, jacket, hat, glove, coat, ring,
letter, book, newspaper, phone, computer, keyboard, camera, radio, engine, wheel, train, ship, plane, truck, taxi,
road, street, market, school, church, hospital, hotel, office, factory, museum, castle, tower, forest, island, beach,
valley, desert, lake, cloud, storm, thunder, shadow, stone, sand, metal, iron, wood, paper, plastic, rubber, cotton,
wool, king, queen, doctor, teacher, farmer, baker, sister, uncle, friend, neighbor, baby, music, dance, song, story,
joke, dream, idea, money, price, ticket, game, ball, doll, robot, machine, number, letter box, cheese, sugar, pepper,
potato, pizza, soup, bread, water, fruit, hair, finger, shoulder, brain, bone, skin, purple, angry, hungry, tired,
lovely, clever, square, sharp, wooden""",
    "animal": """\
zebra, camel, lizard, hippo, rhino, monkey, gorilla, squirrel, hedgehog, badger, beaver, moose, deer, buffalo, llama,
panda, koala, leopard, cheetah, hyena, jackal, weasel, hamster, parrot, eagle, hawk, pigeon, sparrow, peacock,
ostrich, pelican, seagull, shark, dolphin, salmon, trout, eel, jellyfish, lobster, shrimp, snail, slug, caterpillar,
moth, mosquito, wasp, cricket, grasshopper, ladybug, turtle, crocodile, dinosaur, dragon, unicorn, mermaid, walrus,
seal, otter, bat, rat, mole""",
    "food": """\
pizza, pasta, rice, soup, pancakes, a cake, an omelet, sushi, curry, lasagna, bread, a salad, cookies, beer, wine,
chicken, fish, potatoes, tomato sauce, ice cream, a sandwich, noodles, a burger, tacos, steak, beans, jam, yogurt""",
    "time": """\
today, tomorrow, tonight, this week, next week, now, right now, this morning, this evening, on Sunday, next month,
in summer, on Friday, this afternoon, later, at noon, this year, next year, in the morning""",
    "topic": """\
football, politics, the stock market, history, religion, philosophy, chemistry, physics, biology, economics,
space travel, video games, fashion, movies, cooking, gardening, yoga, the internet, artificial intelligence,
computers, cars, love, the war, climate change, bitcoin, medicine, law, art, poetry, tennis, basketball, cricket,
chess, the Romans, the middle ages, dinosaurs, electricity, gravity, atoms, black holes, evolution, languages,
grammar, marriage, school, work, money, travel""",
    "language": """\
German, French, Spanish, Italian, Chinese, Japanese, Latin, Greek, Russian, Arabic,
Dutch, Polish, Turkish, Hindi""",
    "thing": """\
my phone, my keys, my glasses, the door, the light, the lights, the window, the radio, the television, the heating,
the music, the alarm, a taxi, a ticket, a table, a room, a car, a letter, a message, an email, my mother, my brother,
my doctor, the bank, a friend, a new shirt, a present, the computer, the printer, the washing machine, a hotel,
a flight""",
    "title": """\
War and Peace, Romeo and Juliet, Faust, the Bible, Moby Dick, Don Quixote, Harry Potter, the Odyssey, Dracula,
Frankenstein, Oliver Twist, Pride and Prejudice, The Hobbit, Robinson Crusoe, Alice in Wonderland, Macbeth, Othello,
Ulysses""",
    "invention": """\
the telephone, the radio, the wheel, the light bulb, the car, the airplane, the computer, the internet, paper,
gunpowder, the printing press, the bicycle, the camera, the telescope, the steam engine, chocolate, pizza, America,
penicillin""",
    "value": """\
eleven, twelve, thirteen, fourteen, fifteen, sixteen, seventeen, eighteen, nineteen, twenty, thirty, forty, fifty,
sixty, seventy, eighty, ninety, one hundred, two hundred, one thousand, twenty one, twenty five, thirty seven,
forty two, sixty four, ninety nine, one million, thirty three, fifty six, seventy eight, eighty one""",
    "foreign": """\
wie geht es dir, was ist die Hauptstadt von Frankreich, wie spaet ist es, guten Morgen, danke schoen, bonjour,
comment ca va, quelle heure est il, merci beaucoup, je ne sais pas, hola, como estas, que hora es, muchas gracias,
donde esta la estacion, buenos dias, ciao, come stai, grazie mille, dove siamo, buongiorno, hoe gaat het, dank je wel,
goedemorgen, carpe diem, cogito ergo sum, konnichiwa, arigato gozaimasu, sayonara, ni hao, privet, spasibo, kak dela,
merhaba, nasilsin, obrigado, bom dia, tudo bem, jak sie masz, dziekuje, tack sa mycket, hur mar du, kiitos,
was kostet das, ich heisse Peter, je suis fatigue, voulez vous danser, quiero una cerveza, no hablo ingles,
ich liebe dich, je t'aime""",
}.items()}


FAR = """\
how is the weather {time}?|will it rain {time}?|is it cold in {place} {time}?|what is the weather like in {place}?|
what time is it?|what's the time in {place}?|what is the date {time}?|what day is it today?|what year is it?|
what's in the news {time}?|who won the game {time}?|who won the world cup?|who is the president of {place}?|
who is {name}?|who was {name}?|when was {name} born?|when did {name} die?|where does {name} live?|how old is {name}?|
how tall is {name}?|what did {name} do?|is {name} married?|why is {name} famous?|do you like {name}?|
have you met {name}?|call {name}.|how do I cook {food}?|how do you make {food}?|give me a recipe for {food}.|
what is in {food}?|do you like {food}?|I would like {food}, please.|how many calories does {food} have?|
where can I buy {food}?|is {food} healthy?|I am hungry.|what should I eat {time}?|what should I wear {time}?|
what should I do {time}?|what are you doing {time}?|turn on {thing}.|turn off {thing}.|where is {thing}?|
I lost {thing}.|find {thing} for me.|book {thing} for {time}.|how much does {thing} cost?|buy {thing}.|fix {thing}.|
open {thing}.|I need {thing} {time}.|send {thing} to {name}.|set an alarm for {value} minutes.|set a timer.|
remind me to call {name} {time}.|play some music.|play a song by {name}.|sing a song.|sing for me.|dance with me.|
write a poem about {topic}.|write a letter to {name}.|write an email about {topic}.|write a story about {topic}.|
explain {topic} to me.|what do you think about {topic}?|tell me about {topic}.|why is {topic} so difficult?|
I am learning {topic}.|is {topic} important?|who invented {invention}?|who discovered {invention}?|
when was {invention} invented?|how does {invention} work?|who wrote {title}?|what is {title} about?|
have you read {title}?|translate {noun} into {language}.|how do you say {noun} in {language}?|
do you speak {language}?|teach me {language}.|how do I get to {place}?|how far is {place}?|
how far is it from {place} to {place}?|how big is {place}?|where is {place}?|is {place} nice?|
have you been to {place}?|show me a map of {place}.|how many people live in {place}?|what can I see in {place}?|
when does the train to {place} leave?|I live in {place}.|I am from {place}.|I am going to {place} {time}.|
what is a {noun}?|what does {noun} mean?|how do you spell {noun}?|define {noun}.|where can I find a {noun}?|
how much is a {noun}?|how do I fix a {noun}?|why do people need a {noun}?|I have a {noun}.|my {noun} is broken.|
the {noun} is on the {noun}.|is a {noun} bigger than a {noun}?|which is better, a {noun} or a {noun}?|draw a {noun}.|
what is the meaning of life?|is there a god?|do you have feelings?|do you love me?|will you marry me?|are you stupid?|
do you dream?|can you think?|do you have a brother?|what is your favorite color?|what is your favorite {noun}?|
do you like me?|I love you.|I hate you.|shut up.|stop.|be quiet.|go away.|wait.|yes.|no.|maybe.|okay.|sure.|why?|
what?|who?|where?|really?|I am bored.|I am tired.|I am cold.|I am sick.|my head hurts.|I can't sleep.|I am late.|
I am lost.|I am in love with {name}.|what should I name my {animal}?|my {animal} is sick.|do you have a {animal}?|
I saw a {animal} {time}.|can a {animal} swim?|my name is {name}.|what is my name?|how old am I?|where am I?|who am I?|
what did I say?|do you know me?|guess my age.|how much money do I have?|am I beautiful?|what is my job?|
pick a number.|flip a coin.|roll the dice.|tell me a secret.|tell me a lie.|tell me something new.|surprise me.|
what is the best movie?|which movie should I watch {time}?|how do I learn {topic}?|how do I become a {noun}?|
how can I make money?|how do I lose weight?|what is love?|what is time?|write a program.|write code in python.|
what is a variable?|how do I sort a list?|fix my code.|open the browser.|search the internet for {topic}.|
what is your password?|what is the price of gold?|how is the stock market {time}?|when is Christmas?|when is Easter?|
when is the next holiday?|how long does it take to {place}?|when did the war end?|who was the first president?|
when did the Roman empire fall?|who built the pyramids?|what happened in {value}?|how deep is the ocean?|
how far away is the moon?|how fast is light?|how hot is the sun?|how old is the earth?|how heavy is a {animal}?|
why is the sky blue?|why do we sleep?|why do cats purr?|what is the square root of {value}?|
what is {value} percent of {value}?|{foreign}.|{foreign}?|{nonsense}.|{nonsense}?|{words}.|{words}?|the {words}.|
a {words}, please.|what {words}?|how {words}?|who {words}?|why {words}?|{letters}.|{sentence}.|
I think that {sentence}.|did you know that {sentence}?|is it true that {sentence}?"""

NEAR = """\
the population of {country}|the president of {country}|the language of {country}|the currency of {country}|
the flag of {country}|the largest city in {country}|the largest river in {country}|the king of {country}|
the size of {country}|the highest mountain in {country}|the weather in {country}|the neighbor of {country}|
the national dish of {country}|the history of {country}|the government of {country}|the country of {city}|
the mayor of {city}|the age of {city}|a synonym of {known}|another word for {known}|the meaning of {known}|
a rhyme for {known}|the German word for {known}|the plural of {known}|the first letter of {known}|
{small} times {small}|{small} divided by {small}|{small} plus {small} plus {small}|
{small} minus {small} minus {small}|{small} plus {small} minus {small}|{value} plus {small}|{small} plus {value}|
{value} minus {small}|{value} plus {value}|{value} minus {value}|{value} times {small}|half of {small}|
the double of {small}|the square of {small}|the square root of {small}|{less} minus {more}|
the sum of {value} and {small}|the sum of {small}, {small} and {small}|the product of {small} and {small}|
the difference of {value} and {small}|the day two days after {day}|two days after {day}|three days before {day}|
the day between {day} and {day}|the date of {day}|two months after {month}|the month between {month} and {month}|
the number of days in {month}|the weather in {month}|the first day of {month}|the middle of the week|
the day after {month}|the month after {day}|the day before {thing}|the day after {name}|the month before {noun}|
the season after {month}|the season before {day}|the age of a {beast}|the weight of a {beast}|the food of a {beast}|
the name of a young {beast}|the home of a {beast}|the number of eyes of a {beast}|the number of teeth of a {beast}|
the number of wings of a {beast}|the speed of a {beast}|the size of a {beast}|the smell of a {noun}|
the taste of a {noun}|the shape of a {noun}|the price of a {noun}|the largest {noun}|the smallest {noun}|
the oldest {noun}|the fastest {noun}|the highest {noun}|the best {noun}|the heaviest animal|the smallest animal|
the slowest animal|the largest lake|the longest bridge|the largest desert|the hottest planet|
the number of {noun}s in a {noun}|the number of sides of a {noun}|the number of wheels on a {noun}|
the number of days in a {noun}|the number of strings of a {noun}|the writer of {title}|the painter of {title}|
the inventor of {invention}"""

ODD = {                                     # kind -> things that are not in its table
    "capital": "{made}|{made}|{made}|{place}|{place}|the {noun}|{name}|a {animal}|{known}|{month}|{words}",
    "opposite": "{noun}|{noun}|{animal}|{name}|{country}|{made}|{small}|{month}|a {noun}|{foreign}",
    "legs": "a {noun}|a {animal}|a {animal}|{name}|{country}|a {blob}|{things}",
    "sound": "a {noun}|a {animal}|a {animal}|{name}|{country}|a {blob}|{things}",
    "color": "a {noun}|the {noun}|a {animal}|{name}|{country}|a {blob}|{things}|{small}",
    "day": "{month}|{season}|{name}|{made}|{small}|{country}|the {noun}",
    "month": "{day}|{season}|{name}|{made}|{small}|{country}|the {noun}",
    "season": "{day}|{month}|{name}|{made}|{small}|the {noun}",
    "topic": "{noun}s|{name}|{country}|{place}|the {noun}|{topic}|{made}|{known}|{food}|a {animal}|{animal}s",
}
TABLES = {"capital": facts.CAPITALS, "legs": facts.LEGS, "sound": facts.SOUNDS, "color": facts.COLORS,
          "topic": facts.TOPICS, "opposite": [*facts.OPPOSITES, *facts.OPPOSITES.values()]}
MOST_WORDS = 13                                             # of a spoken question


@functools.cache
def templates(text: str, forms: bool) -> list:
    """The templates of a list: the held-out ones (every 6th) for `forms`, else all others."""
    return [one for n, one in enumerate(text.replace("\n", "").split("|")) if (n % 6 == 5) == forms]


def letters(word: str) -> str:
    return "".join(c for c in word.lower() if c.isalpha())


def shortened(word: str) -> set:
    """The word, and the word without one or two of its letters. If two words share none of these, more than two typos
    lie between them."""
    one = {word[:n] + word[n + 1:] for n in range(len(word))}
    return {word} | one | {short[:n] + short[n + 1:] for short in one for n in range(len(short))}


ONSETS = "b c ch d f g h j k l m n p r s sh t v w z br dr fl gr kl pl st tr".split()
VOWELS = "a e i o u a e i o ai ou ee oo".split()
ENDS = "l n r s t m k nd rt x".split()
LAST = ["ia", "land", "istan", "a", "o", "ina", "burg", "ey", "or", "us", "aria", "on", "", ""]
KNOWN = set().union(*(shortened(letters(word)) for word in (
    *facts.CAPITALS, *facts.CAPITALS.values(), *facts.OPPOSITES, *facts.OPPOSITES.values())))


def made_up(random: np.random.Generator) -> str:
    """A made-up name, such as "Trolimia", that is no known one with two typos."""
    pick = lambda several: several[int(random.integers(len(several)))]
    while True:
        name = "".join(pick(ONSETS) + pick(VOWELS) + (pick(ENDS) if random.random() < 0.3 else "")
                       for _ in range(random.integers(1, 4))) + pick(LAST)
        if 4 <= len(name) <= 11 and not shortened(name) & KNOWN:
            return name.capitalize()


def filler(slot: str, random: np.random.Generator, held: str) -> str:
    """A word for a slot of a template. held: "words" for held-out words, "forms" for any, "" for trained ones."""
    def pick(several):
        several = list(several)
        if held != "forms" and len(several) >= 10:
            several = [one for n, one in enumerate(several) if (n % 5 == 4) == (held == "words")]
        return several[int(random.integers(len(several)))]

    def any_of(several):
        return list(several)[int(random.integers(len(several)))]
    if slot in LISTS:
        return pick(LISTS[slot])
    if slot in ("words", "nonsense"):
        source = facts.COMMON if slot == "words" else [letters(made_up(random)) for _ in range(5)]
        return " ".join(any_of(source) for _ in range(random.integers(1, 7)))
    if slot == "letters":
        return "".join(any_of("abcdefghijklmnopqrstuvwxyz") for _ in range(random.integers(1, 10)))
    if slot in ("less", "more"):
        return any_of(facts.NUMBERS[:6] if slot == "less" else facts.NUMBERS[6:11])
    return {"made": lambda: made_up(random), "blob": lambda: made_up(random).lower(),
            "country": lambda: any_of(facts.CAPITALS),
            "city": lambda: any_of(facts.CAPITALS.values()), "known": lambda: any_of(TABLES["opposite"]),
            "small": lambda: any_of(facts.NUMBERS[:11]), "day": lambda: any_of(facts.DAYS),
            "month": lambda: any_of(facts.MONTHS), "season": lambda: any_of(facts.SEASONS),
            "beast": lambda: any_of([*facts.LEGS][1:]).split(" ", 1)[1],
            "things": lambda: any_of([*facts.LEGS, *facts.SOUNDS, *facts.COLORS]),
            "sentence": lambda: facts.plain_sentences(1, random)[0][:-1].lower()}[slot]()


def filled(template: str, random: np.random.Generator, held: str) -> str:
    """A template with a word in each of its slots."""
    text = re.sub(r"{(\w+)}", lambda slot: filler(slot[1], random, held), template)
    return re.sub(r"\ba(?= [aeiou])", "an", text)


def odd(kind: str, random: np.random.Generator, held: str = "") -> str:
    """Something to ask for in the forms of a kind that is not in its table."""
    several = ODD[kind].split("|")
    while True:
        x = filled(several[int(random.integers(len(several)))], random, held)
        if x not in TABLES.get(kind, ()):
            return x


def question(random: np.random.Generator, held: str = "") -> tuple:
    """(kind, carrier, core) of a question without an answer. domain.phrasings removes those that have one by chance."""
    pick = lambda several: several[int(random.integers(len(several)))]
    if random.random() < 0.6:
        core = filled(pick(templates(FAR, held == "forms")), random, held)
        return "far", pick(CARRIERS["talk"] if random.random() < 0.3 else ["{}"]), core
    if random.random() < 0.4 or held == "forms":
        core = filled(pick(templates(NEAR, held == "forms")), random, held)
        return "near", pick(CARRIERS["thing"]), core
    kind = pick(list(ODD))
    x = odd(kind, random, held)
    if kind == "topic":
        return "near", pick(CARRIERS["topic"]), x
    carried, forms = pick(list(FORMS[kind].items()))
    side = pick(["after", "before"])
    core = pick([form for form in forms if "{xs}" not in form]).format(
        x=x, unit=kind, side=side, follows={"after": "follows", "before": "precedes"}[side])
    return "near", pick(CARRIERS[carried]), core


def questions(count: int, random: np.random.Generator, held: str = "") -> list:
    """`count` different (kind, carrier, core)."""
    found = {}
    while len(found) < count:
        kind, carrier, core = question(random, held)
        if len(carrier.format(core).split()) <= MOST_WORDS:
            found.setdefault(letters(carrier.format(core)), (kind, carrier, core))
    return list(found.values())


def symbols(count: int, random: np.random.Generator) -> list:
    """`count` texts that only a keyboard makes: code, addresses, numbers, random keys."""
    pick = lambda several: several[int(random.integers(len(several)))]
    keys = "abcdefghijklmnopqrstuvwxyz0123456789 ,.?!:;+-*/=()[]{}<>#@&%$_'\""
    word = lambda: pick(facts.COMMON)
    number = lambda: str(int(random.integers(10 ** int(random.integers(1, 7)))))
    makes = (lambda: "".join(pick(keys) for _ in range(random.integers(1, 16))), number, lambda: pick("?!.,:;#@") * 3,
             lambda: f"print('{word()}')", lambda: f"def {word()}({word()}): return {number()}",
             lambda: f"https://www.{word()}.com/{word()}", lambda: f"{word()}@{word()}.com", lambda: f"<{word()}>",
             lambda: f"SELECT * FROM {word()};", lambda: f"{word()} = {number()}", lambda: f"{number()} {word()}s",
             lambda: f"{number()} + {number()}{number()}", lambda: f"{number()}{number()} * {number()}",
             lambda: f"import {word()}", lambda: f"/{word()}/{word()}.txt",
             lambda: pick([":-)", ":)", "<3", ":(", ";)"]))
    return [pick(makes)() for _ in range(count)]
