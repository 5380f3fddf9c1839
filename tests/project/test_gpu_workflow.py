"""The GPU workflow's result for each way in which `make gpu` can end: wrong results, work left to do, or no outcome."""

import pytest
from test_workflows import measure

ENDED = 'mkdir -p "$WORK"; echo "{}" > "$WORK/outcome.txt"; exit {}'


@pytest.mark.parametrize(
    ("make", "calls", "code", "said"),
    [
        (ENDED.format("all done", 0), 1, 0, ""),
        (ENDED.format("left to do: bench", 2), 3, 2, "::warning title=Left to do::left to do: bench"),
        (ENDED.format("wrong results in correctness", 2), 1, 2, "::error title=Wrong results::wrong results in correctness"),
        ("exit 2", 1, 2, "::error title=Failed::nothing was noted, exit code 2"),
    ],
)
def test_the_job_says_how_it_ended_and_calls_again_only_for_what_is_left(tmp_path, make, calls, code, said):
    ended = measure(tmp_path, f"echo >> calls; {make}")
    assert (ended.returncode, ended.stdout.strip()) == (code, said)
    assert len((tmp_path / "calls").read_text().splitlines()) == calls


def test_a_later_call_that_ends_well_is_how_the_job_ended(tmp_path):
    make = f"if [ -f calls ]; then {ENDED.format('all done', 0)}; fi; echo >> calls; {ENDED.format('left to do: bench', 2)}"
    ended = measure(tmp_path, make)
    assert (ended.returncode, ended.stdout) == (0, "")
