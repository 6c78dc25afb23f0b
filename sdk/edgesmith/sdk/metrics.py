"""The figures of an evaluation: what they are called, and in which unit they are."""

from __future__ import annotations

# Figures in dB; all others are in percent.
DECIBELS = frozenset({"psnr", "psnr_bicubic"})
TITLES = {
    "mAP": "mAP",
    "top1": "top-1",
    "top5": "top-5",
    "mIoU": "mean IoU",
    "mIoU_per_image": "mean IoU, image by image",
    "pixel_accuracy": "pixels right",
    "psnr": "PSNR",
    "psnr_bicubic": "PSNR of bicubic enlarging",
    "mask_mAP": "mask mAP",
    "agreement": "agreement",
}


# What a conversion may lose where the recipe does not say: points, and dB.
USUAL_BUDGET, USUAL_BUDGET_DB = 0.5, 0.3


def usual_budget(metric: str | None) -> float:
    """What may be lost of a metric unless told otherwise."""
    return USUAL_BUDGET_DB if metric in DECIBELS else USUAL_BUDGET


def unit_of(metric: str) -> str:
    """``%`` or ``dB``."""
    return "dB" if metric in DECIBELS else "%"


def loss_unit_of(metric: str | None) -> str:
    """What a loss is counted in: ``points`` (of percent) or ``dB``."""
    return "dB" if metric in DECIBELS else "points"


def shown(metric: str, value: float) -> str:
    """The value with its unit, as ``71.07 %``."""
    return f"{value:.2f} {unit_of(metric)}"
