"""Fair comparisons: one file says what is compared, each run is a ``lit-ift fit``, one report says what came out."""
