"""Adam on the rows that a step uses: PyTorch's, dense, whatever a row waits, at a cost that does not grow with E."""

import pytest
import torch
from test_kernels import Learning, learning
from torch.utils._python_dispatch import TorchDispatchMode

from kgdistil.kernels import adam
from kgdistil.kernels.adam import Adam
from kgdistil.models import MODELS, DistMult
from kgdistil.training.reference import ReferenceEngine

LOOKED_UP = ("index_select", "index_copy_", "embedding", "detach", "alias")  # of a table, they touch the rows asked for


def test_it_is_pytorchs_dense_adam() -> None:
    """Rows that wait for none to hundreds of steps, with gradients from 1e-10, far below ε's reach, to 10."""
    draw, steps, size = torch.Generator().manual_seed(1), 250, 60
    model, dense = DistMult(size, 2, 4), DistMult(size, 2, 4)
    model.reset(draw)
    dense.load_state_dict(model.state_dict())
    dense.double()
    theirs, done = torch.optim.Adam(dense.parameters(), lr=0.0), torch.zeros((), dtype=torch.int64)
    ours, scale = Adam(model, steps, 1, done), 10.0 ** torch.randint(-10, 2, (size, 1), generator=draw)
    assert ours.sparse
    for epoch in range(2):
        rates = torch.linspace(0.02, 0.005, steps, dtype=torch.float64)
        done.zero_()
        ours.begin(rates, epoch * steps)
        for step in range(steps):
            ids = torch.randint(size, (3,), generator=draw)
            pull = torch.randn(3, 4, generator=draw) * scale[ids]
            rows, place = ours.take(ids)
            torch.testing.assert_close(rows[place].double(), dense.entities[ids], rtol=0, atol=3e-6)
            ((rows[place] * pull).sum() + 0.3 * model.relations.sum()).backward()
            dense.entities.grad = torch.zeros_like(dense.entities).index_add_(0, ids, pull.double())
            dense.relations.grad = torch.full_like(dense.relations, 0.3)
            theirs.param_groups[0]["lr"] = float(rates[step])
            theirs.step()
            ours.step()
            done += 1
        ours.end()
        for name, table in model.named_parameters():
            wanted = dict(dense.named_parameters())[name]
            torch.testing.assert_close(table.double(), wanted, rtol=0, atol=3e-6)
            for own, other in (("m", "exp_avg"), ("v", "exp_avg_sq")):
                moment = theirs.state[wanted][other]
                torch.testing.assert_close(ours.moments[f"{name}.{own}"].double(), moment, rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stage", [0, 2])
def test_rows_give_what_whole_tables_give(name: str, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Learning] = []
    for enough in (8, 0):
        monkeypatch.setattr(adam, "ENOUGH", enough)
        found.append(learning(ReferenceEngine, name, stage=stage, loss=MODELS[name].loss, batch_size=16))
        assert found[-1].engine.adam["student"].sparse == (enough == 0)
    whole, rows = (one.run(3, rate=0.01) for one in found)
    assert rows[-1] == pytest.approx(whole[-1], rel=1e-4, abs=1e-9)
    for key, x in found[0].tensors().items():
        torch.testing.assert_close(found[1].tensors()[key], x, rtol=1e-3, atol=3e-5, msg=key)


class Numbers(TorchDispatchMode):
    """Counts the numbers that operations read and write; of the table that rows are looked up in, those rows."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        looked_up = function.overloadpacket.__name__ in LOOKED_UP
        for x in (*args[looked_up:], *(() if looked_up and function._schema.is_mutable else (out,))):
            self.count += x.numel() if isinstance(x, torch.Tensor) and not function.is_view else 0
        return out


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_step_costs_the_same_whatever_the_size_of_the_graph(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    triples = torch.tensor([[7 * i, i % 3, 11 * i + 1] for i in range(40)])

    def cost(entities: int) -> int:
        sizes = {"triples": triples, "sizes": (entities, 3), "dims": (4, 8)}
        engine = learning(ReferenceEngine, "ComplEx", stage=stage, batch_size=16, loss="cross-entropy", **sizes).engine
        with Numbers() as numbers:
            engine.step(16)
        return numbers.count

    assert cost(2_000) == cost(50_000)
    monkeypatch.setattr(adam, "ENOUGH", 1 << 20)
    assert cost(50_000) - cost(2_000) > 8 * 48_000, "a dense step would be seen"
