"""What all commands share: wrong input is one line on stderr and exit code 2, an interrupt exit code 130."""
import sys
from contextlib import contextmanager


@contextmanager
def one_line_errors(interrupted: str = ""):
    """with one_line_errors(): run(args)   # ValueError and OSError are what a user can mend; the rest is a bug of ours

    interrupted: what to say, if anything, where Ctrl-C ended it."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if interrupted:
            print(interrupted, file=sys.stderr)
        sys.exit(130)
