"""`gptrs.text.reading`: files in, strict UTF-8 out."""

import gzip
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptrs.errors import SourceError
from gptrs.store.inputs import find_inputs
from gptrs.text.reading import decode_utf8, find_text_files, help_topics, read_text


def test_a_file_is_read_as_it_is_but_for_a_byte_order_mark(tmp_path):
    file = tmp_path / "story"
    file.write_bytes(b"\xef\xbb\xbfa\r\nb \xc3\xa9\n")
    assert read_text(file) == "a\r\nb é\n"


@given(
    good=st.text(max_size=20),
    bad=st.sampled_from([b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\xe2\x82"]),
)
def test_the_offset_of_the_first_byte_that_is_not_utf8_is_named(good, bad):
    content = good.encode() + bad
    with pytest.raises(SourceError, match=rf"here: .* at offset {len(good.encode())} "):
        decode_utf8(content, source="here")


@given(
    content=st.lists(st.sampled_from([b"a", b"\xff", b"\xc3", b"\xa9", b"\xe2\x82"])).map(b"".join)
)
def test_what_is_not_utf8_is_replaced_if_asked(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "invalid.txt"
    file.write_bytes(b"\xef\xbb\xbf" + content)
    assert read_text(file, errors="replace") == content.decode("utf-8", "replace")


def test_a_missing_file_and_a_folder_in_its_place_are_named(tmp_path):
    with pytest.raises(SourceError, match=r"nowhere\.txt: no such file"):
        read_text(tmp_path / "nowhere.txt")
    with pytest.raises(SourceError, match="is a folder"):
        read_text(tmp_path)


@pytest.mark.skipif(
    sys.platform == "win32" or (hasattr(os, "geteuid") and os.geteuid() == 0),
    reason="here every file can be read",
)
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    file = tmp_path / "secret.txt"
    file.write_text("x")
    file.chmod(0)
    with pytest.raises(SourceError, match=r"secret\.txt: cannot be read"):
        read_text(file)


def test_folders_give_their_text_files_at_any_depth_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.md", "c.py", "sub/d.txt"):
        (tmp_path / name).write_text("x")
    named = tmp_path / "c.py"
    assert find_text_files([named, tmp_path]) == [
        named, tmp_path / "a.md", tmp_path / "b.txt", tmp_path / "sub" / "d.txt",
    ]  # fmt: skip


def test_a_folder_gives_the_text_files_that_a_store_is_built_from(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("in/a.txt", "in/B.TXT", "in/.hidden.md", "in/deep/d.Md", "real/c.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    found = find_text_files([tmp_path / "in"])
    assert [file.relative_to(tmp_path / "in").as_posix() for file in found] == [
        ".hidden.md", "B.TXT", "a.txt", "deep/d.Md", "link/c.txt",
    ]  # fmt: skip
    assert [str(file) for file in found] == [item.name for item in find_inputs(tmp_path / "in")]


def test_links_that_lead_nowhere_or_round_in_a_circle_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    link = tmp_path / "b.txt"
    for target, told in {
        "nowhere": r"b\.txt: cannot be read: No such file",
        "b.txt": r"b\.txt: cannot be read: Too many levels",
        ".": r"b\.txt: a link leads back to .*, which it is in",
    }.items():
        link.symlink_to(target)
        with pytest.raises(SourceError, match=told):
            find_text_files([tmp_path])
        link.unlink()


def test_a_folder_that_may_not_be_read_is_named_and_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("x")
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    # Not by its mode: a test that runs as root may read everything.
    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(SourceError, match="sub: cannot be read: Permission denied"):
        find_text_files([tmp_path])


def test_a_folder_without_text_and_a_missing_path_are_named(tmp_path):
    with pytest.raises(SourceError, match=r"no \.txt or \.md file"):
        find_text_files([tmp_path])
    with pytest.raises(SourceError, match="no such file or folder"):
        find_text_files([tmp_path / "nowhere"])


def test_files_that_are_all_empty_are_refused_and_one_among_others_is_not(tmp_path):
    files = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for file in files:
        file.touch()
    with pytest.raises(SourceError, match=r"a\.txt: is empty: there is no text"):
        find_text_files(files[:1])
    with pytest.raises(SourceError, match=r"a\.txt: is empty, as all 3 files are"):
        find_text_files([tmp_path])
    files[1].write_text("x")
    assert find_text_files([tmp_path]) == files


GZIP, ZSTD = gzip.compress(b"a text", mtime=0), bytes.fromhex("28b52ffd2400010000 99e9d851")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a b.txt.gz", GZIP, r"gzip; unpack it: gunzip -k '.*a b\.txt\.gz'; or `gptrs build`"),
        ("a.jsonl.zst", ZSTD, r"Zstandard; unpack it: unzstd .*a\.jsonl\.zst; or `gptrs build`"),
        ("a.json.gz", GZIP, r"gzip; unpack it: gunzip -k [^;]*$"),
        ("a.txt", GZIP, r"a\.txt: is compressed with gzip; unpack it$"),
    ],
)
def test_a_compressed_file_is_named_and_how_it_is_unpacked(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=told):
        find_text_files([tmp_path / name])


@pytest.mark.parametrize("name", ["a.parquet", "A.PARQUET"])
def test_parquet_is_named_and_what_reads_it(tmp_path, name):
    (tmp_path / name).write_bytes(b"PAR1\x84PAR1")
    with pytest.raises(SourceError, match=f"{name}: is Parquet, not text; `gptrs build` reads it"):
        find_text_files([tmp_path / name])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="here there are no pipes with a name")
def test_what_is_in_a_pipe_is_left_to_who_reads_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert find_text_files([tmp_path / "pipe"]) == [tmp_path / "pipe"]


def test_pythons_help_topics_are_hundreds_of_kilobytes_of_english():
    text = help_topics()
    assert 400_000 < len(text) < 1_000_000
    assert 'The "for" statement is used to iterate' in text


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the text differs between Pythons")
def test_python_3_11s_help_topics_have_the_documented_size():
    assert len(help_topics()) == 465_126
