"""Every deviation from a publication that the sources admit is in the README too.

``python tests/contract/test_deviations.py`` rewrites the README's list.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- deviations -->", "<!-- end deviations -->"
# The mark, and all text up to the end of its paragraph, comment block or string.
MARK = re.compile(
    r"(?P<mark>Deviation|Unstated): (?P<text>.*(?:\n[ \t]*(?:# )?(?![ \t]*(?:def |class |@|#\s*$|$)).+)*)"
)


def collect() -> str:
    """Return the list in Markdown, by file."""
    lines = ["| where | what |", "|---|---|"]
    for root in ("services", "clients/python"):
        for path in sorted((ROOT / root).rglob("*.py")):
            for found in MARK.finditer(path.read_text(encoding="utf-8")):
                lines.append(f"| `{path.relative_to(ROOT)}` | {found['mark']}: {_sentence(found['text'])} |")
    return "\n".join(lines)


def _sentence(text: str) -> str:
    """Return the text up to the end of its sentence, on one line."""
    joined = " ".join(line.strip().removeprefix("#").strip() for line in text.splitlines())
    return re.split(r'(?<=\.)\s|"""', joined, maxsplit=1)[0].strip().rstrip(".") + "."


def test_the_readme_lists_every_deviation() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert BEGIN in readme
    assert readme.partition(BEGIN)[2].partition(END)[0].strip() == collect()


if __name__ == "__main__":
    path = ROOT / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{collect()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
