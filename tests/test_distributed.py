"""Training and ranking on several ranks: what one process gives, and what is sent for it."""

import pytest
import torch
from ranks import models, on_ranks, sharded_steps, state, steps

from kgdistil.config import RunConfig, make_config
from kgdistil.graph import Graph
from kgdistil.models import KGEModel
from kgdistil.training.sampled_softmax import SampledSoftmaxEngine

TAUGHT = {"role": "stage1", "teacher": "t", "alpha": 0.6, "temperature": 2.0}
CASES = {
    "plain": {"penalty": 1e-3},
    "row": {"accumulators": "row"},
    "taught": {**TAUGHT, "group": 4},
    "both learn": {**TAUGHT, "role": "stage2"},
    "rank": {"rank": 6, "group": 2},
    "all entities": {"negatives": 64},
    "RotatE": {"model": "RotatE", "negatives": 12},
}


def a_config(**values: object) -> RunConfig:
    shared = {"dataset": "tiny", "model": "ComplEx", "dim": 4, "loss": "softmax", "lr": 0.1, "negatives": 12}
    settings = {"batch_size": 40, "epochs": 6, "check_every": 2, "schedule": "linear", "patience": 0}
    return make_config(**{**shared, **settings, "accumulator": 1e-2, **values})


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_give_what_one_process_gives(tiny_graph: Graph, world: int) -> None:
    configs = [a_config(**values) for values in CASES.values()]
    batches = [torch.arange(0, 40), torch.arange(60, 100), torch.tensor([5, 3])]  # two queries leave ranks without
    found = on_ranks(world, sharded_steps, configs, 30, tiny_graph.train, batches)
    for name, config, *ranks in zip(CASES, configs, *found, strict=True):
        student, teacher = models(config, 30)
        engine = SampledSoftmaxEngine(student, teacher, tiny_graph.train, config)
        one_loss, _ = steps(engine, batches)
        for key, x in state(engine).items():
            whole = ".entities" in key
            theirs = [torch.cat([held[key] for held, _, _ in ranks])] if whole else [held[key] for held, _, _ in ranks]
            for other in theirs:
                torch.testing.assert_close(other, x, rtol=1e-4, atol=1e-5, msg=f"{name} {key}")
                assert whole or torch.equal(other, theirs[0])
        for _, losses, _ in ranks:
            torch.testing.assert_close(torch.stack(losses), torch.stack(one_loss), rtol=1e-5, atol=1e-5, msg=name)
        for i, batch in enumerate(batches):
            sent = sum(bytes_sent[i] for _, _, bytes_sent in ranks)
            assert sent == by_the_formula(engine, batch, 7 + i, world), name


def by_the_formula(engine: SampledSoftmaxEngine, batch: torch.Tensor, base: int, world: int) -> int:
    """The bytes that `distributed.engine` says a step takes."""
    block = -(-30 // world)
    batch = torch.tensor(sorted(batch.tolist(), key=lambda i: bool(engine.is_head[i])))
    answers = torch.cat([engine.answers[s : s + c] for s, c in zip(engine.start[batch], engine.count[batch])])
    candidates = set(engine.candidates(answers, torch.tensor(base))[0].tolist())
    others = 0
    for rank in range(world):
        share = batch[rank::world] if rank < len(batch) else batch[:1]
        own = set(engine.anchor[share].tolist()) - candidates
        others += sum(1 for e in own if e // block != rank)

    def sums(model: KGEModel, further: int) -> int:
        numbers = model.relations.numel() + (model.map.numel() if model.rank else 0) + further
        return 8 * (world - 1) * numbers

    total = 0
    for role, model in engine.models.items():
        rows = 4 * model.entities.shape[1] * ((world - 1) * len(candidates) + others)
        total += 2 * rows if role in engine.trained else rows
        if role == "student":
            book = engine.moments.get("student.codebook")
            total += sums(model, 6 + (0 if book is None else book.numel()))
        elif role in engine.trained:
            total += sums(model, 0)
    return total
