"""Metadata beside images: joined by path, with clear messages for names that do not fit."""

import io
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.ingestion.landing import unread_files
from ae_pipeline.ingestion.landing_folder import list_landing
from ae_pipeline.ingestion.readers.files import ReadOptions, read_file
from ae_pipeline.ingestion.readers.image_metadata import load_image_metadata, merged_texts
from ae_pipeline.ingestion.readers.image_rows import ImageRow, read_image_row
from tests.support.datasets import REMEDY, TODAY, LandedDataset, assert_says, make_dataset

UNDATED: dict[str, Any] = {"event_time": None, "start": None, "end": None}


def picture(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def album(root: Path, *names: str, **settings: Any) -> LandedDataset:
    dataset = make_dataset(root, **{**UNDATED, "identity": ["file"], "images": {}, **settings})
    for name in names:
        dataset.land(name, picture())
    return dataset


def test_columns_are_joined_by_path(tmp_path: Path) -> None:
    dataset = album(tmp_path, "a.png", "b/c.png")
    dataset.land("metadata.csv", "file,line,weight\na.png,L1,1.5\nb/c.png,L2,\n")
    assert dataset.rows("file", "line", "weight") == [("a.png", "L1", 1.5), ("b/c.png", "L2", None)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("b/metadata.csv", "file;line\nc.png;L2\n"),
        ("metadata.csv", "line\tfile_name\nL2\tb\\c.png\n"),
        ("metadata.csv", "﻿file,line\n./b/c.png,L2\nb/c.png,L2\n"),
        ("a/metadata.csv", "file,line\r\n../b/c.png,L2\r\n"),
    ],
    ids=["in the folder of the image", "of Windows", "written twice alike", "in a folder beside"],
)
def test_paths_are_relative_to_the_metadata(tmp_path: Path, name: str, text: str) -> None:
    dataset = album(tmp_path, "b/c.png")
    dataset.land(name, text)
    assert dataset.rows("file", "line") == [("b/c.png", "L2")]


def test_letters_of_names_may_be_composed_or_not(tmp_path: Path) -> None:
    dataset = album(tmp_path, "cafe\u0301.png")
    dataset.land("metadata.csv", "file,line\ncaf\u00e9.png,L1\n")
    assert dataset.rows("line") == [("L1",)]


@pytest.mark.parametrize("patch", [{}, {"patch": 4}], ids=["images", "patches"])
def test_metadata_count_where_the_path_has_another_value(
    tmp_path: Path, patch: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    identity = {"identity": ["file", "top", "left"]} if patch else {}
    names = ("L1/a.png", "L2/b.png", "L3/c.png", "L4/d.png")
    dataset = album(tmp_path, *names, images={"path": "(?P<line>L[0-9])/", **patch}, **identity)
    dataset.land("metadata.csv", "file,line,shift\nL1/a.png,L1,1\nL2/b.png,,2\nL3/c.png,L9,3\n")
    expected = [("L1/a.png", "L1", 1), ("L2/b.png", "L2", 2), ("L3/c.png", "L9", 3), ("L4/d.png", "L4", None)]
    assert sorted(set(dataset.rows("file", "line", "shift"))) == expected
    assert dataset.quarantine() == []
    assert [record.message for record in caplog.records if "contradict" in record.message] == [
        "the metadata contradict the path of 1 image, and count: line is 'L3' in the path of L3/c.png, and 'L9' in "
        "metadata.csv, line 4; correct one of them, or rename the column"
    ]


@pytest.mark.parametrize(
    ("of_path", "described", "merged"),
    [
        ("000", "0", "0"),
        ("7", "7.0", "7.0"),
        ("2024-03-01", "2024-03-01 08:00:00", "2024-03-01 08:00:00"),
        ("2024-03-01T08:00", "2024-03-01", "2024-03-01T08:00"),
        ("20240301", "2024-03-01", "2024-03-01"),
        ("20240301T080000", "2024-03-01 08:00", "2024-03-01 08:00"),
    ],
)
def test_values_that_are_written_in_two_ways_agree(
    tmp_path: Path, of_path: str, described: str, merged: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert merged_texts({"key": of_path}, {"key": described}) == {"key": merged}
    dataset = album(tmp_path, f"{of_path}_a.png", images={"path": "(?P<key>[^/]+)_a"})
    dataset.land("metadata.csv", f"file,key\n{of_path}_a.png,{described}\n")
    dataset.ingest()
    assert dataset.quarantine() == []
    assert "contradict" not in caplog.text


@pytest.mark.parametrize(
    ("of_path", "described"),
    [("L1", "L2"), ("1", "2"), ("2024-03-01T08:00", "2024-03-02"), ("2024-03-01T08", "2024-03-01T09"), ("NaN", "sNaN")],
)
def test_values_that_differ_are_counted_and_those_of_the_metadata_stay(
    tmp_path: Path, of_path: str, described: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert merged_texts({"key": of_path}, {"key": described}) == {"key": described}
    names = [f"key={of_path}/{index}.png" for index in range(3)]
    dataset = album(tmp_path, *names)
    dataset.land("metadata.csv", "file,key\n" + "".join(f"{name},{described}\n" for name in names))
    dataset.ingest()
    assert dataset.quarantine() == []
    assert caplog.text.count("contradict") == 1
    assert "contradict the path of 3 images, and count: key is " in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_metadata_are_read_as_spreadsheets_write_them(tmp_path: Path, encoding: str, separator: str) -> None:
    dataset = album(tmp_path, "é, ü.png")
    text = f'file{separator}line{separator}weight\r\n"é, ü.png"{separator}Größe{separator}1.5\r\n'
    dataset.land("metadata.csv", text.encode(encoding))
    assert dataset.rows("line", "weight") == [("Größe", 1.5)]


def test_metadata_of_names_that_cannot_be_printed_are_joined(tmp_path: Path) -> None:
    dataset = album(tmp_path, "a\nb.png", "c#%.png")
    dataset.land("metadata.csv", 'file,line\n"a\nb.png",1\nc#%.png,2\n')
    assert dataset.rows("file", "line") == [("a\\x0ab.png", 1), ("c#%.png", 2)]


@pytest.mark.parametrize("written", ["A.PNG", "a", "other/a.png", "/data/a.png"])
def test_the_path_that_may_be_meant_is_named(tmp_path: Path, written: str, caplog: pytest.LogCaptureFixture) -> None:
    dataset = album(tmp_path, "sub/a.png")
    dataset.land("metadata.csv", f"file,line\n{written},L1\n")
    dataset.ingest()
    assert f"relative to the folder of the metadata file, such as sub/a.png for {written}" in caplog.text


def test_the_event_time_can_come_from_the_metadata(tmp_path: Path) -> None:
    days = {"event_time": "taken", "start": "2024-03-01", "end": "2024-03-31"}
    dataset = album(tmp_path, "a.png", "b.png", **days)
    dataset.land("metadata.csv", "file,taken\na.png,2024-03-01T08:00:00\n")
    ingested = dataset.ingest()
    assert dataset.raw(ingested)["file"].to_list() == ["a.png"]
    ((_, _, rule, _),) = dataset.quarantine()
    assert rule.startswith("taken")


def test_images_described_in_two_ways_go_to_quarantine(tmp_path: Path) -> None:
    dataset = album(tmp_path, "a.png", "b.png")
    dataset.land("metadata.csv", "file,line\na.png,L1\nb.png,L1\na.png,L2\n")
    assert dataset.rows("file") == [("b.png",)]
    ((name, _, rule, reason),) = dataset.quarantine()
    assert (name, rule) == ("a.png", "file: metadata")
    assert reason == (
        "its metadata are in metadata.csv, line 2, and others in metadata.csv, line 4; keep one line for each image"
    )


def test_names_without_a_partner_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = album(tmp_path, "a.png", "b.png")
    dataset.land("metadata.csv", "file,line\na.png,L1\nc.png,L2\n")
    with caplog.at_level(logging.WARNING, "ae_pipeline"):
        dataset.ingest()
    messages = "\n".join(record.message for record in caplog.records)
    assert "there are no metadata for 1 of 2 images (b.png)" in messages
    assert "1 image that did not land (c.png; first in metadata.csv, line 3)" in messages


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name,line\na.png,L1\n", r"columns name, line, but needs file or file_name with the path of each image"),
        ("file,score\na.png,1\n", r"column 'score' of metadata.csv has a reserved name"),
        ("file,top\na.png,1\n", r"column 'top' of metadata.csv has a reserved name"),
        ("file,line\n,L1\n", r"line 2 of metadata.csv names no image"),
        ("file,line\na.png,L1,9\n", r"line 2 of metadata.csv cannot be read: .*"),
    ],
)
def test_metadata_that_cannot_be_used_stop_with_a_reason(tmp_path: Path, text: str, reason: str) -> None:
    dataset = album(tmp_path, "a.png")
    dataset.land("metadata.csv", text)
    with pytest.raises(SchemaError) as caught:
        dataset.ingest()
    assert_says(str(caught.value), reason + REMEDY)


def test_only_images_whose_metadata_changed_are_read_again(tmp_path: Path) -> None:
    dataset = album(tmp_path, "a.png", "b.png")
    metadata = dataset.land("metadata.csv", "file,line\na.png,L1\nb.png,L1\n")
    dataset.ingest()
    assert unread_files(dataset, TODAY) == {}
    metadata.write_text("file,line\na.png,L1\nb.png,L2\n")
    os.utime(metadata, (1_800_000_000, 1_800_000_000))
    assert list(unread_files(dataset, TODAY)) == ["b.png"]
    assert dataset.ingest().read == ("b.png",)
    assert dataset.rows("file", "line") == [("a.png", "L1"), ("b.png", "L2")]


def test_without_metadata_a_table_beside_images_is_named_and_not_read(tmp_path: Path) -> None:
    dataset = album(tmp_path, "a.png", images={"metadata": None})
    for name in ("metadata.csv", "b/labels.CSV.gz", "readme.txt", "notes.json", "list.xlsx"):
        dataset.land(name, "file,line\na.png,L1\n")
    assert dataset.ingest().ledger.refused == {}
    assert list_landing(dataset).others == {
        "b/labels.CSV.gz": "a .csv file holds no images",
        "list.xlsx": "a .xlsx file holds no images",
        "metadata.csv": "a .csv file holds no images; if it describes images, set images.metadata to its name",
        "notes.json": "a .json file holds no images",
        "readme.txt": "a .txt file holds no images",
    }


@pytest.mark.parametrize("folder", [".Trash-1000/files", "@eaDir", ".git"])
def test_metadata_in_a_hidden_folder_are_named_and_not_read(tmp_path: Path, folder: str) -> None:
    dataset = album(tmp_path, "a.png")
    dataset.land("metadata.csv", "file,line\na.png,L1\n")
    dataset.land(f"{folder}/metadata.csv", "no metadata\n")
    assert dataset.rows("file", "line") == [("a.png", "L1")]
    assert list(list_landing(dataset).others) == [f"{folder}/metadata.csv"]


@pytest.mark.parametrize(("line", "described"), [("", "L1"), ("", ""), ("L2", "")])
def test_an_empty_part_of_the_path_is_read_alike_with_and_without_a_frame(
    tmp_path: Path, line: str, described: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"{line}_a.png"
    dataset = album(tmp_path, name, images={"path": "(?P<line>.*)_a"})
    dataset.land("metadata.csv", f"file,line,shift\n{name},{described},1\n")
    metadata = load_image_metadata(dataset.paths.landing, dataset.config)
    options = ReadOptions(images=dataset.config.images, metadata=metadata)
    row = read_image_row(name, picture(), options)
    assert isinstance(row, ImageRow)
    assert read_file(name, picture(), options).rows["line"].to_list() == [row.texts["line"]] == [described or line]
    dataset.ingest()
    assert "contradict" not in caplog.text
