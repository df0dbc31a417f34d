from pathlib import Path
from tests.ranks import Ranks
CASES = "tests.multirank.placed_cases"

def test_a(ranks: Ranks, tmp_path: Path) -> None:
    v = dict(order=[2,3,0,1], fp64=False)
    job = ranks.run(2, f"{CASES}:agreement", str(tmp_path), {"expert_model_parallel_size": 2}, {"a":v, "b":v|{"order":[1,0,2,3]}, "c":v|{"order":[3,0,2,1], "fp64": True},"d": v|{"order":[3,0,2,1], "fp64": True, "settings":{"grove_kernel":"megatron"}}}, False, folder=tmp_path, timeout=120)
    for r in job.check().results():
        for one in r.items():
            print(one)
    assert 0
