"""``fintune demo`` with a model that takes its time over each token, so that a busy browser sees the answer grow."""

import sys
import time

from fintune.cli import main
from fintune.serving import streaming

TOKEN_SECONDS = 0.03
at_once = streaming._write


def slowly(predictor, prompt, most, heard, *options):
    def waits(answer):
        time.sleep(TOKEN_SECONDS)
        return heard(answer)

    at_once(predictor, prompt, most, waits, *options)


if __name__ == "__main__":
    streaming._write = slowly
    sys.exit(main(sys.argv[1:]))
