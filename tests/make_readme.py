"Writes README.md from nbs/index.ipynb (or, with --check, says whether it is up to date)."
import sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parents[1]


def readme() -> str:
    book = nbformat.read(root / "nbs" / "index.ipynb", as_version=4)
    book.metadata["language_info"] = {"name": "python"}
    text = MarkdownExporter().from_notebook_node(book)[0].strip() + "\n"
    return text.replace("](../", "](")


if __name__ == "__main__":
    if "--check" in sys.argv: sys.exit((root / "README.md").read_text(encoding="utf-8") != readme())
    (root / "README.md").write_text(readme(), encoding="utf-8")
