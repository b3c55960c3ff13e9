"""A cache at an address gives what the folder gives, or a clear error in bounded time."""

from __future__ import annotations

import importlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner, Result
from hub import Hub
from loading import loader_of, needing
from object_store import BUCKET, FaultyProxy, s3_server, upload
from small_student import SMALL_METHOD
from storage_contract import (
    CALM,
    FILES,
    HASTY,
    SHARD,
    AddressContract,
    FolderServer,
    StorageContract,
    read,
    write_files,
)

from clipocr.cli import main
from clipocr.shared.cache.range_cache import RangeCache
from clipocr.shared.cache.reader import FeatureCache, read_committed, read_manifest
from clipocr.shared.cache.remote import Patience, RemoteStorage, open_storage
from clipocr.shared.charset import Charset
from clipocr.shared.errors import (
    CacheCorruptError,
    CacheMismatchError,
    CacheMissingError,
    CacheUnavailableError,
    UsageError,
)
from clipocr.train.data.batch import Batch
from clipocr.train.loop.checkpoint import load_checkpoint
from clipocr.train.loop.config import TrainConfig, TrainPlace
from clipocr.train.loop.run import train

CONFIG = TrainConfig(
    method=SMALL_METHOD,
    epochs=1,
    batch_size=16,
)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with (
        pytest.MonkeyPatch.context() as patched,
        s3_server(tmp_path_factory.mktemp("moto") / "log") as port,
    ):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patched.setenv(name, "test")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield port


@pytest.fixture(scope="module")
def address(s3: int, cache_path: Path) -> str:
    return upload(cache_path, s3, "words.cache")


@pytest.fixture(scope="module")
def place(s3: int, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the files of the contract."""
    return upload(write_files(tmp_path_factory.mktemp("files")), s3, "files")


@pytest.fixture
def proxy(s3: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with FaultyProxy.serving(s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def hasty(address: str, copies: RangeCache | None = None) -> FeatureCache:
    """Open a cache through a storage that loses patience soon."""
    storage = RemoteStorage(address, copies=copies, patience=HASTY)
    manifest = read_manifest(storage)
    assert manifest is not None
    return FeatureCache(storage, manifest, read_committed(storage, manifest, through_seal=True))


def epoch(cache: FeatureCache, number: int = 0) -> list[bytes]:
    """Return everything in the batches of an epoch."""

    def content(batch: Batch) -> bytes:
        tensors = [batch.views, *batch.images.values(), *batch.text.values()]
        return b"".join([repr(batch.labels).encode(), *(t.numpy().tobytes() for t in tensors)])

    loader = loader_of(cache, needing(("block1", "block3"), ("block2", "eot")), views=1)
    return [content(batch) for batch in loader.epoch(number)]


def run_at(place: str | Path, out: Path, **changes: object) -> Path:
    # Nothing is kept, so that no test reads what another has left in the user's folder.
    settings: dict[str, object] = {
        "cache_bytes": 0,
        "cache": place,
        "out": out,
        "device": "cpu",
    }
    train(CONFIG, TrainPlace(**(settings | changes)))
    return out


def weights(run: Path) -> list[bytes]:
    tensors = load_checkpoint(run / "last.pt")["recogniser"]
    return [name.encode() + tensor.numpy().tobytes() for name, tensor in tensors.items()]


def invoke(*args: object) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# ---------------------------------------------------------------------------------- sound servers


class TestS3(AddressContract):
    @pytest.fixture
    def storage(self, place: str, proxy: FaultyProxy) -> RemoteStorage:
        assert proxy.requests == []
        return RemoteStorage(place, patience=CALM)

    @pytest.fixture
    def dead(self, place: str, proxy: FaultyProxy) -> RemoteStorage:
        proxy.stop()
        return RemoteStorage(place, patience=HASTY)

    def test_what_is_missing_is_not_asked_for_again(
        self, storage: RemoteStorage, proxy: FaultyProxy
    ) -> None:
        assert not storage.exists("none")
        with pytest.raises(CacheMissingError):
            storage.read("none")
        objects = [what for what in proxy.requests if " /bucket/files/" in what]
        assert 1 <= len(objects) <= 2  # One of each call.


class TestHttp(AddressContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[RemoteStorage]:
        write_files(tmp_path / "files")
        with FolderServer.serving(tmp_path) as server:
            yield RemoteStorage(f"{server.endpoint}/files", patience=CALM)

    @pytest.fixture
    def dead(self, tmp_path: Path) -> RemoteStorage:
        with FolderServer.serving(tmp_path) as server:
            return RemoteStorage(f"{server.endpoint}/files", patience=HASTY)


class TestHub(AddressContract):
    """In this process, by fsspec's own setting: the hub's library reads its variable on import."""

    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
        with Hub.serving() as hub:
            hub.repos["datasets/someone/words"] = {f"files/{n}": d for n, d in FILES.items()}
            monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": hub.endpoint})
            yield hub

    @pytest.fixture
    def storage(self, hub: Hub) -> RemoteStorage:
        assert hub.requests == []
        return RemoteStorage("hf://datasets/someone/words/files", patience=CALM)

    @pytest.fixture
    def dead(self, hub: Hub) -> RemoteStorage:
        hub.stop()
        return RemoteStorage("hf://datasets/someone/words/files", patience=HASTY)

    def test_a_refusal_is_final(self, storage: RemoteStorage, hub: Hub) -> None:
        hub.fault = lambda what, _: 403 if "/resolve/" in what else 0
        with pytest.raises(CacheUnavailableError, match=r"may not be read .*check the credentials"):
            read(storage, SHARD, 0, 9)
        assert len([what for what in hub.requests if "/resolve/" in what]) == 1


class TestMemory(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> RemoteStorage:
        write_files(tmp_path)
        fsspec.filesystem("memory").put(f"{tmp_path}/", "/files/", recursive=True)
        return RemoteStorage("memory://files", patience=CALM)


@pytest.mark.parametrize("kind", ["s3", "http", "memory", "file"])
def test_addresses_give_the_batches_of_the_folder(
    kind: str, s3: int, address: str, proxy: FaultyProxy, cache_path: Path
) -> None:
    assert proxy.upstream == s3
    place = {
        "s3": address,
        "http": f"http://127.0.0.1:{s3}/{BUCKET}/words.cache",
        "memory": "memory://words.cache/",
        "file": f"file://{cache_path}",
    }[kind]
    if kind == "memory":
        fsspec.filesystem("memory").put(f"{cache_path}/", "/words.cache/", recursive=True)
    assert epoch(FeatureCache.open(place)) == epoch(FeatureCache.open(cache_path))


def test_a_half_built_cache_can_be_read(s3: int, proxy: FaultyProxy, cache_path: Path,
                                        tmp_path: Path) -> None:  # fmt: skip
    shutil.copytree(cache_path, tmp_path / "half")
    (tmp_path / "half/sealed.json").unlink()
    (tmp_path / "half/commits/view0/unit-00001.json").unlink()
    cache = FeatureCache.open(upload(tmp_path / "half", s3, "half.cache"))
    assert cache.units() == [0, 2]
    assert epoch(cache) == epoch(FeatureCache.open(tmp_path / "half"))
    assert proxy.requests


def test_the_commands_take_addresses(
    address: str, proxy: FaultyProxy, cache_path: Path, tmp_path: Path
) -> None:
    runs = []
    for name, place in (("remote", address), ("local", cache_path)):
        result = invoke("train", "--cache", place, "--out", tmp_path / name, "--student", "tiny",
                        "--image-taps", "1,2,3", "--text-taps", "1,2,3", "--epochs", 1,
                        "--batch-size", 24, "--cache-dir", tmp_path / "copies")  # fmt: skip
        assert result.exit_code == 0, result.stderr
        runs.append(weights(tmp_path / name))
    assert runs[0] == runs[1]
    assert list((tmp_path / "copies/ranges").glob("*.range"))
    described = [invoke("cache", "info", place).stdout for place in (address, cache_path)]
    assert described[0].replace(address, str(cache_path)) == described[1]
    copied = invoke("cache", "copy", address, tmp_path / "copy")
    assert "3 units of 3, in 1 view" in copied.stdout
    assert (tmp_path / "copy/sealed.json").read_bytes() == (cache_path / "sealed.json").read_bytes()
    # Nothing is ever written to an address.
    assert {what.split()[0] for what in proxy.requests} <= {"GET", "HEAD"}
    refused = invoke("cache", "build", "--data", tmp_path, "--out", address)
    assert refused.exit_code == 2
    assert "caches are only written to folders" in refused.stderr
    with pytest.raises(UsageError, match=f"clipocr cache copy {address} FOLDER"):
        _ = FeatureCache.open(address).folder
    # What is missing is advised for a copy.
    copied = f"with: clipocr cache copy {address} COPY && clipocr cache "
    for said, ask in (
        (f"{copied}text COPY --charset 94 --tokenizer char$",
         lambda cache: cache.require_text(Charset.load("94"), 25)),
        (f"{copied}weights COPY$", FeatureCache.require_weights),
        (f"{copied}pool COPY --images FOLDER$", lambda cache: cache.require_pool(1)),
    ):  # fmt: skip
        with pytest.raises(CacheMismatchError, match=said):
            ask(FeatureCache.open(address))


# --------------------------------------------------------------------------------- faulty servers


def first_time(fault: str, num_faults: int) -> Callable[[str, int], str]:
    """Fail the first request for each of the first few ranges of features."""
    left = [num_faults]

    def decide(what: str, before: int) -> str:
        if before or "/image/" not in what or not left[0]:
            return ""
        left[0] -= 1
        return fault

    return decide


@pytest.mark.parametrize("fault", ["500", "hang", "drop", "cut", "short", "flip"])
def test_what_passes_changes_nothing(
    fault: str, address: str, proxy: FaultyProxy, cache_path: Path
) -> None:
    num_faults = 4 if fault == "hang" else 12
    proxy.fault = first_time(fault, num_faults)
    assert epoch(hasty(address)) == epoch(FeatureCache.open(cache_path))
    assert len(proxy.requests) - len(set(proxy.requests)) >= num_faults


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("500", CacheUnavailableError, "cannot be read: .*tried 3 times"),
        ("hang", CacheUnavailableError, r"no answer within 0\.4 s, tried 3 times"),
        ("drop", CacheUnavailableError, "cannot be read: .*tried 3 times"),
        ("cut", CacheUnavailableError, "cannot be read: .*tried 3 times"),
        ("die", CacheUnavailableError, "cannot be read: .*tried 3 times"),
        ("short", CacheCorruptError, r"gave \d+ bytes for bytes \d+ to \d+, tried 3 times"),
        ("flip", CacheCorruptError, "are not what was committed, tried 3 times"),
    ],
)
def test_what_does_not_pass_is_an_error_in_bounded_time(
    fault: str, error: type[Exception], said: str, address: str, proxy: FaultyProxy
) -> None:
    cache = hasty(address)
    proxy.fault = lambda what, _: fault if "/block3/c/1" in what else ""
    started = time.monotonic()
    # A server that is gone is gone for the other reader too, which may be at an earlier chunk.
    file = r"block\d/c/." if fault == "die" else "block3/c/1"
    with pytest.raises(error, match=rf"{address}/image/view0/{file}/0/0 .*{said}"):
        epoch(cache)
    # Two readers, each three tries of 0.4 s at most.
    assert time.monotonic() - started < 5


def test_a_server_that_dies_in_mid_epoch_costs_no_step(
    address: str, proxy: FaultyProxy, s3: int, cache_path: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Two lanes and little read ahead, so that reading goes on while steps are taken.
    monkeypatch.setattr("clipocr.train.data.order.NUM_LANES", 2)
    for name in ("_CHUNKS_AHEAD", "_BATCHES_AHEAD"):
        monkeypatch.setattr(f"clipocr.train.data.loader.{name}", 1)
    patience = Patience(tries=2, timeout_s=1)
    monkeypatch.setattr("clipocr.shared.cache.remote.DEFAULT_PATIENCE", patience)
    features = [0]

    def die_late(what: str, _before: int) -> str:
        features[0] += "/image/" in what
        return "die" if features[0] > 40 else ""

    proxy.fault = die_late
    started = time.monotonic()
    with pytest.raises(CacheUnavailableError, match=r"tried 2 times.*clipocr train --resume RUN"):
        run_at(address, tmp_path / "run")
    assert time.monotonic() - started < 15
    assert 0 < load_checkpoint(tmp_path / "run/last.pt")["training"]["step"] < 5
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3}")
    place = TrainPlace(cache=address, cache_bytes=0, out=tmp_path / "run", device="cpu")
    train(CONFIG, place, resume=True)
    assert weights(tmp_path / "run") == weights(run_at(cache_path, tmp_path / "local"))


def test_an_error_of_the_server_never_passes_for_a_missing_cache(
    address: str, proxy: FaultyProxy
) -> None:
    proxy.fault = lambda _what, _before: "500"
    with pytest.raises(CacheUnavailableError, match=r"manifest\.json cannot be read"):
        hasty(address)


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_a_refusal_is_final(kind: str, address: str, proxy: FaultyProxy) -> None:
    place = address if kind == "s3" else address.replace("s3:/", proxy.endpoint)
    proxy.fault = lambda _what, _before: "403"
    with pytest.raises(CacheUnavailableError, match=r"may not be read .*check the credentials"):
        hasty(place)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize(
    ("place", "error", "said"),
    [
        (f"s3://{BUCKET}/none", CacheMissingError, "none is not a feature cache"),
        ("s3://no-such-bucket/none", CacheUnavailableError, "there is no bucket 'no-such-bucket'"),
        ("abc://x/y", UsageError, "Protocol not known: abc; expected a folder, or an address"),
    ],
)
def test_places_without_a_cache(
    place: str, error: type[Exception], said: str, address: str, proxy: FaultyProxy
) -> None:
    assert address
    assert proxy
    with pytest.raises(error, match=said):
        FeatureCache.open(place)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.import_module("fsspec.registry")._registry
    monkeypatch.delitem(known, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError, match=r"Install s3fs.*pip install 'clipocr-str\[s3\]'"):
        open_storage("s3://bucket/words.cache")


def test_pauses_grow_to_a_bound() -> None:
    pauses = [Patience().pause_s(n) for n in (1, 2, 3, 9)]
    assert all(p <= x <= 1.5 * p for p, x in zip((0.5, 1, 2, 8), pauses, strict=True))


# ----------------------------------------------------------------------------------------- copies


def test_a_second_epoch_reads_nothing_over_the_network(
    address: str, proxy: FaultyProxy, cache_path: Path, tmp_path: Path
) -> None:
    local = FeatureCache.open(cache_path)
    cache = FeatureCache.open(address, cache_dir=tmp_path, max_cache_bytes=10**9)
    assert epoch(cache, 0) == epoch(local, 0)
    proxy.requests.clear()
    assert epoch(cache, 1) == epoch(local, 1)
    assert proxy.requests == []
    again = FeatureCache.open(address, cache_dir=tmp_path, max_cache_bytes=10**9)
    assert epoch(again, 0) == epoch(local, 0)
    # Only the records, which may have changed, were read again.
    assert {what.split()[1].split("/")[-1] for what in proxy.requests} == {
        "manifest.json",
        "sealed.json",
    }


def test_damaged_copies_are_fetched_again(
    address: str, proxy: FaultyProxy, cache_path: Path, tmp_path: Path
) -> None:
    cache = FeatureCache.open(address, cache_dir=tmp_path, max_cache_bytes=10**9)
    expected = epoch(FeatureCache.open(cache_path))
    assert epoch(cache) == expected
    copies = sorted((tmp_path / "ranges").glob("*.range"), key=lambda p: p.stat().st_size)[-20:]
    sound = [path.read_bytes() for path in copies]
    damages: list[Callable[[bytes, int], bytes]] = [
        lambda data, _: data[:50] + bytes([data[50] ^ 1]) + data[51:],
        lambda data, _: data[:-1],
        lambda data, _: bytes(len(data)),
        lambda _data, _: b"",
        lambda _data, i: sound[i - 1],
    ]
    for damage in damages:
        for i, path in enumerate(copies):
            path.write_bytes(damage(sound[i], i))
        proxy.requests.clear()
        assert epoch(cache) == expected
        # A sibling's bytes may be the same bytes, where whole chunks are equal.
        assert 15 <= len(proxy.requests) <= 20
        assert [path.read_bytes() for path in copies] == sound


def test_a_small_folder_stays_small_and_harms_nothing(
    address: str, proxy: FaultyProxy, cache_path: Path, tmp_path: Path
) -> None:
    bound = 150_000
    cache = FeatureCache.open(address, cache_dir=tmp_path, max_cache_bytes=bound)
    for number in range(2):
        assert epoch(cache, number) == epoch(FeatureCache.open(cache_path), number)
        sizes = [path.stat().st_size for path in (tmp_path / "ranges").glob("*.range")]
        assert 0 < sum(sizes) <= bound
    assert proxy.requests


def test_a_user_without_a_home_is_told_of_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in a container whose user has a number and no name.
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with pytest.raises(UsageError, match=r"user \d+ has no home .* pass a folder as --cache-dir"):
        open_storage("memory://cache", max_cache_bytes=1)


def test_a_bucket_that_is_not_there_is_named(s3: int, proxy: FaultyProxy) -> None:
    assert s3
    assert proxy.endpoint
    result = invoke("cache", "info", "s3://no-such-bucket/words.cache")
    assert result.exit_code == 1
    assert "there is no bucket 'no-such-bucket'. Check its name, and AWS_ENDPOINT" in result.stderr


def test_no_credentials_are_said_at_once(
    place: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(CacheUnavailableError, match=r"credentials.*AWS_PROFILE.*FSSPEC_S3_ANON"):
        RemoteStorage(place, patience=HASTY).read("one")
    assert proxy.requests == []
