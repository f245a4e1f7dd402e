"""Negative sampling by `kernels/train.cpp`, one epoch a call, compiled for the CPU."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kgdistil.config import CrossEntropy, Margin, RunConfig
from kgdistil.kernels import pointer, threads
from kgdistil.kernels.train import Epoch, Learner, train_library
from kgdistil.losses import PARTS
from kgdistil.models import KGEModel, RotatE
from kgdistil.sampling import GOLDEN, TripleSet
from kgdistil.training.base import Engine


class NativeEngine(Engine):
    """`reference.ReferenceEngine`, compiled: same arguments, same numbers up to rounding.

    Its sums do not depend on the number of threads, but for the losses that it reports.
    """

    @staticmethod
    def can(student: KGEModel, teacher: KGEModel | None, config: RunConfig) -> bool:
        """Whether the loss and the models are ones that `train.cpp` knows, and it can be compiled."""
        known = isinstance(config.objective, Margin | CrossEntropy)
        return known and all(m is None or train_library(m) is not None for m in (student, teacher))

    def __init__(self, student: KGEModel, teacher: KGEModel | None, triples: Tensor, config: RunConfig):
        super().__init__(student, teacher, len(triples), config)
        self.triples = triples.to(torch.int32).contiguous()
        self.keys = TripleSet(triples, student.num_entities, student.num_relations).keys
        # one bit for each hashed key answers most questions; 48 bits a triple keep false alarms near 2 %
        self.bitmap_bits = max(10, (48 * len(triples) - 1).bit_length())
        bits = torch.zeros(1 << self.bitmap_bits, dtype=torch.bool)
        bits[((self.keys * GOLDEN) >> (64 - self.bitmap_bits)) & ((1 << self.bitmap_bits) - 1)] = True
        self.bitmap = torch.from_numpy(np.packbits(bits.numpy(), bitorder="little").view("int64"))
        self.libraries = {role: train_library(model) for role, model in self.models.items()}
        for role, model in self.trained.items():
            for table, x in model.named_parameters():
                for part in ("m", "v"):
                    self.moments[f"{role}.{table}.{part}"] = torch.zeros_like(x.data)

    def learner(self, role: str, rates: Tensor) -> Learner:
        """A model and its moments as train.cpp takes them; rates: float64 [steps], which must outlive the call."""
        model = self.models[role]
        given: dict[str, Any] = {
            f"{field}_{part}": pointer(self.moments.get(f"{role}.{table}.{part}"))
            for field, table in (("entity", "entities"), ("relation", "relations"))
            for part in ("m", "v")
        }
        given |= {"entity": pointer(model.entities.data), "relation": pointer(model.relations.data)}
        given |= {"num_entities": model.num_entities, "num_relations": model.num_relations, "rates": pointer(rates)}
        given |= {"offset": model.offset if model.distance else 0.0, "penalty": self.config.penalty}
        given |= {"scale": torch.pi / model.range if isinstance(model, RotatE) else 1.0}
        given |= {"trained": role in self.trained, "weight": self.weights[role]}
        return Learner(ops=self.libraries[role].kgd_ops(), **given)

    def epoch(self, epoch: int, rates: Tensor, teacher_rates: Tensor | None = None) -> dict[str, float]:
        self.begin(epoch)
        config = self.config
        given = {"student": rates, "teacher": rates if teacher_rates is None else teacher_rates}
        kept = {role: given[role].double().contiguous() for role in self.models}
        learners = {role: self.learner(role, kept[role]) for role in self.models}
        call = Epoch(triples=pointer(self.triples), n=len(self.triples), first_step=epoch * self.steps, epoch=epoch)
        call.keys, call.num_keys = pointer(self.keys), len(self.keys)
        call.bitmap, call.bitmap_bits = pointer(self.bitmap), self.bitmap_bits
        call.batch = min(config.batch_size, len(self.triples))  # working memory is made for a whole batch
        call.k, call.threads, call.seed = config.negatives, threads(), config.seed % (1 << 64)
        call.margin_loss, call.margin, call.temperature = config.loss == "margin", config.gamma, config.temperature
        call.weighting = ("sum", "mean", "self-adversarial").index(config.weighting)
        call.student = ctypes.pointer(learners["student"])
        call.teacher = ctypes.pointer(learners["teacher"]) if "teacher" in learners else None
        self.libraries["student"].kgd_epoch(ctypes.byref(call))
        self.phases = dict(zip(("sample", "bucket", "loss", "update"), call.phases, strict=True))  # seconds
        return dict(zip(PARTS, call.losses, strict=True))
