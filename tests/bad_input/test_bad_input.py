"""Every case of the tables is refused clearly."""

import pytest

from tests.bad_input import GROUPS, load
from tests.bad_input.judge import CLEAR, verdict

CASES = [
    pytest.param(case, id=f"{group}-{number:03d}-{case.name[:60]}")
    for group, cases in load(GROUPS).items()
    for number, case in enumerate(cases)
]


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_clearly(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, said = verdict(case, tmp_path)
    assert found == CLEAR, f"{case.argument}: {said}"
