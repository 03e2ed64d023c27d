"""What the reference report says: a compiled ChatterboxTTS on a GeForce RTX 4060 Ti with torch 2.4.1.

Its figures are single runs without intervals, on a machine, a model and a text other than ours; they are shown beside
ours and never enter a calculation.
"""

TITLE = "reference report (other machine)"
AUDIOBOOK_HOURS = 7.0
VOICE_RUNS = 10
MEASURED = 3  # of its six chunks

LOADING = {
    "load": "8.96 and 5.83: +54%",
    "compile": "about 0.5, once",
    "memory": "2.98 and 2.98 of the GPU: no change",
}
GENERATION = {
    "milliseconds": "2750 and 2548: +8%",
    "characters": "44.6 and 48.1: +8%",
    "words": "5.8 and 6.3: +8%",
}
CHUNKS = ("2542 and 2192", "3717 and 3672", "1991 and 1780")  # ms
VOICE = {
    "average": "45.9 and 51.1: 10% slower",
    "least": "43.0 and 44.4: 3% slower",
    "most": "50.8 and 62.1: 22% slower",
}
BUCKETS = {
    "chunks": "6",
    "short": "100%",
    "medium": "0%",
    "long": "0%",
    "characters": "90 to 174, 137 on average",
    "verdict": "HIGH",
}
PROJECTION = {
    "generation": "about 7 and 6.5 hours: 30 minutes saved",
    "loading": "about 9 and 6: 3 s saved",
}
COMPONENTS = {
    "t3": "compiled, inductor; no count",
    "voice_encoder": "compiled, inductor; no count",
    "flow": "not compiled",
    "vocoder": "not compiled",
}
SETTINGS = {
    "t3": "ENABLE_TORCH_COMPILE = True, COMPILE_TTS_DECODER = True; backend inductor, mode default",
    "voice_encoder": "COMPILE_VOICE_ENCODER = True; backend inductor, mode default",
    "buckets": "50 to 200, 200 to 500, 500 to 1000; ENABLE_CHUNK_SIZE_BUCKETING = True",
    "warmup_samples": "3",
}
STABILITY = {
    "outputs": "identical, not said how compared",
    "fallbacks": "tested",
    "memory": "no leaks",
}
PARAMETERS = {
    "characters": "368 in the chunks measured",
    "words": "48",
    "runs": "10 of voice encoding, 1 of each of 3 chunks",
    "machine": "NVIDIA GeForce RTX 4060 Ti, torch 2.4.1",
}
