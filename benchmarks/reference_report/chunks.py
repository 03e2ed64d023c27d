"""Six chunks like the reference report's: 90 to 174 characters, 137 on average, 368 in the three that are measured."""

CHUNKS = (
    "The keeper of the lighthouse climbed the winding stairs again, carrying a lamp and a book.",
    "Throughout that long uncomfortable afternoon the travellers considered whether the mountain crossing was still "
    "possible.",
    "Beyond the harbour a ship's bell was ringing, and the fishermen who heard it looked up from the nets, counted the "
    "strokes, and went on mending without a word.",
    "She had promised her grandmother to write every week, yet the first letter took her a month, and most of it was "
    "about the weather.",
    "Nobody in the village remembered who had planted the magnificent walnut tree, though everybody agreed that it had "
    "always stood there and always would.",
    "When the train finally left the station, an hour late, an old man folded his newspaper, put it under an arm, and "
    "remarked to nobody in particular that patience costs nothing.",
)
