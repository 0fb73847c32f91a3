"""Every trick acts in architectures from elsewhere where an expert would put it; what differs is named here."""

from __future__ import annotations

import pytest
from models.architectures import ARCHITECTURES
from models.expected import TRICKS
from models.outside import EXPECTED
from models.placed import agree, outcome

pytestmark = pytest.mark.slow

DIFFERENT: dict[tuple[str, str], str] = {}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("name", EXPECTED)
def test_a_trick_acts_where_an_expert_would_put_it(name, trick):
    architecture = ARCHITECTURES[name]
    pytest.importorskip(architecture.source, reason=f"{architecture.source} is missing: pip install 'trickbox[models]'")
    expected, found = EXPECTED[name][trick], outcome(architecture.build(), architecture.inputs(), trick)
    assert agree(expected, found) == ((name, trick) not in DIFFERENT), (expected, found)
