"""Looking at a cache, and at what one would take."""
