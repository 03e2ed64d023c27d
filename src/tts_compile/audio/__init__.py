"""Reading, writing and making recordings."""
