"""The questions of a stage lie where a page finds them, whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from posttrain_plugins.decisions.item import items_of
from posttrain_plugins.decisions.questions import (
    Questions,
    latest_questions,
    question_ids,
    read_questions,
    write_questions,
)

ITEMS = items_of([{"prompt": "p", "completions": ["a", "b"], "solution": "4"}], "pick", source="r:s")[0]


def test_questions_are_read_as_they_were_written(tmp_path: Path) -> None:
    asked = Questions(
        ITEMS, "pick", tmp_path / "d.jsonl", 2, 1, "Pick the right one.", "r:s", {ITEMS[0].id: [True, False]}
    )
    folder = tmp_path / "questions" / "s-0123456789ab"
    assert question_ids(folder) is None
    write_questions(folder, asked)
    assert read_questions(folder) == asked
    assert question_ids(folder) == [ITEMS[0].id]
    write_questions(folder, Questions([], "pick", tmp_path / "d.jsonl"))
    assert question_ids(folder) == []


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"ids": 3}'])
def test_what_is_no_list_of_questions_counts_as_none(tmp_path: Path, torn: str) -> None:
    (tmp_path / "about.json").write_text(torn)
    assert question_ids(tmp_path) is None


def test_the_latest_questions_of_a_stage(tmp_path: Path) -> None:
    assert latest_questions(tmp_path, "picks") is None
    for number, name in enumerate(
        ["picks-000000000000", "picks-ffffffffffff", "new-picks-aaaaaaaaaaaa", "r.1.picks-bbbbbbbbbbbb"]
    ):
        write_questions(tmp_path / "questions" / name, Questions([], "pick", tmp_path))
        os.utime(tmp_path / "questions" / name / "about.json", (number, number))
    found = {stage: latest_questions(tmp_path, stage) for stage in ("picks", "new-picks", "r.1.picks", "r.2.picks")}
    assert {stage: folder and folder.name for stage, folder in found.items()} == {
        "picks": "picks-ffffffffffff",
        "new-picks": "new-picks-aaaaaaaaaaaa",
        "r.1.picks": "r.1.picks-bbbbbbbbbbbb",
        "r.2.picks": None,
    }
