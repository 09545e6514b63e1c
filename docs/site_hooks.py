"""What the site needs besides the pages of this folder: pages from elsewhere in the repository, and llms.txt."""

import re
from html import unescape
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File, Files

ROOT: Final = Path(__file__).parents[1]
ELSEWHERE: Final = {"benchmarks.md": ROOT / "benchmarks/README.md"}
"""Pages of the site that stand in another folder, where GitHub's readers look for them."""

IN_THE_REPOSITORY: Final = (
    "CONTRIBUTING.md",
    "lit_ift/",
    "configs/",
    "benchmarks/",
    "examples/",
    "tests/",
    "README.md",
)
"""What pages link to that is no page of the site."""

pages: dict[str, tuple[str, str]] = {}
"""Title and first paragraph of each page, by its address."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from elsewhere."""
    for name, path in ELSEWHERE.items():
        files.append(File.generated(config, name, content=path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at the pages from elsewhere, and leave the text of links to files that the site has not."""
    up = "../" * page.file.src_uri.count("/")

    def target(link: re.Match[str]) -> str:
        text, address = link.groups()
        bare = address.lstrip("./").partition("#")[0]
        if bare == "benchmarks/README.md":
            return f"[{text}]({up}benchmarks.md)"
        if page.file.src_uri == "benchmarks.md" and not address.startswith(("http", "#")):
            return f"[{text}]({bare.removeprefix('docs/')})" if bare.startswith("docs/") else f"`{text}`"
        return f"`{bare}`" if bare.startswith(IN_THE_REPOSITORY) and address.startswith("..") else link[0]

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", target, markdown)


def on_page_content(html: str, page: Any, **_: Any) -> None:
    """Keep what llms.txt says of the page."""
    paragraphs = (re.sub(r"<[^>]+>", "", part) for part in re.findall(r"<p>(.*?)</p>", html, re.DOTALL))
    # Pages of objectives begin with a link back.
    told = next((" ".join(text.split()) for text in paragraphs if len(text) > 40), "")
    pages[page.file.src_uri] = (page.title, unescape(told))


def on_post_build(config: Any) -> None:
    """Write llms.txt (llmstxt.org): what there is to read, for programs, with the pages as Markdown beside it."""
    site = Path(config.site_dir)
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", "", "## Pages", ""]
    for address, (title, told) in pages.items():
        source = ELSEWHERE.get(address, Path(config.docs_dir) / address)
        (site / address).parent.mkdir(parents=True, exist_ok=True)
        (site / address).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        lines.append(f"- [{title}]({address}): {told}" if told else f"- [{title}]({address})")
    (site / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
