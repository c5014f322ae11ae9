"""A run of four models whose clips, hypotheses and sizes are made up, for the tests of the report."""

from __future__ import annotations

from dataclasses import replace

from sotto.metrics.cost import Parameters
from sotto.metrics.errors import Comparison, ErrorReport, Interval, compare, measure_errors
from sotto.metrics.speed import LatencyReport
from sotto.report.numbers import LayerNumbers, ModelNumbers, RunNumbers
from sotto.text import get_normalizer

RANKS = {
    "self_attn.q_proj": (61, 74, 88, 97),
    "self_attn.k_proj": (58, 70, 85, 93),
    "self_attn.v_proj": (112, 131, 149, 158),
    "self_attn.out_proj": (104, 118, 140, None),
    "fc1": (141, 166, 187, 203),
    "fc2": (150, 178, 201, 219),
}
SHAPES = {"fc1": (384, 1536), "fc2": (1536, 384)}
CLIPS = {
    **{f"ship/{i:03}.flac": f"we left harbor number {i} and the wind was cold from the north" for i in range(40)},
    "long/folder/names/are/common/markup.wav": "is 3 <b> & 4 </b> the same",
    "hindi.wav": "मुझे कल सुबह दिल्ली जाना है",
    "arabic.wav": "ذهبت إلى السوق في الصباح الباكر",
    "silence.wav": "",
}
BASE_HEARS = {
    "ship/003.flac": "we left harbor number 3 and the wind was cold for the north",
    "hindi.wav": "मुझे कल सुबह दिल्ली जान है",
}
SMALL_HEARS = {
    **BASE_HEARS,
    "ship/017.flac": "we left the harbor number and the wind wash cold from the north",
    "long/folder/names/are/common/markup.wav": "is 3 <script>alert(1)</script> & 4 </b> same",
    "arabic.wav": "ذهبت إلى السوق في الصباح الباكر الباكر الباكر الباكر الباكر",
    "silence.wav": "thank you",
}
TUNED_HEARS = {name: SMALL_HEARS[name] for name in list(SMALL_HEARS)[:5]}


def errors(heard: dict[str, str]) -> ErrorReport:
    """What is not in `heard` was heard as it was said."""
    hypotheses = [heard.get(name, said) for name, said in CLIPS.items()]
    return measure_errors(list(CLIPS), list(CLIPS.values()), hypotheses, get_normalizer("none"), resamples=200)


def layers(factored: bool) -> tuple[LayerNumbers, ...]:
    made = []
    for layer in range(4):
        for linear, ranks in RANKS.items():
            inputs, outputs = SHAPES.get(linear, (384, 384))
            rank = ranks[layer] if factored else None
            parameters = (inputs + outputs) * rank if rank else inputs * outputs
            made.append(LayerNumbers("encoder", layer, linear, inputs, outputs, rank, parameters, 3000 * parameters))
    return tuple(made)


def latency(speed: float) -> LatencyReport:
    return LatencyReport(
        features=0.0049,
        encoder=0.31 / speed,
        decoder=0.187,
        total=0.0049 + 0.31 / speed + 0.187,
        real_time_factor=30 / (0.0049 + 0.31 / speed + 0.187),
        repeats=5,
        warmup=2,
        audio_seconds=30.0,
        tokens=32,
        device="cpu",
        dtype="float32",
        threads=2,
        batch=1,
    )


def base_model() -> ModelNumbers:
    return ModelNumbers(
        name="base",
        parameters=Parameters(total=37_184_640, nonzero=37_184_000, encoder=7_632_384, decoder=29_552_256),
        encoder_flops=36_900_000_000,
        decoder_flops=2_140_000_000,
        decoder_tokens=32,
        bytes_on_disk=151_061_672,
        layers=layers(False),
        errors=errors(BASE_HEARS),
        latency=latency(1),
        peak_memory=912_000_000,
    )


def smaller_model(name: str, heard: dict[str, str], seconds: float, notes: tuple[str, ...]) -> ModelNumbers:
    return replace(
        base_model(),
        name=name,
        parameters=Parameters(total=32_681_395, nonzero=32_680_800, encoder=3_129_139, decoder=29_552_256),
        encoder_flops=18_800_000_000,
        bytes_on_disk=133_050_000,
        layers=layers(True),
        notes=notes,
        errors=errors(heard),
        comparison=compare(errors(BASE_HEARS), errors(heard), resamples=200),
        latency=latency(1.6),
        peak_memory=871_000_000,
        seconds=seconds,
    )


def run() -> RunNumbers:
    quantized = smaller_model("quantization", TUNED_HEARS, 4.21, ("69 linears to int8, 8 bits",))
    return RunNumbers(
        title="whisper-tiny, smaller: encoder by low rank",
        base="openai/whisper-tiny",
        models=(
            base_model(),
            smaller_model("low_rank", SMALL_HEARS, 214, ("100 clips (1203 s) seen", "23 of 24 linears factored")),
            smaller_model("layerwise_distillation", TUNED_HEARS, 4380, ("2 epochs, final loss 0.021",)),
            replace(quantized, bytes_on_disk=52_600_000),
        ),
        decoding="greedy, English, no timestamps, no fallback",
        test_clips="clips/test: 44 clips, 193 s",
        skipped={"calibration": (), "test": ("clips/bad <1>.wav: does not decode", "clips/ملف.wav: empty")},
        machine={"cpu": "Intel Xeon", "cores": 2, "threads": 2, "python": "3.11.7", "torch": "2.13.0"},
        recipe="base: openai/whisper-tiny\nsteps:\n- low_rank:\n    attention: 0.99\n# <see> https://example.org\n",
        commit="0123abc",
        exports=(
            replace(
                quantized, name="onnx-int8", bytes_on_disk=41_000_000, notes=("the <head> is in 8 bits",), layers=()
            ),
            replace(bare(quantized), name="sherpa-onnx-float32", bytes_on_disk=148_000_000, layers=()),
        ),
    )


def bare(model: ModelNumbers) -> ModelNumbers:
    """Only what is always there."""
    return replace(
        model, errors=None, comparison=None, latency=None, peak_memory=None, bytes_on_disk=None, notes=(), seconds=0.0
    )


def two(base: ModelNumbers, final: ModelNumbers) -> RunNumbers:
    return replace(run(), models=(base, final))


def with_wer(model: ModelNumbers, wer: float) -> ModelNumbers:
    report = errors(BASE_HEARS)
    return replace(model, errors=replace(report, wer=wer, wer_interval=Interval(wer - 0.005, wer + 0.007)))


def compared(difference: float, low: float, high: float) -> Comparison:
    return Comparison(difference, Interval(low, high), 0.0, Interval(0.0, 0.0), 44, "none v1", 0, 200)
