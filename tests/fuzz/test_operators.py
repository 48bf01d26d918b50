from fuzz import operators


def test_fixed_corpus():
    outcome = operators.drive(seed=0, cases=250)
    assert not outcome.findings
    assert outcome.kinds.total() == 250
