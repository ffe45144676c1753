"""At stake: a file's name or an error in a cell must not end the cell or the table that people read in the UIs."""

from churn.wording import markdown_table


def test_a_table_has_its_columns_rows_and_alignment():
    lines = markdown_table(("name", "rows", "note"), [("a", 1, None), ("b", 2, "x")], "-r").splitlines()

    assert lines == ["| name | rows | note |", "| --- | ---: | --- |", "| a | 1 |  |", "| b | 2 | x |"]


def test_no_cell_can_end_itself_or_its_row():
    lines = markdown_table(("text",), [("a|b\n\nc\r| d",)]).splitlines()

    assert lines[2:] == ["| a\\|b c \\| d |"]


def test_a_table_without_rows_has_its_header():
    assert markdown_table(("a", "b"), [], "lr") == "| a | b |\n| :--- | ---: |"
