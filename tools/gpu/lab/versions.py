"""What the scripts that write versions of a kernel share: their arguments, and the file that the program takes."""

import argparse
import json
import os
from pathlib import Path

LANES = 32
"""Lanes of a subgroup."""
SHARED = 48 << 10
"""Bytes of workgroup memory that NVIDIA's cards have."""


def case(name, work, wgsl, workgroups, inputs, output, flops, packed=False, aligned=False):
    """A version as `src/case.rs` describes it."""
    return {
        "name": name, "work": work, "wgsl": wgsl, "workgroups": workgroups, "inputs": inputs, "output": output,
        "flops": flops, "packed": packed, "aligned": aligned,
    }  # fmt: skip


def fits(label, bytes_):
    """Whether a version's workgroup memory is there; says so if not."""
    if bytes_ > SHARED:
        print(f"left out, {bytes_} bytes of workgroup memory: {label}")
    return bytes_ <= SHARED


def write(description, default, cases):
    """Reads the arguments and writes what `cases` makes for them, whole or not at all."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="one small size, for a driver of the CPU")
    parser.add_argument("--out", type=Path, default=Path(default))
    args = parser.parse_args()
    found = cases(args.tiny)
    temporary = args.out.with_name(f"{args.out.name}.part")
    temporary.write_text(json.dumps(found))
    os.replace(temporary, args.out)
    print(f"{len(found)} versions in {args.out}")
