"""The tables of the mini model's world: known facts, and words for other texts. domain.py makes questions of them."""
import numpy as np

NUMBERS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
           "seventeen eighteen nineteen twenty").split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
SEASONS = "spring summer autumn winter".split()


def table(text: str) -> dict:
    """"a: b, c: d" -> {"a": "b", "c": "d"}."""
    return dict(pair.split(": ") for pair in text.replace("\n", " ").split(", "))


# Countries with ASCII names and one capital. Small islands are left out: they serve as unknown (outside.py).
CAPITALS = table("""\
France: Paris, Germany: Berlin, Italy: Rome, Spain: Madrid, Portugal: Lisbon, Greece: Athens, Austria: Vienna,
Poland: Warsaw, Sweden: Stockholm, Norway: Oslo, Finland: Helsinki, Denmark: Copenhagen, Ireland: Dublin,
Belgium: Brussels, Hungary: Budapest, Russia: Moscow, Japan: Tokyo, Egypt: Cairo, Kenya: Nairobi, Cuba: Havana,
Peru: Lima, Canada: Ottawa, Chile: Santiago, Iraq: Baghdad, Scotland: Edinburgh, England: London, Turkey: Ankara,
Nepal: Kathmandu, Lebanon: Beirut, Australia: Canberra, Afghanistan: Kabul, Albania: Tirana, Algeria: Algiers,
Angola: Luanda, Argentina: Buenos Aires, Armenia: Yerevan, Azerbaijan: Baku, Bahrain: Manama, Bangladesh: Dhaka,
Barbados: Bridgetown, Belarus: Minsk, Belize: Belmopan, Bhutan: Thimphu, Bosnia: Sarajevo, Botswana: Gaborone,
Brazil: Brasilia, Britain: London, Bulgaria: Sofia, Burundi: Gitega, Cambodia: Phnom Penh, Cameroon: Yaounde,
Chad: Ndjamena, China: Beijing, Colombia: Bogota, Congo: Kinshasa, Costa Rica: San Jose, Croatia: Zagreb,
Cyprus: Nicosia, Djibouti: Djibouti, Ecuador: Quito, El Salvador: San Salvador, Eritrea: Asmara, Estonia: Tallinn,
Ethiopia: Addis Ababa, Fiji: Suva, Gabon: Libreville, Gambia: Banjul, Georgia: Tbilisi, Ghana: Accra,
Guatemala: Guatemala City, Guinea: Conakry, Guyana: Georgetown, Haiti: Port au Prince, Honduras: Tegucigalpa,
Iceland: Reykjavik, India: New Delhi, Indonesia: Jakarta, Iran: Tehran, Jamaica: Kingston, Jordan: Amman,
Kazakhstan: Astana, Kosovo: Pristina, Kuwait: Kuwait City, Kyrgyzstan: Bishkek, Laos: Vientiane, Latvia: Riga,
Lesotho: Maseru, Liberia: Monrovia, Libya: Tripoli, Lithuania: Vilnius, Luxembourg: Luxembourg,
Macedonia: Skopje, Madagascar: Antananarivo, Malawi: Lilongwe, Malaysia: Kuala Lumpur, Mali: Bamako, Malta: Valletta,
Mauritania: Nouakchott, Mexico: Mexico City, Moldova: Chisinau, Monaco: Monaco, Mongolia: Ulan Bator,
Montenegro: Podgorica, Morocco: Rabat, Mozambique: Maputo, Namibia: Windhoek, New Zealand: Wellington,
Nicaragua: Managua, Niger: Niamey, Nigeria: Abuja, North Korea: Pyongyang, Oman: Muscat, Pakistan: Islamabad,
Panama: Panama City, Paraguay: Asuncion, Qatar: Doha, Romania: Bucharest, Rwanda: Kigali, Samoa: Apia,
Saudi Arabia: Riyadh, Senegal: Dakar, Serbia: Belgrade, Sierra Leone: Freetown, Singapore: Singapore,
Slovakia: Bratislava, Slovenia: Ljubljana, Somalia: Mogadishu, South Korea: Seoul, South Sudan: Juba, Sudan: Khartoum,
Suriname: Paramaribo, Switzerland: Bern, Syria: Damascus, Taiwan: Taipei, Tajikistan: Dushanbe, Tanzania: Dodoma,
Thailand: Bangkok, Togo: Lome, Tonga: Nukualofa, Tunisia: Tunis, Turkmenistan: Ashgabat, Uganda: Kampala,
Ukraine: Kiev, Uruguay: Montevideo, Uzbekistan: Tashkent, Venezuela: Caracas, Vietnam: Hanoi, Wales: Cardiff,
Yemen: Sanaa, Zambia: Lusaka, Zimbabwe: Harare, the Netherlands: Amsterdam, the Philippines: Manila,
the United States: Washington, the Bahamas: Nassau, the Vatican: Vatican City""")

# Asked for the first word, and for the second except for first words in ONE_WAY.
OPPOSITES = table("""\
hot: cold, big: small, tall: short, fast: slow, happy: sad, day: night, up: down, left: right, open: closed,
full: empty, hard: soft, wet: dry, old: young, early: late, good: bad, black: white, rich: poor, heavy: light,
loud: quiet, clean: dirty, strong: weak, true: false, first: last, push: pull, love: hate, north: south, east: west,
winter: summer, front: back, sweet: bitter, thick: thin, war: peace, always: never, buy: sell, win: lose,
high: low, long: short, dark: light, new: old, near: far, inside: outside, begin: end, cheap: expensive, wide: narrow,
easy: difficult, wrong: right, yes: no, deep: shallow, give: take, more: less, brave: afraid, smooth: rough,
large: little, alive: dead, above: below, on: off, in: out, come: go, before: after, question: answer, find: lose""")
ONE_WAY = ("heavy", "long", "new", "wrong", "find")

LEGS = table("""\
a spider: eight, a dog: four, an ant: six, a bird: two, a fish: no, a horse: four, a snake: no, a bee: six,
a person: two, a frog: four, a chicken: two, a crab: ten, a table: four, an elephant: four, a cat: four, a cow: four,
a pig: four, a sheep: four, a goat: four, a duck: two, a fly: six, a butterfly: six, a beetle: six, a lion: four,
a tiger: four, a bear: four, a mouse: four, a rabbit: four, a worm: no, a whale: no, a penguin: two,
a kangaroo: two, a chair: four, a scorpion: eight, a giraffe: four""")
SOUNDS = table("""\
a cow: moo, a cat: meow, a sheep: baa, a duck: quack, a pig: oink, a lion: roar, an owl: hoot, a mouse: squeak,
a donkey: hee haw, a crow: caw, a wolf: howl, a goose: honk, a turkey: gobble, a puppy: woof, a clock: tick tock,
a bell: ding dong, a dog: woof, a bee: buzz, a snake: hiss, a frog: ribbit, a bird: tweet, a horse: neigh,
a chicken: cluck, a rooster: cock a doodle doo""")
COLORS = table("""\
grass: green, snow: white, the sky: blue, blood: red, a banana: yellow, coal: black, an orange: orange,
chocolate: brown, a flamingo: pink, silver: gray, milk: white, a tomato: red, a lemon: yellow, a carrot: orange,
a plum: purple, a pea: green, the sun: yellow, the sea: blue, a strawberry: red, a cherry: red, a frog: green,
a polar bear: white, an elephant: gray, a pumpkin: orange, salt: white, a cucumber: green, a swan: white,
a raven: black, a leaf: green, a fire truck: red""")
PLURALS = {"a person": "people", "a fish": "fish", "a sheep": "sheep", "a mouse": "mice", "a wolf": "wolves",
           "a goose": "geese", "a leaf": "leaves", "a tomato": "tomatoes"}


def plural(thing: str) -> str | None:
    """"a dog" -> "dogs"; None without an article "a" or "an"."""
    article, _, noun = thing.partition(" ")
    if article not in ("a", "an"):
        return None
    ending = noun[:-1] + "ies" if noun[-1] == "y" and noun[-2] not in "aeo" else noun + "s"
    return PLURALS.get(thing, ending)


# More counts besides FACTS: (thing, number, parts).
COUNTS = (("a pentagon", "five", "sides"), ("a hexagon", "six", "sides"), ("an octagon", "eight", "sides"),
          ("a circle", "no", "corners"), ("a cube", "six", "faces"), ("a rectangle", "four", "corners"),
          ("a bicycle", "two", "wheels"), ("a tricycle", "three", "wheels"), ("a foot", "five", "toes"),
          ("a person", "ten", "fingers"), ("a face", "two", "eyes"), ("a guitar", "six", "strings"),
          ("a violin", "four", "strings"), ("a decade", "ten", "years"), ("a century", "one hundred", "years"),
          ("a year", "four", "seasons"), ("a dozen", "twelve", "pieces"), ("a football team", "eleven", "players"),
          ("the alphabet", "twenty six", "letters"), ("the sun", "eight", "planets"))

# Answer: (noun phrase, direct question, indirect question).
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
    "The longest river is the Nile.": ("the longest river", "which river is the longest", "which river is the longest"),
    "The largest country is Russia.": (
        "the largest country", "which country is the largest", "which country is the largest"),
    "The smallest country is the Vatican.": (
        "the smallest country", "which country is the smallest", "which country is the smallest"),
    "The largest continent is Asia.": (
        "the largest continent", "which continent is the largest", "which continent is the largest"),
    "The smallest planet is Mercury.": (
        "the smallest planet", "which planet is the smallest", "which planet is the smallest"),
    "The smallest ocean is the Arctic.": (
        "the smallest ocean", "which ocean is the smallest", "which ocean is the smallest"),
    "The Mona Lisa was painted by Leonardo.": (
        "the painter of the Mona Lisa", "who painted the Mona Lisa", "who painted the Mona Lisa"),
    "Milk comes from cows.": ("the animal that gives milk", "where does milk come from", "where milk comes from"),
    "Eggs come from hens.": ("the animal that lays eggs", "where do eggs come from", "where eggs come from"),
    "The king of the animals is the lion.": (
        "the king of the animals", "who is the king of the animals", "who is the king of the animals"),
}
TALK = {
    "Hello! How can I help you?": ["hello.", "hi.", "hi there.", "hello there.", "hello you.", "nice to meet you.",
                                    "hello Mini.", "hi Mini.", "good afternoon.", "good day."],
    "Good morning! Did you sleep well?": ["good morning.", "good morning to you.", "a good morning to you.",
                                          "I wish you a good morning."],
    "Good evening! How was your day?": ["good evening.", "good evening to you.", "a good evening to you.",
                                        "I wish you a good evening."],
    "Good night! Sleep well.": ["good night.", "good night to you.", "I go to bed.", "I want to go to bed now."],
    "Goodbye! See you soon.": ["goodbye.", "bye bye.", "see you soon.", "goodbye to you.", "I have to go now."],
    "You are welcome.": ["thank you.", "thanks.", "thank you very much.", "many thanks.", "thanks for your help."],
    "I am fine, thank you. How are you?": ["how are you?", "how do you do?", "how do you feel?", "are you well?",
                                            "how are you doing?", "how are you today?", "how is it going?",
                                            "how do you feel today?"],
    "I am a small model that can hear, speak and show a face.": [
        "who are you?", "what are you?", "tell me who you are.", "please tell me who you are."],
    "My name is Mini.": ["what is your name?", "what's your name?", "tell me your name.", "do you have a name?",
                         "please tell me your name."],
    "I can answer short questions about the world.": ["what can you do?", "tell me what you can do.",
                                                      "how can you help me?", "what do you know?",
                                                      "what can I ask you?", "help.", "help me.", "I need help.",
                                                      "what questions can you answer?", "what can you tell me?"],
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

# Words for random strings, besides the domain's own: frequent, short, with many different sounds.
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

# Subject, verb, object, adverbial: plain sentences to read aloud that are no answers.
SENTENCES = [
    "my brother|my sister|the teacher|the old man|a young woman|our neighbor|the farmer|her father|the doctor",
    "found|bought|sees|wants|lost|painted|carried|forgot|sold|liked",
    "a blue boat|five fish|the big bag|some brown bread|a pair of shoes|the yellow umbrella|a cup of coffee|"
    "two tall trees|a very old book|the wooden box|a warm coat|three white mice",
    "in the garden|by the river|on Monday morning|at the market|under the bridge|before lunch|last summer|"
    "near the beach|in the kitchen|with a smile|after the storm|for his mother"]


def sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def plain_sentences(count: int, random: np.random.Generator) -> list:
    """`count` different sentences that are no answers, such as "The farmer found five fish by the river."."""
    parts, found = [part.split("|") for part in SENTENCES], {}
    while len(found) < count:
        found[sentence(" ".join(str(random.choice(part)) for part in parts)) + "."] = True
    return list(found)
