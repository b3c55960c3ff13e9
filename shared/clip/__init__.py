"""CLIP itself, as both stages compute it; the only place in `shared` that imports open_clip."""
