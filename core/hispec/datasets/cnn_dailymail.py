r"""CNN/DailyMail: news articles and their highlights (See et al., arXiv 1704.04368; version 3.0.0).

A record in the form of the source, shortened:

    {"article": "(CNN)The footbridge at Alder Lock will close for ten weeks from Monday while engineers ...",
     "highlights": "The footbridge closes for ten weeks .\nWalkers walk two miles more .", "id": "f001ec5c4704..."}

Asked as the papers on early exits do, with one example first; ours is written for this package.
"""

from hispec.datasets.base import Dataset, HubFile, Record, Row, text_of
from hispec.datasets.files import shipped_records
from hispec.datasets.scoring import rouge_l


class CNNDailyMail(Dataset):
    """One-shot summaries of several sentences, ROUGE-L."""

    name = "cnn_dailymail"
    description = "News articles to summarize in a few sentences (test set, 11,490 rows), one example first."
    metric = "rouge_l"
    raw = True
    stop = ("\nArticle:", "\n\n")
    max_new_tokens = 142  # as in the evaluation of BART, arXiv 1910.13461
    hub = HubFile(
        "abisee/cnn_dailymail", "96df5e686bee6baa90b8bee7c28b81fa3fa6223d", "3.0.0/test-00000-of-00001.parquet"
    )

    def __init__(self) -> None:
        (shot,) = shipped_records("cnn_dailymail_shot")
        self._example = f"Article: {shot['article']}\nSummary: {shot['highlights']}"

    def row(self, record: Record, index: int) -> Row:
        """Format one record of the source; see `Dataset.row`."""
        prompt = f"{self._example}\n\nArticle: {text_of(record, 'article').strip()}\nSummary:"
        return Row(str(record.get("id", index)), (prompt,), text_of(record, "highlights"))

    def score(self, row: Row, text: str) -> float:
        """Return the ROUGE-L of a summary; see `rouge_l`."""
        return rouge_l(row.reference, self.before_stop(text))
