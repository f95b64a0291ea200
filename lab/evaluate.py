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
from pathlib import Path

ROOT = Path(os.environ["NESTED_ATTENTION_ROOT"])
# Behind ComfyUI's folder: the checkout's `nodes` must not hide ComfyUI's.
sys.path += [str(ROOT), str(ROOT / "demo")]

from tiny_world.files import WEIGHTS, MissingWeightsError  # noqa: E402

from lab.ablations.trained import TrainingNeededError  # noqa: E402
from lab.drawing import methods  # noqa: E402
from lab.drawing.evaluation import Evaluation  # noqa: E402
from lab.drawing.studio import Sampling  # noqa: E402
from lab.measures import scores  # noqa: E402
from lab.report.page import write_report  # noqa: E402
from lab.report.results import Results, collect  # noqa: E402
from lab.report.several import GroupResults, collect_groups  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    unknown = set(options.methods) - {*methods.GROUPS, *methods.METHODS}
    if unknown:
        known = ", ".join([*methods.GROUPS, *methods.METHODS])
        parser.error(f"--methods: found {', '.join(sorted(unknown))}; there are {known}.")
    evaluation = Evaluation(
        options.output,
        options.weights.absolute(),
        options.seed,
        Sampling(steps=options.steps, cfg=options.cfg),
        options.batch,
    )
    try:
        results = collect(evaluation, methods.chosen(options.methods), options.identities)
        several = collect_groups(evaluation, options.several) if options.several else None
    except (TrainingNeededError, MissingWeightsError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    _print(results)
    if several is not None:
        _print_several(several)
    if options.json:
        rows = [*results.rows(), *(several.rows() if several else ())]
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.report:
        write_report(options.report, results, several)
        print(f"evaluate: wrote {options.report}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["main"],
        metavar="NAME",
        help=f"groups {', '.join(methods.GROUPS)}, or names of methods; default: main",
    )
    parser.add_argument(
        "--identities",
        type=_positive,
        default=256,
        help="of the main group, default: %(default)s; all others draw at most "
        f"{methods.ABLATION_IDENTITIES}",
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
    parser.add_argument("--cfg", type=float, default=Sampling.cfg, help="guidance")
    parser.add_argument(
        "--batch",
        type=int,
        choices=range(1, methods.MAX_SUBJECTS + 1),
        metavar="N",
        default=4,
        help="identities in one run of the sampler, at most 32; changes no picture",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {number}, expected at least 1")
    return number


def _print(results: Results) -> None:
    print(f"{'dB, all styles':24}{'subject':>24}{'background':>24}{'n':>6}")
    for row in results.rows():
        if row["style"] == scores.ALL:
            cells = (
                f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
                for name in ("subject_psnr", "background_psnr")
            )
            print(
                f"{row['method']:24}" + "".join(f"{cell:>24}" for cell in cells) + f"{row['n']:6}"
            )


def _print_several(several: GroupResults) -> None:
    print(f"{'several subjects':54}{'subjects':>10}{'background':>12}{'bleed':>8}{'stranger':>10}")
    for row in several.rows():
        name = f"{row['style']}: {row['method'].removeprefix('several: ')}"
        print(
            f"{name:54}{row['subject_psnr']:10.2f}{row['background_psnr']:12.2f}"
            f"{row['bleed']:8.3f}{row['stranger']:10.3f}"
        )


if __name__ == "__main__":
    sys.exit(main())
