"""The full-text index: every change may be repeated, by many processes at once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from packhorse.demo.textindex import Document, GroupWriter, TextIndex


@pytest.fixture
def index(tmp_path: Path) -> Iterator[TextIndex]:
    opened = TextIndex(tmp_path / "index.db")
    yield opened
    assert opened.check() is None
    opened.close()


def test_putting_twice_leaves_one(index: TextIndex) -> None:
    document = Document("a.py", "import horse\n")

    assert index.put([document]) == [True]
    assert index.put([document, document]) == [False, False]
    assert index.paths() == ["a.py"]


def test_a_new_text_takes_the_place_of_the_old(index: TextIndex) -> None:
    index.put([Document("a.py", "old stable")])
    index.put([Document("a.py", "new meadow")])

    assert index.search("stable") == []
    assert [hit.path for hit in index.search("meadow")] == ["a.py"]
    assert index.paths() == ["a.py"]


def test_removing_twice_is_no_error(index: TextIndex) -> None:
    index.put([Document("a.py", "text")])

    assert index.remove("a.py") is True
    assert index.remove("a.py") is False
    assert index.paths() == []


def test_all_words_must_be_found(index: TextIndex) -> None:
    index.put([Document("a", "the quick brown fox"), Document("b", "the lazy dog")])

    assert [hit.path for hit in index.search("the dog")] == ["b"]
    assert index.search("dog")[0].snippet == "the lazy [dog]"


@pytest.mark.parametrize("query", ['"', "a AND", "NEAR(", "path:x", "-", "*", "^", "(", "a\0b", "' OR 1=1 --", "☺"])
def test_no_query_is_syntax(index: TextIndex, query: str) -> None:
    index.put([Document("a", "nothing of it")])

    assert index.search(query) == []


@pytest.mark.parametrize("query", ["", "   ", "\0"])
def test_an_empty_query_finds_nothing(index: TextIndex, query: str) -> None:
    assert index.search(query) == []


def test_the_summary_counts(index: TextIndex) -> None:
    index.put([Document("long", "horse horse mule\nhorse\n"), Document("short", "mule")])

    summary = index.summary(top=1)

    assert (summary.documents, summary.bytes, summary.lines) == (2, 27, 3)
    assert summary.longest == [("long", 23)]
    assert [(word.word, word.occurrences, word.documents) for word in summary.words] == [("horse", 3, 1)]


def test_a_lone_surrogate_is_kept_as_a_mark(index: TextIndex) -> None:
    index.put([Document("a", "bad \ud800 text")])

    assert index.search("text")


def test_documents_of_many_jobs_share_transactions(index: TextIndex) -> None:
    calls: list[int] = []
    put = index.put

    def counting(documents: list[Document]) -> list[bool]:
        calls.append(len(documents))
        return put(documents)

    index.put = counting  # type: ignore[method-assign,assignment]

    async def main() -> list[bool]:
        writer = GroupWriter(index)
        answers = await asyncio.gather(*[writer.put(Document(f"{i}.py", f"text {i}")) for i in range(50)])
        await writer.drained()
        return answers

    assert asyncio.run(main()) == [True] * 50
    assert sum(calls) == 50
    assert len(calls) <= 3
    assert len(index.paths()) == 50


def test_a_failing_transaction_fails_the_jobs_of_its_batch_and_no_other(index: TextIndex) -> None:
    put = index.put

    def failing_once(documents: list[Document]) -> list[bool]:
        index.put = put  # type: ignore[method-assign]
        raise OSError("the disk is full")

    index.put = failing_once  # type: ignore[method-assign,assignment]

    async def main() -> None:
        writer = GroupWriter(index)
        with pytest.raises(OSError, match="full"):
            await writer.put(Document("a", "a"))
        assert await writer.put(Document("a", "a")) is True

    asyncio.run(main())


def test_a_job_that_was_stopped_does_not_stop_the_others(index: TextIndex) -> None:
    async def main() -> None:
        writer = GroupWriter(index)
        stopped = asyncio.create_task(writer.put(Document("a", "a")))
        other = asyncio.create_task(writer.put(Document("b", "b")))
        await asyncio.sleep(0)  # lets both begin
        stopped.cancel()
        assert await other is True

    asyncio.run(main())
    assert "b" in index.paths()


WRITER = """
import sys
from pathlib import Path
from packhorse.demo.textindex import Document, TextIndex
index = TextIndex(Path(sys.argv[1]))
for i in range(40):
    index.put([Document(f"{i}.py", "the same for all"), Document(f"{sys.argv[2]}-{i}.py", "mine")])
"""


def test_many_processes_write_at_once(tmp_path: Path) -> None:
    file = tmp_path / "index.db"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(file), str(number)]) for number in range(3)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]

    index = TextIndex(file)
    paths = index.paths()
    assert len(paths) == len(set(paths)) == 40 + 3 * 40
    assert index.check() is None
    index.close()
