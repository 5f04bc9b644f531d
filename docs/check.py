"""Checks of the documentation: links, length of the README, docstrings.

Command: python docs/check.py     (prints each problem; exit status 1 when there is one)
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

README_LINES = 100

_LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+\s+(.+?)\s*$", re.MULTILINE)


def tracked(root: Path, pattern: str = "*") -> list[Path]:
    """Files of the repository, new ones included, ignored ones not."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", pattern],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    return sorted(p for name in listed.stdout.split("\0") if name and (p := root / name).is_file())


def anchor(heading: str) -> str:
    """The anchor that a heading gets on the common hosts: `## One question` -> `one-question`."""
    plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
    return plain.replace(" ", "-")


def broken_links(root: Path) -> Iterator[str]:
    """Relative links of all pages that lead to no file, or to no heading of it."""
    for page in tracked(root, "*.md"):
        text = _FENCE.sub("", page.read_text(encoding="utf-8"))
        for link in _LINK.findall(text):
            if re.match(r"[a-z]+:", link):
                continue
            name, _, part = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists() or not target.is_relative_to(root.resolve()):
                yield f"{page.relative_to(root)}: the link {link} leads to no file of the repository."
            elif part and target.suffix == ".md":
                headings = _HEADING.findall(_FENCE.sub("", target.read_text(encoding="utf-8")))
                if part not in map(anchor, headings):
                    yield f"{page.relative_to(root)}: {name or page.name} has no heading for #{part}."


def long_readme(root: Path) -> Iterator[str]:
    """A README that nobody reads to its end."""
    lines = (root / "README.md").read_text(encoding="utf-8").count("\n")
    if lines >= README_LINES:
        yield f"README.md has {lines} lines, under {README_LINES} are allowed."


def missing_docstrings(root: Path) -> Iterator[str]:
    """Modules, and public functions, classes and methods of them, that do not say what they are.

    Free of this: what is short and says by its name what it does (at most 3 statements), `forward` (its module's
    docstring says what it computes), and `configure` and `run`, which every verb of the command line has.
    """
    for path in sorted((root / "src").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        where = path.relative_to(root)
        if tree.body and ast.get_docstring(tree) is None:
            yield f"{where}: the module has no docstring."
        verb = where.parent.name == "cli"
        for name, node in _public(tree.body):
            known = name.endswith(".forward") or (verb and name in ("configure", "run"))
            if ast.get_docstring(node) is None and not known and not _obvious(node):
                yield f"{where}:{node.lineno}: {name} has no docstring."


def _public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body, f"{prefix}{node.name}.")


def _obvious(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and sum(isinstance(n, ast.stmt) for n in ast.walk(node)) - 1 <= 3


def main() -> int:
    """Prints all problems of the repository that holds this file."""
    root = Path(__file__).parents[1]
    problems = [*broken_links(root), *long_readme(root), *missing_docstrings(root)]
    for problem in problems:
        print(problem)
    print(f"docs: {len(problems)} problems.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
