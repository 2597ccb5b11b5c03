import time, sys
import pytest, numpy as np, torch
sys.path.insert(0,'/work/main/tests/worker')
from test_structure_jobs import *
from conftest import prune
import pruning_server.worker.proof as P
@pytest.mark.parametrize("name", ARCHIVES)
def test_show(name, prune):
    inputs, fields = ARCHIVES[name]
    path = shared_file(f"torchscript/{name}.pt")
    import pruning_server.worker.phases.verify as V
    old=V.prove
    def timed(*a,**k):
        t=time.time(); r=old(*a,**k); print(name,'PROVE',time.time()-t); return r
    V.prove=timed
    ran = prune(path, {"inputs": inputs.astype(np.float32)}, strategy=CHANNELS, fine_tune=QUICK, target=target(TargetKind.PARAMETER_RATIO, 0.8), **fields)
    V.prove=old
    print(name, ran.report["verify"])
