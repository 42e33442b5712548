"""The fixed texts on which an export is compared with its checkpoint."""

PASSAGES = (
    "The lighthouse at the end of the pier was built in 1874, after three ships had been lost on the reef in a single "
    "winter. Its keeper climbed the 212 steps twice a day, once to light the lamp and once to put it out, and wrote "
    "the weather into a book that is kept in the town's museum. When the light was made automatic in 1968, the last "
    "keeper stayed on as a guide; he is said to have known the name of every vessel that passed.\n",
    'def mean(values: list[float]) -> float:\n    """The arithmetic mean; raises ValueError when there is none."""\n'
    "    if not values:\n        raise ValueError('no values')\n    total = 0.0\n    for value in values:\n"
    "        total += value\n    return total / len(values)\n\n\nprint(mean([1.5, 2.25, 3]))  # 2.25\n",
    "Q: A train leaves at 9:40 and arrives at 13:05. How long does the journey take?\nA: From 9:40 to 13:00 are 3 "
    "hours and 20 minutes; with 5 minutes more it takes 3 hours and 25 minutes.\n\nQ: Water boils at 100 °C. How much "
    "is that in Fahrenheit?\nA: 100 × 9/5 + 32 = 212 °F.\n",
    "La rivière traverse la vieille ville; im Frühling steigt das Wasser bis an die Brücke. 東京の冬は短い。 "
    "Il mercato apre alle sette, ¡pero hoy no! (See § 4.2, “Opening hours”.)\n",
)
