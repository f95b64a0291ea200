"""Measures encoders in the tiny world, through the real ComfyUI, its sampler and this pack's nodes.

    python dev.py exec lab/evaluate.py                       # none, named, shipped
    python dev.py exec --tools lab/evaluate.py --methods all --several 48 \\
        --report docs/evaluation.md

For every unseen identity and style one picture is drawn by each method, from the same noise, and
compared with the right one. Pictures and trained ablations are kept in the output folder: the same
command again goes on where it stopped, and several with different methods may share the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(os.environ["NESTED_ATTENTION_ROOT"])
# Behind ComfyUI's folder: the checkout's `nodes` must not hide ComfyUI's.
sys.path += [str(ROOT), str(ROOT / "demo")]

from tiny_world import world  # noqa: E402
from tiny_world.files import FILES, UNET, WEIGHTS, MissingWeightsError  # noqa: E402

from lab.ablations.trained import TrainingNeededError  # noqa: E402
from lab.drawing.catalogue import ABLATION_IDENTITIES, catalogue  # noqa: E402
from lab.drawing.evaluation import Evaluation  # noqa: E402
from lab.drawing.studio import Sampling  # noqa: E402
from lab.report.page import write_report  # noqa: E402
from lab.report.results import collect  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    known_methods = catalogue(options.model)
    names = [*known_methods.groups, *known_methods.methods]
    unknown = set(options.methods) - set(names)
    if unknown:
        known = ", ".join(names)
        parser.error(f"--methods: found {', '.join(sorted(unknown))}; there are {known}.")
    evaluation = Evaluation(
        options.output,
        options.weights.absolute(),
        options.seed,
        Sampling(steps=options.steps),
        model=options.model,
    )
    try:
        chosen = known_methods.chosen(options.methods)
        results = collect(evaluation, chosen, options.identities, options.others, options.several)
    except (TrainingNeededError, MissingWeightsError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    rows = results.rows()
    _print(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.report:
        write_report(options.report, results)
        print(f"evaluate: wrote {options.report}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=FILES, default=UNET, help="which base model")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["main"],
        metavar="NAME",
        help=f"groups {', '.join(catalogue().groups)}, or names of methods; default: main",
    )
    parser.add_argument(
        "--identities",
        type=_positive,
        default=256,
        help="of the main group, default: %(default)s",
    )
    parser.add_argument(
        "--others",
        type=_positive,
        default=ABLATION_IDENTITIES,
        metavar="N",
        help="how many identities ablations and curves draw at most, default: %(default)s",
    )
    parser.add_argument(
        "--several",
        type=_positive,
        metavar="N",
        help="also draw N scenes of each kind with two and three subjects, and measure their bleed",
    )
    parser.add_argument("--seed", type=int, default=0, help="of identities, prompts and noise")
    parser.add_argument("--json", type=Path, help="write a row for each method and style")
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="write the document")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the three files")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("evaluation"),
        help="folder for pictures and trained ablations; default: %(default)s",
    )
    parser.add_argument("--steps", type=_positive, default=Sampling.steps, help="of the sampler")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {number}, expected at least 1")
    return number


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each method, and for each of the settings with several subjects."""
    for row in rows:
        if row["style"] not in world.STYLES:
            what = f"{row['method']} ({row['style']}, {row['n']} pictures)"
            cells = [f"{what:76}"]
            for figure in ("subject_psnr", "background_psnr", "bleed", "stranger"):
                if figure in row:
                    interval = f"{row[f'{figure}_low']:.3f}, {row[f'{figure}_high']:.3f}"
                    cells.append(f"{figure} {row[figure]:.3f} [{interval}]")
            print("  ".join(cells))


if __name__ == "__main__":
    sys.exit(main())
