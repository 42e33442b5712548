"""Which language a text is in: known sentences, and honesty about what cannot be told."""

from __future__ import annotations

import pytest

from sparsekd.corpus.language import language

# The beginning of the Universal Declaration of Human Rights, but where it has too few function words
KNOWN = {
    "English": "All human beings are born free and equal in dignity and rights. They are endowed with reason and "
    "conscience and should act towards one another in a spirit of brotherhood.",
    "German": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen "
    "begabt und sollen einander im Geiste der Brüderlichkeit begegnen.",
    "French": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "Spanish": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y "
    "conciencia, deben comportarse fraternalmente los unos con los otros.",
    "Italian": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di "
    "coscienza e devono agire gli uni verso gli altri in spirito di fratellanza.",
    "Portuguese": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de "
    "consciência, devem agir uns para com os outros em espírito de fraternidade.",
    "Dutch": "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn begiftigd met verstand en "
    "geweten, en behoren zich jegens elkander in een geest van broederschap te gedragen.",
    "Swedish": "Alla människor är födda fria och lika i värde och rättigheter. De är utrustade med förnuft och samvete "
    "och bör handla gentemot varandra i en anda av broderskap.",
    "Danish": "Jeg ved ikke, hvad der er sket med mig, men hun blev ved med at se ud, og han havde sin hat på.",
    "Norwegian": "Jeg vet ikke hva som har skjedd med meg, men hun så ut av vinduet etter at de ble hjemme, også nå.",
    "Finnish": "Hän ei ole vielä täällä, mutta minä olen, koska se on hyvin tärkeää ja kaikki ovat jo tulleet kanssa.",
    "Polish": "Nie wiem, co się stało, ale to jest jego książka, która była na stole, i nie może tak być.",
    "Czech": "Nevím, co se stalo, ale to je jeho kniha, která byla na stole, a tak to nebylo možné, protože už jsou.",
    "Romanian": "Nu este o problemă, dar după ce au fost la noi, el a spus că acest lucru este mai bine pentru ei.",
    "Hungarian": "Nem tudom, hogy ez mi volt, de az egy nagyon szép ház, és már csak meg kell nézni, mert az van.",
    "Turkish": "Bu çok güzel bir gün ama daha sonra ne olduğu gibi şey için her kadar iyi değil ve bütün o en iyi.",
    "Indonesian": "Semua orang dilahirkan merdeka dan mempunyai martabat dan hak yang sama. Ini adalah untuk mereka.",
    "Vietnamese": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền của mọi người.",
    "Russian": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью "
    "и должны поступать в отношении друг друга в духе братства.",
    "Ukrainian": "Всі люди народжуються вільними і рівними у своїй гідності та правах. Вони наділені розумом і "
    "совістю і повинні діяти у відношенні один до одного в дусі братерства.",
    "Bulgarian": "Всички хора се раждат свободни и равни по достойнство и права. Те са надарени с разум и съвест и "
    "следва да се отнасят помежду си в дух на братство.",
    "Serbian": "Сва људска бића рађају се слободна и једнака у достојанству и правима. Она су обдарена разумом и "
    "свешћу и треба једни према другима да поступају у духу братства.",
    "Arabic": "لكل إنسان حق التمتع بكافة الحقوق والحريات الواردة في هذا الإعلان من غير تمييز على أن هذا كان من حق كل",
    "Persian": "تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند و این را برای خود دارند.",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "Hebrew": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "Chinese": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "Japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "Korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
}
UNKNOWN = {
    "": "undetermined",
    "42 + 17 = 59; 3.14": "undetermined",
    "short": "undetermined",
    "Gesellschaft Bratkartoffel Kindergarten Wanderlust Zeitgeist Rucksack": "undetermined",
    "for (int i = 0; i < n; ++i) { s[i] = t[e].a(o, i); } return x.b(e, y).map(a => a.z);" * 5: "undetermined",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता": "undetermined (Devanagari script)",
    "свет-тень-камень-река-дерево-вода-хлеб": "undetermined (Cyrillic script)",
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_language_is_told(name: str) -> None:
    assert language(KNOWN[name]) == name
    assert language(KNOWN[name].upper()) == name


@pytest.mark.parametrize(("text", "answer"), UNKNOWN.items())
def test_what_cannot_be_told_is_undetermined(text: str, answer: str) -> None:
    assert language(text) == answer


def test_half_of_two_scripts_is_neither() -> None:
    assert language(KNOWN["Greek"] + KNOWN["Hebrew"] + KNOWN["English"][:60]) == "undetermined"


def test_two_languages_in_equal_parts_are_neither() -> None:
    assert language(KNOWN["Danish"] + KNOWN["Norwegian"]) == "undetermined"
