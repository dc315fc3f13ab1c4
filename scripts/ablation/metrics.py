"""The metrics of ablations: their labels, formats, and which direction is better."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Metric:
    """label: heading of its column. digits: after the point. better: +1 if more is better, -1 if less is,
    else 0. unit: written after differences."""

    label: str
    digits: int = 1
    better: int = 1
    unit: str = ""


#: A run's values; None where undefined. "NAME/PART" is the metric NAME of one set, skill or kind.
Metrics = dict[str, float | None]

METRICS: dict[str, Metric] = {
    # tokenizers
    "psnr_scenes": Metric("PSNR scenes", 2, unit=" dB"),
    "psnr_photos": Metric("PSNR photos", 2, unit=" dB"),
    "ssim_photos": Metric("SSIM photos", 3),
    "teacher_frechet": Metric("Fréchet distance, teacher's features", 2, better=-1),
    "pixel_usage": Metric("pixel codes used %", 1, unit=" points"),
    "semantic_usage": Metric("semantic codes used %", 1, unit=" points"),
    "white_pixel_nats": Metric("entropy of white patches' pixel codes, nats", 2, -1, " nats"),
    "white_semantic_nats": Metric("entropy of white patches' semantic codes, nats", 2, -1, " nats"),
    "feature_cosine": Metric("cosine to the teacher's features", 3),
    "pooled_cosine": Metric("cosine to the teacher's pooled output", 3),
    "zero_shot": Metric("zero-shot %", 1, unit=" points"),
    "probe_semantic": Metric("probe of semantic features %", 1, unit=" points"),
    "probe_pixel": Metric("probe of pixel features %", 1, unit=" points"),
    # unified models
    "answers": Metric("answers correct %", 1, unit=" points"),
    "scene_answers": Metric("scenes, correct %", 1, unit=" points"),
    "drawings": Metric("images correct %", 1, unit=" points"),
    "drawings_colour": Metric("images, colours correct %", 1, unit=" points"),
    "drawings_empty": Metric("images empty %", 1, better=-1, unit=" points"),
    "text_nats": Metric("held-out answers, nats a token", 3, better=-1, unit=" nats"),
    "pixel_nats": Metric("held-out pixel codes, nats a position", 2, better=-1, unit=" nats"),
    "semantic_nats": Metric("held-out semantic codes, nats a position", 2, better=-1, unit=" nats"),
    "visual_nats": Metric("all held-out codes, nats a position", 2, better=-1, unit=" nats"),
}


def metric_of(name: str) -> Metric:
    """The metric of that name; "answers/easyvqa" is `answers` on that set."""
    base, slash, part = name.partition("/")
    metric = METRICS[base]
    return replace(metric, label=f"{metric.label}: {part.replace('_', ' ')}") if slash else metric
