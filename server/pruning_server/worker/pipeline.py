"""The whole story of a job on one page.

Each phase takes and returns immutable values; what it needs of the outside comes in through small ports: the folder of
the run, the clock, and the pipe to the server.
"""

from __future__ import annotations

from pruning_server.jobs.events import RunSucceeded
from pruning_server.jobs.workspace import WorkerJob
from pruning_server.spec.phases import Phase
from pruning_server.worker.certifying import certify
from pruning_server.worker.continuing import tell_of_data
from pruning_server.worker.evidence import ModelEvidence
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.gating import gating_of
from pruning_server.worker.latency import latency_meter
from pruning_server.worker.phases.baseline import judge_original
from pruning_server.worker.phases.evaluate import evaluate
from pruning_server.worker.phases.export import export
from pruning_server.worker.phases.load import load
from pruning_server.worker.phases.observe import observe
from pruning_server.worker.phases.prune import prune
from pruning_server.worker.phases.recover import recover_accuracy
from pruning_server.worker.phases.verify import verify
from pruning_server.worker.planning import Planning, make_plan
from pruning_server.worker.report import Results
from pruning_server.worker.story import Story


def run_job(job: WorkerJob, folder: RunFolder, story: Story) -> RunSucceeded:
    """Prunes, recovers, judges and exports; the files in `out/` are complete when it returns.

    Raises:
        JobFailureError: the run ends without a model; reason and message say what to change, `story.phase` where.
    """
    spec = job.spec
    with story.telling(Phase.LOAD):
        loaded = load(job, folder)
    with story.telling(Phase.OBSERVE):
        observed = observe(spec, loaded, folder, story)
    with story.telling(Phase.BASELINE):
        baseline = judge_original(loaded, observed, story)
    reference = baseline.validation.reference
    meter = latency_meter(job, loaded, observed, folder, story)
    evidence = ModelEvidence(loaded, observed, reference, meter, seed=spec.seed)
    context = Planning(spec, loaded, observed, reference, evidence, folder, story)
    if spec.risk is not None:
        pruned, trained = certify(context, spec.risk)  # the same three phases, of several candidates
    else:
        with story.telling(Phase.PLAN):
            plan = make_plan(context)
        with story.telling(Phase.PRUNE):
            pruned = prune(plan, loaded, observed, folder, story)
        with story.telling(Phase.RECOVER):
            trained = recover_accuracy(spec, loaded, observed, reference, pruned, story)
    with story.telling(Phase.VERIFY):
        final = verify(loaded, observed, pruned, trained, folder, gating_of(spec, loaded, observed, folder, story))
    with story.telling(Phase.EVALUATE):
        evaluated = evaluate(job, loaded, observed, baseline, trained, final, story)
        told = tell_of_data(loaded, observed, pruned.plan, reference, story)
    with story.telling(Phase.EXPORT):
        results = Results(loaded, observed, pruned, trained, final, evaluated, told)
        return export(job, folder, results, story)
