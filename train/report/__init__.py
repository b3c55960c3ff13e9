"""`clipocr eval --report`: one HTML page about how students read, and where they fail."""
