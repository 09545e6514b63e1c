"""Record the chat templates of the installed trl for the tests."""

import json
import lzma
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Write ``trl.json.xz`` beside this file."""
    found = find_spec("trl")
    assert found is not None
    assert found.origin is not None
    files = sorted((Path(found.origin).parent / "chat_templates").glob("*.jinja"))
    texts = {file.stem: file.read_text(encoding="utf-8") for file in files}
    (HERE / "trl.json.xz").write_bytes(lzma.compress(json.dumps(texts, ensure_ascii=False).encode(), preset=9))


if __name__ == "__main__":
    main()
