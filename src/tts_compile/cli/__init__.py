"""The command ``tts-compile``."""
