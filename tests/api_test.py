"""The names that the package offers."""

import pytest

import jaxmerge as jm


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tise", "module 'jaxmerge' has no attribute 'tise'; did you mean 'ties'?"),
        ("core_spaces", "no attribute 'core_spaces'; did you mean 'core_space'?"),
        ("xyzzy", "^module 'jaxmerge' has no attribute 'xyzzy'$"),
    ],
)
def test_a_misspelled_name_is_answered_with_the_nearest(name, message):
    with pytest.raises(AttributeError, match=message.replace("?", r"\?")):
        getattr(jm, name)
    assert not hasattr(jm, name)


def test_every_name_is_listed_once():
    assert len(jm.__all__) == len(set(jm.__all__))
