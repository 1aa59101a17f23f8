"""Wordings of the questions: carriers x forms, "could you tell me {}, please?" x "the capital of {x}" (domain.py)."""

# ---- carriers, by type: for a noun phrase, an indirect question, a direct one, an order, a topic, small talk ----

CARRIERS = {
    "thing": ["what is {}?", "what's {}?", "tell me {}.", "please tell me {}.", "do you know {}?",
              "can you tell me {}?", "could you tell me {}, please?", "give me {}.", "I want to know {}.",
              "I would like to know {}.", "so what is {}?", "hey, what is {}?", "now tell me {}.",
              "what is {}, please?", "{}?", "{}, please.", "name {}.", "let me know {}.", "I need to know {}.",
              "I'd like to know {}.", "tell me what {} is.", "do you know what {} is?", "can you tell me what {} is?",
              "I wonder what {} is.", "okay, what is {}?", "well, what is {}?", "what is {} again?",
              "what was {} again?", "hello, what is {}?", "excuse me, what is {}?", "quick question, what is {}?",
              "could you say {}?", "I am looking for {}.", "any idea what {} is?", "and what is {}?",
              "what do you think {} is?", "say {}.", "I forgot {}.", "can you name {}?", "find {}."],
    "clause": ["tell me {}.", "please tell me {}.", "do you know {}?", "can you tell me {}?",
               "could you tell me {}, please?", "I want to know {}.", "I would like to know {}.", "now tell me {}.",
               "let me know {}.", "I need to know {}.", "I'd like to know {}.", "I wonder {}.", "can you say {}?",
               "excuse me, do you know {}?", "any idea {}?", "I forgot {}.", "say {}.", "please say {}."],
    "question": ["{}?", "so {}?", "hey, {}?", "{}, please?", "now {}?", "tell me, {}?", "okay, {}?", "well, {}?",
                 "excuse me, {}?", "quick question, {}?", "and {}?", "hi, {}?", "{} again?"],
    "order": ["{}.", "please {}.", "can you {}?", "could you {}, please?", "now {}.", "I want you to {}.",
              "{} for me."],
    "topic": ["tell me about {}.", "please tell me about {}.", "what do you know about {}?",
              "what can you tell me about {}?", "can you tell me about {}?", "could you tell me about {}, please?",
              "talk about {}.", "I want to know about {}.", "I would like to know about {}.",
              "I want to hear about {}.", "say something about {}.", "tell me something about {}.",
              "now tell me about {}.", "do you know {}?", "let me know about {}.", "I'd like to hear about {}.",
              "do you know anything about {}?", "tell me a bit about {}.", "can you say something about {}?",
              "I need to know something about {}.", "okay, tell me about {}.", "hello, tell me about {}."],
    "talk": ["{}", "hey, {}", "hello, {}", "so, {}", "okay, {}", "well, {}"],
}
# Never trained, for the split `wording`. Each of their words is trained elsewhere (a test checks this).
HELD_CARRIERS = {
    "thing": ["could you please tell me {}?", "would you tell me {}?", "can you give me {}?", "now what is {}?"],
    "clause": ["could you please tell me {}?", "would you tell me {}?", "I want you to tell me {}."],
    "question": ["hello, {}?", "please, {}?"],
    "order": ["would you {}?"],
    "topic": ["could you please tell me about {}?", "would you tell me about {}?", "please say something about {}.",
              "can you talk about {}?"],
    "talk": ["now, {}"],
}

# ---- kinds: the forms of a core, by type of carrier; HELD_FORMS are in the split `wording` only ---------------------

ORDER = {"thing": ["the {unit} {side} {x}", "the {unit} that comes {side} {x}", "the {unit} right {side} {x}"],
         "clause": ["which {unit} comes {side} {x}", "what {unit} comes {side} {x}"],
         "question": ["which {unit} comes {side} {x}", "what {unit} comes {side} {x}", "which {unit} is {side} {x}",
                      "what comes {side} {x}", "which {unit} is right {side} {x}", "which {unit} {follows} {x}",
                      "what {unit} {follows} {x}"]}
FORMS = {
    "capital": {"thing": ["the capital of {x}", "the capital city of {x}", "{x}'s capital"],
                "question": ["which city is the capital of {x}", "what city is {x}'s capital"],
                "clause": ["which city is the capital of {x}", "what city is the capital city of {x}"]},
    "plus": {"thing": ["{a} plus {b}", "the sum of {a} and {b}", "the result of {a} plus {b}"],
             "clause": ["how much {a} plus {b} is", "what {a} and {b} make"],
             "question": ["how much is {a} plus {b}", "what does {a} plus {b} make", "how much is {a} and {b}",
                          "what do you get if you add {a} and {b}", "what do {a} and {b} make"],
             "order": ["add {a} and {b}"]},
    "minus": {"thing": ["{a} minus {b}", "{a} take away {b}", "the result of {a} minus {b}"],
              "clause": ["how much {a} minus {b} is", "what {a} minus {b} makes"],
              "question": ["how much is {a} minus {b}", "what does {a} minus {b} make",
                           "how much is {a} take away {b}", "what do you get if you take {b} from {a}"],
              "order": ["subtract {b} from {a}", "take {b} away from {a}"]},
    "opposite": {"thing": ["the opposite of {x}", "the opposite of the word {x}", "the antonym of {x}",
                           "the word opposite to {x}"],
                 "question": ["which word is the opposite of {x}", "what word means the opposite of {x}",
                              "what is opposite to {x}"],
                 "clause": ["what the opposite of {x} is"]},
    "day": ORDER, "month": ORDER, "season": ORDER,
    "legs": {"thing": ["the number of legs of {x}", "the number of legs that {x} has"],
             "clause": ["how many legs {x} has"],
             "question": ["how many legs does {x} have", "how many legs are there on {x}", "how many legs has {x}",
                          "how many legs do {xs} have"]},
    "sound": {"thing": ["the sound of {x}", "the sound that {x} makes", "the noise that {x} makes"],
              "clause": ["what {x} says", "what noise {x} makes"],
              "question": ["what does {x} say", "what sound does {x} make", "what noise does {x} make",
                           "what do {xs} say", "how does {x} sound", "what sound do {xs} make"]},
    "color": {"thing": ["the color of {x}", "the color that {x} has"], "clause": ["what color {x} is"],
              "question": ["what color is {x}", "which color is {x}", "what is the color of {x}",
                           "what color are {xs}", "which color does {x} have"]},
}
HELD_FORMS = {
    "capital": ("question", "what city is the capital of {x}"), "plus": ("question", "how much does {a} plus {b} make"),
    "minus": ("question", "how much does {a} minus {b} make"),
    "opposite": ("question", "which word means the opposite of {x}"),
    "day": ("question", "what day is {side} {x}"), "month": ("question", "what month is {side} {x}"),
    "season": ("question", "what season is {side} {x}"), "legs": ("thing", "the number of legs on {x}"),
    "sound": ("clause", "what sound {x} makes"), "color": ("question", "what color does {x} have"),
}
