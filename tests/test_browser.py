"""What the browser computes is what Python computes: node runs the page's own module on exported models."""

import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from kgdistil import ConfigError, KGEModel, build_model, predict, records
from kgdistil.compress.packing import GROUPS, quantised
from kgdistil.models import MODELS, kind_of
from kgdistil.students.browser import export, export_graph

MODULE = records.root() / "book" / "site" / "try" / "kge.mjs"
SCRIPT = """
import { readFile } from "node:fs/promises";
const { best, openModel, scoreTails } = await import(process.argv[1]);
const read = async (path) => new Uint8Array(await readFile(path)).buffer;
const model = await openModel(process.argv[2], read);
const answers = JSON.parse(process.argv[3]).map(([h, r]) => {
  const scores = scoreTails(model, h, r);
  const ids = best(scores, 11);
  return { ids, scores: Array.from(scores) };
});
console.log(JSON.stringify(answers));
"""


def ask(folder, queries):
    """What kge.mjs answers: for each query the ten best ids and all scores."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed; tests/test_book.py compares the same in a browser")
    command = ["node", "--input-type=module", "-e", SCRIPT, MODULE.as_uri(), str(folder), json.dumps(queries)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("name", [*MODELS, "LowRankComplEx"])
def test_node_gives_the_scores_and_answers_of_python(name, norm, tiny_graph, tmp_path):
    graph = tiny_graph
    low = {"rank": 7} if name == "LowRankComplEx" else {}
    model = build_model(name, graph.num_entities, graph.num_relations, 6, seed=1, norm=norm, offset=3.0, **low)
    with torch.no_grad():
        model.entities.mul_(3)
    export(model, graph, tmp_path)
    queries = [(0, 0), (7, 3), (29, 1)]
    for (h, r), found in zip(queries, ask(tmp_path, queries), strict=True):
        expected = model.score_tails(torch.tensor([h]), torch.tensor([r]))[0].detach().numpy()
        np.testing.assert_allclose(found["scores"], expected, atol=1e-4, rtol=0)
        ours = predict(model, graph, head=h, relation=r, k=10, by="id")
        reflexive = graph.train[graph.train[:, 0] == graph.train[:, 2], 1].tolist()
        found_ids = [i for i in found["ids"] if i != h or r in reflexive]
        assert [graph.entities[i] for i in found_ids[:10]] == list(ours["entity"])


@pytest.mark.parametrize("precision", GROUPS)
@pytest.mark.parametrize("name", ["ComplEx", "LowRankComplEx", "DistMult", "SimplE", "TransE", "RotatE"])
def test_node_reads_four_bit_codes(name, precision, umls, tmp_path):
    dim = 4 if kind_of(name).entity_factor == 2 else 12  # 12 floats in groups of 4: an odd number of groups
    low = {"rank": 4} if name == "LowRankComplEx" else {}
    model = build_model(name, umls.num_entities, umls.num_relations, dim, seed=1, offset=3.0, **low)
    model = quantised(model, precision)
    export(model, umls, tmp_path, precision=precision)
    assert not (tmp_path / "entities.f32").exists()
    queries = [(0, 0), (134, 45)]
    for (h, r), found in zip(queries, ask(tmp_path, queries), strict=True):
        expected = model.score_tails(torch.tensor([h]), torch.tensor([r]))[0].detach().numpy()
        np.testing.assert_allclose(found["scores"], expected, atol=1e-4, rtol=0)


def test_names_that_several_entities_share_carry_their_label(tiny_graph, tmp_path):
    graph = replace(tiny_graph, descriptions={"e00": "dog", "e01": "dog", "e02": "cat"})
    export_graph(graph, tmp_path)
    names = json.loads((tmp_path / "names.json").read_text())
    assert names["entities"][:4] == ["dog (e00)", "dog (e01)", "cat", "e03"]
    triples = np.fromfile(tmp_path / "triples.i32", "<i4").reshape(-1, 3)
    assert triples.tolist() == graph.known.tolist()
    assert names["splits"] == {"train": 160, "valid": 20, "test": 20}


def test_a_model_of_another_graph_or_kind_is_refused(tiny_graph, tmp_path):
    class Own(MODELS["DistMult"]):
        pass

    with pytest.raises(ConfigError, match="no score in the browser"):
        export(Own(30, 4, 2), tiny_graph, tmp_path)
    with pytest.raises(ConfigError, match="31 entities"):
        export(build_model("TransE", 31, 4, 2), tiny_graph, tmp_path)
    assert issubclass(Own, KGEModel) and not list(tmp_path.iterdir())
