"""2,000 corrupted inputs, spread over all readers; ``make fuzz`` reads 100,000."""

import fuzzing
import pytest

pytestmark = pytest.mark.usefixtures("standard_promotion")
COUNT, SECONDS = 2000, 90


# Threads of orbax call back into a loop that a damaged checkpoint has ended.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_corrupted_inputs_are_read_right_or_refused(tmp_path):
    fuzz = fuzzing.Fuzz(tmp_path)
    findings = list(fuzz.run(range(COUNT), seconds=SECONDS))
    assert findings == []
    tried = sum(fuzz.tried.values())
    assert tried == COUNT or tried > COUNT / 4  # a slow machine does what it can
    assert fuzz.tried.keys() == fuzzing.READERS.keys()
    assert 0 < sum(fuzz.read.values()) < tried
