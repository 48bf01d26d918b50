from fuzz import operators


def test_fixed_corpus():
    outcome = operators.drive(seed=0, cases=400)
    assert not outcome.findings
    assert outcome.kinds.total() == 400
