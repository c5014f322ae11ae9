"""A recogniser transcribes a stream of clips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sotto.checkpoint import Recognizer
from sotto.data import Clip
from sotto.decoding import Decoding, Transcription
from sotto.errors import SottoError


def transcribe(recognizer: Recognizer, clips: Iterable[Clip], decoding: Decoding) -> Iterator[Transcription]:
    """Transcribe clips in the order given, reading no more of them ahead than make a batch; eight where windows are
    fitted to clips of about a length.

    Clips that the model takes at once go in batches; how a longer one is heard is a matter of its family.

    Raises SottoError at once where the checkpoint cannot decode as asked (language, task, beams), and while it runs
    for a clip at another sampling rate, or one that needs timestamps of a checkpoint that has none.
    """
    return recognizer.family.transcribe(at_rate(clips, recognizer.sampling_rate), decoding)


def at_rate(clips: Iterable[Clip], rate: int) -> Iterator[Clip]:
    for clip in clips:
        if clip.sampling_rate != rate:
            raise SottoError(
                f"{clip.name}: is at {clip.sampling_rate} Hz and the recogniser hears {rate} Hz; "
                f"open the data with sampling_rate={rate}"
            )
        yield clip
