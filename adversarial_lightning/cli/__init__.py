"""The command line: ``lightning fit|validate|test|predict|evaluate|compare|fit-detector|paper|configs …``."""

import os
import sys

_TRAINING = ("fit", "validate", "test", "predict")
_HELP = """usage: lightning COMMAND ...

  fit            train a network:       lightning fit --config quickstart
  validate       ... on held-out data:  lightning validate --config FILE --ckpt_path FILE
  test           ... on test data
  predict        ... logits of test data
  evaluate       attack a checkpoint:   lightning evaluate --checkpoint FILE --suite quick --output FOLDER
  compare        evaluations in one table:  lightning compare FOLDER FOLDER ...
  fit-detector   fit a detector:        lightning fit-detector --checkpoint FILE --detector FILE --attack FILE
  paper          tables of a paper, with a verdict a cell:  lightning paper atent --table 2 --dry-run
  configs        list the packaged configurations, or print one of them

lightning COMMAND --help lists the options of a command; that of evaluate and fit-detector also lists every class that
fits: lightning evaluate --help | grep -A2 '^  --'. A configuration is a path or the name of a packaged one.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Exit status: 0 done, 2 an error of the user's, 143 after SIGTERM."""
    argv = sys.argv[1:] if argv is None else argv
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # class_path: mymodule.MyAttack, from the folder where the command is typed
    command, rest = argv[:1], argv[1:]
    if command == ["configs"]:
        from adversarial_lightning.cli import configs
        from adversarial_lightning.cli.messages import exits

        return exits(lambda: configs.main(rest))
    if command and command[0] in _TRAINING:
        from adversarial_lightning.cli import train

        return train.run(argv)
    if command == ["evaluate"]:
        from adversarial_lightning.cli import evaluate

        return evaluate.main(rest)
    if command == ["compare"]:
        from adversarial_lightning.cli import compare

        return compare.main(rest)
    if command == ["fit-detector"]:
        from adversarial_lightning.cli import fit_detector

        return fit_detector.main(rest)
    if command == ["paper"]:
        from adversarial_lightning.cli import paper

        return paper.main(rest)
    asked = command in (["-h"], ["--help"])
    if command and not asked:
        print(f"error: there is no command {command[0]!r}", file=sys.stderr)
    print(_HELP, end="", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def evaluate_main() -> int:
    """``evaluate.py …``: evaluates, or runs the command that is named first."""
    argv = sys.argv[1:]
    return main(argv if argv[:1] in (["compare"], ["fit-detector"], ["paper"]) else ["evaluate", *argv])
