"""Optional packages: the message for a missing one."""

import sys

import pytest

from dualtoken.common.errors import UserError
from dualtoken.common.packages import optional_package


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image", None)
    with pytest.raises(UserError, match=r"torchmetrics is needed .* pip install '\.\[eval\]'"):
        optional_package("torchmetrics.image")
    with pytest.raises(UserError, match=r"no_such_package is needed .* pip install no_such_package"):
        optional_package("no_such_package.part")
