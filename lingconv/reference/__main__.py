"""Compare a converted checkpoint with what the definitions make of its source."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lingconv.reference import DIALECTS, compare_checkpoint, compare_dequantized

DIFFERENT = 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lingconv.reference", description=__doc__)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--dialect", choices=DIALECTS, default="deepseek")
    parser.add_argument("--scale", choices=("f32", "ue8m0"), default="f32")
    parser.add_argument("--arith", choices=("ieee", "cuda"), default="ieee")
    parser.add_argument("--experts-only", action="store_true")
    parser.add_argument("--dequantized", action="store_true", help="SRC is FP8, OUT its BF16 form")
    parser.add_argument("--sample", type=int, metavar="N", help="bytes of N source tensors only")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Print one line; 0 if OUT is as defined, 3 if not."""
    args = _parser().parse_args(arguments)
    if args.dequantized:
        found = compare_dequantized(args.source, args.output, args.sample)
    else:
        found = compare_checkpoint(
            args.source,
            args.output,
            dialect=args.dialect,
            scale=args.scale,
            arith=args.arith,
            experts_only=args.experts_only,
            sample=args.sample,
        )
    extent = "all tensors" if args.sample is None else f"a sample of {args.sample} tensors"
    line = f"{len(found)} differences, the first: {found[0]}" if found else f"identical: {extent}"
    sys.stdout.write(line + "\n")
    return DIFFERENT if found else 0


if __name__ == "__main__":
    sys.exit(main())
