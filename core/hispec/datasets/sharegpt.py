"""ShareGPT: what people asked a chat assistant, as servers are benchmarked with it.

A record in the form of the source:

    {"id": "QWJhYvA_0", "conversations": [{"from": "human", "value": "Which planets have rings?"},
     {"from": "gpt", "value": "All four giant planets do: ..."}]}

The prompt is the opening message, as in the benchmarks of vLLM and SGLang; conversations that a person does not open
are left out. The file is one JSON array of 0.7 GB and is read as a whole.
"""

from hispec.datasets.base import Dataset, HubFile, Record, RecordError, Row, checked_text


class ShareGPT(Dataset):
    """Chat questions of one turn, not scored."""

    name = "sharegpt"
    description = "Opening messages of people's conversations with an assistant (94,145 conversations)."
    max_new_tokens = 512
    hub = HubFile(
        "anon8231489123/ShareGPT_Vicuna_unfiltered",
        "192ab2185289094fc556ec8ce5ce1e8e587154ca",
        "ShareGPT_V3_unfiltered_cleaned_split.json",
    )

    def row(self, record: Record, index: int) -> Row | None:
        """Format one record of the source; see `Dataset.row`."""
        messages = record.get("conversations")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise RecordError("has no conversations, a list of messages")
        if not messages or messages[0].get("from") not in ("human", "user"):
            return None
        opening = messages[0].get("value")
        if isinstance(opening, str) and not opening.strip():
            return None
        return Row(f"sharegpt/{index}", (checked_text(opening, "value"),))
