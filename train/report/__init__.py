"""`clipocr eval --report`: one HTML page about how readers read, and where they fail."""
