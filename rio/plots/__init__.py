"""Figures: a table in, a matplotlib `Axes` out. Nothing but `save_all` writes a file.

Every function draws into `ax`, or into a new figure of a size that suits it, returns the Axes, and raises PlotError
for a table that cannot be drawn. Rare, common and frequent have the same three colours everywhere, far apart for
colour-blind readers and in grey. The style is applied to the call, never to the process; `with style(dark=True):`
around calls gives figures for a dark page.
"""

from importlib import import_module

from rio.plots.parts import PlotError, counted, percent
from rio.plots.style import (
    ARM_COLORS,
    COLORS,
    GROUP_NAMES,
    GROUPS,
    KIND_COLORS,
    LEVEL_NAMES,
    LINE_COLORS,
    arm_colors,
    ink_on,
    luminance,
    style,
    tint,
)

# Loaded when first asked for: seaborn takes half a second, and tables in notebooks need only names and colours.
_LATER = {
    "data": "count_by_group sorted_tail image_vs_instance_count objects_per_image sizes_by_group company",
    "gradients": "gradient_balance",
    "balance": "balance_by_group image_or_object threshold_advice expected_vs_counted",
    "results": "ap_by_group ap_by_image_count ap_difference errors_by_group",
    "quality": "error_costs confusions",
    "curves": "study_curves",
    "studies": "arm_ap paired_differences",
    "training": "loss_curves over_seams seams_of",
    "objects": "draw_objects object_shapes outlines ZOOM_SCRIPT",
    "page": "inline_svg save_all",
}
_MODULE_OF = {name: module for module, names in _LATER.items() for name in names.split()}
__all__ = [
    "ARM_COLORS",
    "COLORS",
    "GROUPS",
    "GROUP_NAMES",
    "KIND_COLORS",
    "LEVEL_NAMES",
    "LINE_COLORS",
    "PlotError",
    "arm_colors",
    "counted",
    "ink_on",
    "luminance",
    "percent",
]
__all__ += ["style", "tint", *_MODULE_OF]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
