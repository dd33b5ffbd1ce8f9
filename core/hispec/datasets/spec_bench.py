"""Spec-Bench: 480 questions on which speculative decoders are compared (Xia et al., arXiv 2401.07851).

MT-bench, translation, summarization, question answering, mathematics and retrieval, in the form of MT-bench's file.
A record in the form of the source:

    {"question_id": 161, "category": "translation", "turns": ["Translate German to English: Die Stadt wuchs schnell."]}

It is published as `data/spec_bench/question.jsonl` of github.com/hemingkx/Spec-Bench and has no home on a hub.
"""

from typing import ClassVar

from hispec.datasets.base import HubFile
from hispec.datasets.mt_bench import MTBench


class SpecBench(MTBench):
    """Chat questions of one or two turns."""

    name = "spec_bench"
    description = "The questions of Spec-Bench (480 rows, from a file: github.com/hemingkx/Spec-Bench)."
    hub: ClassVar[HubFile | None] = None
