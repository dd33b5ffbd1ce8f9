r"""XSum: news articles and summaries of one sentence (Narayan et al., arXiv 1808.08745).

A record in the form of the source, shortened:

    {"document": "The lifeboat was called out shortly after six in the morning, when a fishing boat ...",
     "summary": "Three fishermen have been towed to safety after their engine failed in a gale.", "id": "38264402"}

Asked as the papers on early exits do, with one example first; ours is written for this package.
"""

from hispec.datasets.base import Dataset, HubFile, Record, Row, id_of, text_of
from hispec.datasets.files import shipped_records
from hispec.datasets.scoring import rouge_l


class XSum(Dataset):
    """One-shot summaries of one sentence, ROUGE-L."""

    name = "xsum"
    description = "News articles to summarize in one sentence (test set, 11,334 rows), one example first."
    metric = "rouge_l"
    raw = True
    stop = ("\n",)
    max_new_tokens = 62  # as in the evaluation of BART, arXiv 1910.13461
    hub = HubFile("EdinburghNLP/xsum", "7d4d486c2f8ef850b1a11aead99b894ff3dd7da9", "data/test-00000-of-00001.parquet")

    def __init__(self) -> None:
        (shot,) = shipped_records("xsum_shot")
        self._example = f"Article: {shot['document']}\nSummary: {shot['summary']}"

    def row(self, record: Record, index: int) -> Row:
        """Format one record of the source; see `Dataset.row`."""
        prompt = f"{self._example}\n\nArticle: {text_of(record, 'document').strip()}\nSummary:"
        own = id_of(record, "id")
        return Row(str(index) if own is None else own, (prompt,), text_of(record, "summary"), numbered=own is None)

    def score(self, row: Row, text: str) -> float:
        """Return the ROUGE-L of a summary; see `rouge_l`."""
        return rouge_l(row.reference, self.before_stop(text))
