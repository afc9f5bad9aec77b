"""`rio check`: what is wrong with an annotation file."""

from __future__ import annotations

import argparse


def check(args: argparse.Namespace) -> int:
    """What is wrong with an annotation file, what it means for training and AP, and the fix."""
    from rio.checks.check import check

    given = {"train": args.train, "train_images": args.train_images, "results": args.results, "write": args.write}
    report = check(args.annotations, images=args.images, **given)
    print(report)
    return report.exit_code
