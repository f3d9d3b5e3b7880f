"""What `tools/mutations.py` breaks is still there to be broken, and each of the eight invariants is among it."""

import importlib.util
import sys

from documents import ROOT


def test_every_mutation_finds_its_place() -> None:
    spec = importlib.util.spec_from_file_location("mutations", ROOT / "tools" / "mutations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutations"] = module
    spec.loader.exec_module(module)
    assert {one.invariant for one in module.MUTATIONS} == set(range(1, 9))
    for one in module.MUTATIONS:
        assert (ROOT / one.file).read_text(encoding="utf-8").count(one.old) == 1, one.what
        assert (ROOT / one.test).exists(), one.test
