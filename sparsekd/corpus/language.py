"""Which language a document is in: its script, then a vote of function words where several languages share one.

No model and no dictionary: the same text has the same answer everywhere, and what the vote does not settle (lists,
code, a language that is not here) is undetermined.
"""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections import Counter

UNDETERMINED = "undetermined"
SAMPLE = 4_000
"""Characters of a document that are looked at, from its beginning."""
_LEAST_LETTERS = 20
_MOST_OF_THEM = 0.6
_LEAST_SHARE = 0.12
"""Of the words, that must be the language's own function words; prose has 0.2 to 0.5, code less."""
_LEAST_WORDS = 3
"""Different ones among them, of two letters or more: one-letter names in code are words of many languages."""
_LEAD = 1.3
"""The winner's share of the words over the runner-up's: below it Danish and Norwegian are not told apart."""

# Start of a range of code points → its script; "" is none. Letters alone are counted.
_RANGES = [
    (0x0000, "Latin"), (0x0250, ""), (0x0370, "Greek"), (0x0400, "Cyrillic"), (0x0530, "Armenian"), (0x0590, "Hebrew"),
    (0x0600, "Arabic"), (0x0700, ""), (0x0750, "Arabic"), (0x0780, ""), (0x0900, "Devanagari"), (0x0980, "Bengali"),
    (0x0A00, "Gurmukhi"), (0x0A80, "Gujarati"), (0x0B00, "Odia"), (0x0B80, "Tamil"), (0x0C00, "Telugu"),
    (0x0C80, "Kannada"), (0x0D00, "Malayalam"), (0x0D80, "Sinhala"), (0x0E00, "Thai"), (0x0E80, "Lao"), (0x0F00, ""),
    (0x1000, "Myanmar"), (0x10A0, "Georgian"), (0x1100, "Hangul"), (0x1200, "Ethiopic"), (0x13A0, ""),
    (0x1780, "Khmer"), (0x1800, ""), (0x1E00, "Latin"), (0x1F00, "Greek"), (0x2000, ""), (0x3040, "Kana"),
    (0x3100, ""), (0x3400, "Han"), (0xA000, ""), (0xAC00, "Hangul"), (0xD7B0, ""), (0xF900, "Han"), (0xFB00, ""),
    (0xFB1D, "Hebrew"), (0xFB50, "Arabic"), (0xFE00, ""), (0xFE70, "Arabic"), (0xFEFF, ""), (0x20000, "Han"),
    (0x30000, ""),
]  # fmt: skip
_STARTS = [start for start, _ in _RANGES]

# Scripts that one language writes, or nearly.
_ALONE = {
    "Greek": "Greek", "Armenian": "Armenian", "Hebrew": "Hebrew", "Tamil": "Tamil", "Telugu": "Telugu",
    "Kannada": "Kannada", "Malayalam": "Malayalam", "Sinhala": "Sinhala", "Thai": "Thai", "Lao": "Lao",
    "Georgian": "Georgian", "Hangul": "Korean", "Khmer": "Khmer", "Gujarati": "Gujarati", "Odia": "Odia",
    "Myanmar": "Burmese", "Han": "Chinese",
}  # fmt: skip

# Frequent function words. A word of several languages counts for each by its share.
_WORDS = {
    "Latin": {
        "English": "the of and to in is that for it was as with be by on not this are or from at which have has an "
        "they but were all you his her he she their been one would there when who will more if no can we",
        "German": "der die das und in den von zu mit sich des auf für ist im dem nicht ein eine als auch es an werden "
        "aus er hat dass sie nach wird bei einer um am sind noch wie einem über so zum war haben oder ich wir man",
        "French": "de la le et les des en un du une que est pour qui dans par sur pas au plus ne se ce il sont avec "
        "son sa aux ou cette elle être mais nous ont leur ses comme tout vous ils je à y été aussi",
        "Spanish": "de la que el en y los del se las por un para con no una su al lo como más o pero sus le ha este "
        "sí porque esta son entre cuando muy sin sobre también me hasta hay donde quien desde es era fue ser",
        "Italian": "di e il la che in a per un è del della non si una con le da dei al sono come gli i lo alla più "
        "nel delle anche o ma ha ad se nella dal suo ogni questo essere dell all degli tra stato",
        "Portuguese": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele "
        "das tem à seu sua ou ser quando muito há nos já está eu também só pelo pela até isso são às",
        "Dutch": "de van het een en in is dat op te zijn met voor niet aan die er om ook als dan maar bij of uit nog "
        "door naar heeft hij ze wordt worden deze dit was kan wel geen tot over hebben meer ik je heb",
        "Swedish": "och att det i en som på är av för med den till inte har de ett om var han jag så men från vid "
        "eller ut vi kan när år sig under efter hon nu mot alla andra där skall ska sin sitt utan hade",
        "Danish": "og i at det en den til er som på de med han af for ikke der var mig sig men et har om vi min havde "
        "ham hun nu over da fra du ud sin dem os op man hans hvor eller hvad skal alle blev være kan jeg",
        "Norwegian": "og i det er til som en på for å av at har med de ikke den han om et fra men så var ble meg seg "
        "vi kan skal hun nå over da ved ut du dem man hvor eller alle bli blir være etter også jeg hva",
        "Finnish": "ja on ei että se oli hän ovat kun mutta myös tai jos kuin olla niin mukaan joka jotka sen hänen "
        "tämä vain jo nyt mitä ole sitä tässä sekä voi joita kaikki kanssa ennen jälkeen siitä minä en",
        "Polish": "i w na z że się do nie jest o jak za po od przez to ale co dla ma być są oraz jego czy tym tego już "
        "tylko który która które przy może był była jako we tak ich jej bez pod",
        "Czech": "a se v na je že s z do o k i ve pro za by ale si po jako který která které jsou od byl být bylo to "
        "nebo tak při jeho jen už co má také podle však jejich více není",
        "Romanian": "și de în la a cu pe care din nu o un este să pentru mai că au fost al ale sau ce prin lui dar se "
        "fi cele dintre sunt are când după această acest astfel orice ei sa său",
        "Hungarian": "a az és hogy nem is egy ez meg azt el volt de ha csak már mint vagy van még kell ki ezt minden "
        "lehet mert nagyon után olyan ezek aki amely által ami így azok során amelyek",
        "Turkish": "ve bir bu da de için ile olarak çok daha olan gibi ne o en kadar sonra ise ya var her değil mi ama "
        "hem olduğu tarafından ancak göre bütün şey veya diye ki",
        "Indonesian": "yang dan di itu dengan untuk tidak ini dari dalam akan pada juga saya ke karena tersebut bisa "
        "ada mereka lebih kata atau telah sebagai orang oleh dia bahwa adalah hak setiap serta anda",
        "Vietnamese": "và của là có được các cho không một những trong với người này để đã khi đến về tại từ cũng như "
        "ra nhiều vào trên phải theo còn năm hay đó mọi đều quyền bằng",
    },
    "Cyrillic": {
        "Russian": "и в не на что с он как по это из за к его но от то все для было она так или бы мы вы их ее если "
        "у о быть был была были только уже может при до когда который которые должны они это себя чем них мне",
        "Ukrainian": "і в не на що з та до у як за по це й від його для є але про або він вона так ми ви їх все було "
        "був коли тільки який які яка якщо також бути вже можуть повинні всі",
        "Bulgarian": "и на да за се в от с е че не по са ще като но до си който която които това при бе той му съм го "
        "или беше ги след един една тя към със само може тези трябва всички",
        "Serbian": "и у је да се на за су од са не који као која које то или што из али по би није до ће због може "
        "он она само још био била своје бити међу сва треба",
    },
    "Arabic": {
        "Arabic": "في من على إلى أن التي الذي عن مع هذا هذه كان لا ما كل أو بين بعد قد لم ذلك حيث كما و هو هي يولد",
        "Persian": "و در به از که این را با است برای آن یک خود تا بر می های هم کرد شده بود شود ها نیز اما دارند اند",
        "Urdu": "کے میں کی ہے اور سے کا کو اس کہ پر نے ہیں یہ ہو جو بھی نہیں ایک تھا کر گیا وہ ہوئے",
    },
}
_SPEAKERS: dict[str, dict[str, list[str]]] = {}
"""Script → word → the languages that have it."""
for _script, _languages in _WORDS.items():
    _table = _SPEAKERS.setdefault(_script, {})
    for _language, _text in _languages.items():
        for _word in dict.fromkeys(_text.split()):
            _table.setdefault(_word, []).append(_language)


def language(text: str) -> str:
    """The language of the beginning of `text` by its English name, or `undetermined`, with the script if not Latin."""
    sample = unicodedata.normalize("NFC", text[:SAMPLE])
    letters = _letters(sample)
    total = sum(letters.values())
    if total < _LEAST_LETTERS:
        return UNDETERMINED
    if letters["Kana"] and letters["Kana"] + letters["Han"] > _MOST_OF_THEM * total and letters["Kana"] > 0.1 * total:
        return "Japanese"
    script, count = letters.most_common(1)[0]
    if not script or count < _MOST_OF_THEM * total:
        return UNDETERMINED
    if script in _ALONE:
        return _ALONE[script]
    return _vote(sample, script) or (UNDETERMINED if script == "Latin" else f"{UNDETERMINED} ({script} script)")


def _letters(text: str) -> Counter[str]:
    """How many letters of each script there are."""
    counts: Counter[str] = Counter()
    for character, times in Counter(text).items():
        if character.isalpha():
            counts[_RANGES[bisect.bisect_right(_STARTS, ord(character)) - 1][1]] += times
    return counts


def _vote(text: str, script: str) -> str | None:
    """The language whose function words make up enough of the text, and clearly more than any other's; else None."""
    speakers = _SPEAKERS.get(script, {})
    words = re.findall(r"[^\W\d_]+", text.lower())
    scores: dict[str, float] = {}
    different: Counter[str] = Counter()
    for word, times in Counter(words).items():
        for name in (shared := speakers.get(word, [])):
            scores[name] = scores.get(name, 0.0) + times / len(shared)
            different[name] += len(word) > 1
    ranked = sorted(scores, key=lambda name: (-scores[name], name))
    if not ranked:
        return None
    winner, score = ranked[0], scores[ranked[0]]
    second = scores[ranked[1]] if len(ranked) > 1 else 0.0
    enough = different[winner] >= _LEAST_WORDS and score >= _LEAST_SHARE * len(words)
    return winner if enough and score >= _LEAD * second else None
