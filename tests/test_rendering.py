"""One table in three forms, of the same rows."""

from kgdistil.answer.rendering import html_table, markdown, plain

HEAD, ROWS = ["label", "count", "mrr"], [["a\x1b[31m", 12_345, 0.5], [" b", 7, 0.25]]


def test_the_same_rows_in_three_forms():
    shown = [["a\ufffd[31m", "12,345", "0.5000"], ['" b"', "7", "0.2500"]]
    lines = markdown(HEAD, ROWS).splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]] == shown
    assert "±\xa00.003" in markdown(HEAD, [["a", 1, "0.5 ±\xa00.003"]])
    lines = plain(HEAD, ROWS).splitlines()
    assert [line.rsplit(maxsplit=2) for line in lines[1:]] == shown
    assert lines[0].startswith("label") and len({len(line) for line in lines}) == 1, "numbers end below each other"
    page = html_table("<what>", HEAD, [[cell.replace("<", "&lt;") for cell in row] for row in shown])
    assert page.count("<tr>") == 3 and page.count('scope="row"') == 2 and "&lt;what&gt;" in page


def test_a_table_without_rows_has_its_head():
    assert plain(HEAD, []).split() == HEAD
    assert markdown(HEAD, []).splitlines()[0] == "| label | count | mrr |"
