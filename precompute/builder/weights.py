"""The weights of a cache's teacher, kept in the cache for methods that go on with CLIP itself.

`clipocr cache build` keeps them where such methods have what they read; `clipocr cache weights`
adds them to any cache.
"""

from __future__ import annotations

from ...shared.cache.names import WEIGHTS_FILE
from ...shared.cache.reader import FeatureCache, publish_seal, read_committed
from ...shared.cache.records import WeightsRecord
from ...shared.cache.tensor_file import write_tensors
from ...shared.clip.weights import load_weights
from .config import WeightsConfig
from .text import require_same_weights, same_teacher_name


def add_weights(config: WeightsConfig) -> tuple[FeatureCache, WeightsRecord, bool]:
    """Add the weights of its teacher to a cache; the sources are not needed.

    What is there is not touched. A sealed cache is sealed anew, with the weights.

    Returns:
        The cache, the record of the weights, and whether they were there already.
    """
    cache = FeatureCache.open(config.cache)
    held = read_committed(cache.folder, cache.manifest, through_seal=False).weights
    record = held
    if record is None:
        cache.folder.sweep()
        name = same_teacher_name(config.cache, cache.spec.teacher, config.teacher)
        record = write_weights(cache, name)
        cache.publish(record)
    if cache.is_sealed:
        # Even if they were there: a killed run may have published them and not the seal.
        publish_seal(cache.folder, cache.manifest)
    return cache, record, held is not None


def write_weights(cache: FeatureCache, name: str) -> WeightsRecord:
    """Publish the weights ``MODEL/WEIGHTS``, which made the cache; return the record, unpublished.

    They are loaded for this, although a builder has a teacher, because on a GPU it has cast a part
    of them to half precision.
    """
    have = cache.spec.teacher
    model, found = load_weights(name, have.precision, have.activation)
    require_same_weights(cache.folder.root, have, found)
    file, header_bytes = write_tensors(cache.folder, WEIGHTS_FILE, model.state_dict())
    return WeightsRecord(
        cache_id=cache.manifest.cache_id, files={WEIGHTS_FILE: file}, header_bytes=header_bytes
    )
