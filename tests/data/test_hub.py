import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable

import datasets
import numpy as np
import pyarrow as pa
import pytest

from sotto.data import BadClip, ClipSource, DataConfig, check_disjoint, hub, open_data
from sotto.data.hub import HubListing, is_hub_id
from sotto.errors import SottoError

Calls = list[tuple[str, str | None, str | None, bool]]


def open_hub(**options: object) -> ClipSource:
    return open_data(DataConfig(**{"path": "owner/speech", "split": "train", **options}), sampling_rate=16000)


@pytest.fixture
def serve(monkeypatch) -> Callable[[object], Calls]:
    """Makes `load_dataset` answer with the given dataset, and gives the list of its calls."""

    def install(table: object, *, stated: int | None = None) -> Calls:
        calls: Calls = []

        def load(path: str, name: str | None = None, *, split: str | None = None, streaming: bool = False):
            calls.append((path, name, split, streaming))
            if isinstance(table, Exception):
                raise table
            if isinstance(table, dict):
                return datasets.IterableDatasetDict({key: one.to_iterable_dataset() for key, one in table.items()})
            if not streaming:
                return table
            stream = table if isinstance(table, datasets.IterableDataset) else table.to_iterable_dataset()
            if stated is not None:
                stream.info.splits = datasets.SplitDict({"train": datasets.SplitInfo("train", 0, stated)})
            return stream

        monkeypatch.setattr(datasets, "load_dataset", load)
        return calls

    return install


@pytest.fixture
def table(write_clip) -> datasets.Dataset:
    clips = [write_clip(f"{index}.wav", seconds=0.1 * (index + 1)).read_bytes() for index in range(6)]
    audio = [{"bytes": clip, "path": None} for clip in clips]
    audio += [{"bytes": b"broken", "path": None}, {"bytes": None, "path": "/gone/x.wav"}, None]
    rows = {
        "audio": audio,
        "sentence": [f"text {index}" for index in range(8)] + [None],
        "client_id": ["anna"] * 9,
        "locale": ["en"] * 9,
    }
    return datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio())


def test_streams_decodes_and_skips(serve, table) -> None:
    calls = serve(table)
    source = open_hub(name="en")
    clips = list(source)
    assert calls == [("owner/speech", "en", "train", True)]
    assert [clip.name for clip in clips] == [f"train/{index}" for index in range(6)]
    assert (clips[2].text, clips[2].speaker, clips[2].language) == ("text 2", "anna", "en")
    assert [round(clip.seconds, 3) for clip in clips] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert [clip.name for clip in source] == [clip.name for clip in clips]
    reasons = {clip.name: clip.reason for clip in source.skipped}
    assert list(reasons) == ["train/6", "train/7", "train/8"]
    assert reasons["train/6"].startswith("does not decode")
    assert reasons["train/7"] == "is missing"
    assert reasons["train/8"] == "holds no audio"


def test_references_have_no_audio_and_read_fetches_it(serve, table) -> None:
    calls = serve(table)
    source = open_hub()
    references = source.references
    assert len(references) == 9
    assert all(reference.encoded is None for reference in references)
    assert source.read(references[4]).seconds == 0.5
    np.testing.assert_array_equal(source.read(references[1]).audio, list(source)[1].audio)
    assert [call[3] for call in calls] == [True, False]
    with pytest.raises(BadClip, match="holds no audio"):
        source.read(references[8])


def test_unknown_length(serve, table) -> None:
    serve(table)
    with pytest.raises(TypeError, match="does not state its number of clips"):
        len(open_hub())
    assert len(open_hub(samples=4)) == 4


def test_stated_length(serve, table) -> None:
    serve(table, stated=9)
    source = open_hub()
    assert len(source) == 9
    assert [len(source.shard(index, 2)) for index in range(2)] == [5, 4]


def test_samples_are_seeded_and_keep_their_index(serve, table) -> None:
    serve(table)
    first = open_hub(samples=3)
    assert [clip.name for clip in first] == [r.name for r in first.references if int(r.name[6:]) < 6]
    assert [r.name for r in first.references] == [r.name for r in open_hub(samples=3).references]
    assert len({tuple(r.name for r in open_hub(samples=3, seed=seed).references) for seed in range(5)}) > 1


def test_shards_of_a_stream_partition_it(serve, table) -> None:
    serve(table)
    source = open_hub()
    shards = [[clip.name for clip in source.shard(index, 3)] for index in range(3)]
    assert sorted(itertools.chain(*shards)) == sorted(clip.name for clip in source)
    assert shards[1] == ["train/1", "train/4"]


def test_bounds_are_kept_while_streaming(serve, table) -> None:
    serve(table)
    source = open_hub(minimum_seconds=0.2, maximum_seconds=0.4)
    assert [clip.name for clip in source] == ["train/1", "train/2", "train/3"]
    assert source.skipped[0].reason == "0.10 s long, below minimum_seconds 0.2"
    assert source.skipped[1].reason == "0.50 s long, above maximum_seconds 0.4"


def test_transcripts(serve, table) -> None:
    serve(table)
    source = open_hub()
    source.require_transcripts()
    list(source)
    assert source.skipped[-1].reason == "holds no audio"
    with pytest.raises(SottoError, match=r"no column 'verbatim'.*sentence"):
        open_hub(text="verbatim")
    serve(table.remove_columns("sentence"))
    with pytest.raises(SottoError, match=r"no transcripts in hub dataset owner/speech.*client_id"):
        open_hub().require_transcripts()


def test_audio_column(serve, table) -> None:
    serve(table.rename_column("audio", "speech"))
    assert len(list(open_hub())) == 6
    serve(table.remove_columns("audio"))
    with pytest.raises(SottoError, match=r"no audio column \(columns: sentence"):
        open_hub()


def test_all_bad_and_empty(serve, table) -> None:
    serve(table.select([6, 7, 8]))
    with pytest.raises(SottoError, match="none of the 3 clips in owner/speech can be used: train/0 does not"):
        list(open_hub())
    serve(table.to_iterable_dataset().take(0))
    with pytest.raises(SottoError, match="no clips in owner/speech"):
        list(open_hub())


def test_splits(serve, table) -> None:
    serve({"train": table, "test": table})
    with pytest.raises(SottoError, match="has the splits train, test; choose one"):
        open_hub(split=None)
    serve({"test": table})
    assert next(iter(open_hub(split=None))).name == "test/0"


def test_loose_files_are_fetched_by_their_address(tmp_path, write_clip, monkeypatch) -> None:
    write_clip("data/a.wav", seconds=0.2)
    write_clip("data/b.wav", seconds=0.4)
    (tmp_path / "data" / "metadata.csv").write_text("file_name,text\nb.wav,bee\na.wav,ay\n")
    load = datasets.load_dataset

    def load_folder(path: str, name: str | None = None, *, split: str | None = None, streaming: bool = False):
        folder, cache = str(tmp_path / "data"), str(tmp_path / "cache")
        return load("audiofolder", data_dir=folder, split=split, streaming=streaming, cache_dir=cache)

    monkeypatch.setattr(datasets, "load_dataset", load_folder)
    source = open_hub()
    streamed = {clip.text: clip.seconds for clip in source}
    assert streamed == {"ay": 0.2, "bee": 0.4}
    with pytest.raises(SottoError, match=r"can only be streamed \(.*torchcodec.*hf download owner/speech"):
        source.read(source.references[0])


def test_source_can_be_sent_to_a_worker(serve, table) -> None:
    serve(table)
    source = pickle.loads(pickle.dumps(open_hub(samples=5)))
    assert [clip.name for clip in source] == [clip.name for clip in open_hub(samples=5)]


@pytest.mark.parametrize(
    "error", [ConnectionError("no route\nto host"), ValueError("Config name is missing."), RuntimeError()]
)
def test_whatever_load_dataset_raises_becomes_one_line(serve, error: Exception) -> None:
    serve(error)
    with pytest.raises(SottoError, match="no such folder, and no dataset of that id could be opened") as caught:
        open_hub()
    message = str(caught.value)
    assert "\n" not in message
    assert "owner/speech" in message
    assert message.endswith("if you meant a folder, check the path")


def test_stream_that_breaks_off(serve, table, monkeypatch) -> None:
    serve(table)
    source = open_hub()

    def break_off(self: object):
        yield pa.table({"audio": [None], "sentence": ["x"]})
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", break_off)
    with pytest.raises(SottoError, match=r"broke off \(reset by peer\); try again"):
        list(source)


def test_offline(tmp_path) -> None:
    program = (
        "from sotto.data import *\n"
        "from sotto.errors import SottoError\n"
        "try: open_data(DataConfig(path='owner/speech'), sampling_rate=16000)\n"
        "except SottoError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("no such folder, and no dataset of that id could be opened: owner/speech (")


def test_fetch_that_fails_is_not_taken_for_a_bad_clip(serve, table, monkeypatch) -> None:
    serve(table)

    def fail(address: str, mode: str) -> None:
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(hub, "xopen", fail)
    with pytest.raises(SottoError, match=r"/gone/x.wav cannot be fetched \(reset by peer\); try again"):
        list(open_hub())


def test_stream_without_features(serve, table) -> None:
    stream = table.to_iterable_dataset()
    stream.info.features = None
    serve(stream)
    source = open_hub()
    assert source.listing.columns == ["audio", "sentence", "client_id", "locale"]
    assert next(iter(source)).text == "text 0"


def test_disjoint_by_split_and_index(serve, table) -> None:
    serve(table)
    everything, few, other = open_hub(), open_hub(samples=2), open_hub(split="test")
    check_disjoint({"train": everything, "test": other})
    check_disjoint({"train": everything, "test": open_hub(name="hi")})
    index = few.references[0].name
    with pytest.raises(SottoError, match=rf"train and calibration share a clip \(owner/speech {index}\)"):
        check_disjoint({"train": everything, "calibration": few})
    with pytest.raises(SottoError, match=r"train and validation share a clip \(owner/speech train/0\)"):
        check_disjoint({"train": everything, "validation": open_hub()})


def test_disjoint_choices_out_of_one_split(serve, table) -> None:
    serve(table)
    choices = [open_hub(samples=2, seed=seed) for seed in range(20)]
    first = choices[0]
    names = {reference.name for reference in first.references}
    apart = next(one for one in choices if not names & {r.name for r in one.references})
    check_disjoint({"calibration": first, "test": apart})


def test_samples_come_from_the_first_part_of_a_large_split(serve, table) -> None:
    serve(table, stated=10**6)
    listing = open_hub(samples=150).listing
    assert isinstance(listing, HubListing)
    assert max(listing.positions) < 1500
    assert len(listing.positions) == 150


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("openai/fleurs", True),
        ("mozilla-foundation/common_voice_17_0", True),
        ("a/b/c", False),
        ("fleurs", False),
        ("/a/b", False),
        ("../b", False),
        ("./b", False),
        ("a b/c", False),
    ],
)
def test_hub_ids(path: str, expected: bool) -> None:
    assert is_hub_id(path) is expected


@pytest.mark.parametrize("shuffled", [False, True])
def test_texts_may_take_the_place_of_those_of_a_hub_dataset(table, serve, shuffled: bool) -> None:
    serve(table)
    source = open_hub()
    everything = [reference.name for reference in source.references]
    names = everything[:5]  # the last ones are broken
    chosen = names[1:][::-1] if shuffled else names[1:]
    found = source.with_texts(dict.fromkeys(chosen, "said anew"))
    clips = [found.read(reference) for reference in found.references]
    assert [(clip.name, clip.text) for clip in clips] == [(name, "said anew") for name in names[1:]]
    assert all(len(clip.audio) for clip in clips)
    assert [reference.name for reference in source.references] == everything  # the source is as it was
