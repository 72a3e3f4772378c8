"""MkDocs hook: the pages that are made from the code when the documentation is built.

Command lines come from their argparse parsers, the blocks from their descriptions for GNU Radio Companion, and the
Python API pages list the packages whose docstrings mkdocstrings renders.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "python" / "multisc"
BLOCKS = ROOT / "gr-multisc" / "grc"
API = "reference/api"
# Programs rather than interfaces: their users read the page of the command line.
HIDDEN = {"cli", "bench"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the entry "Python API" of the navigation with one page per package."""
    packages: list[Any] = [f"{API}/index.md", *({f"multisc.{name}": f"{API}/{name}.md"} for name in _packages())]
    for section in config.nav or []:
        for entry in section.get("Reference", []):
            if isinstance(entry, dict) and "Python API" in entry:
                entry["Python API"] = packages
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "reference/command-line.md": _command_line(),
        "reference/blocks.md": _blocks(),
        f"{API}/index.md": _api_index(),
        "contributing/changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }
    pages |= {f"{API}/{name}.md": f"# multisc.{name}\n\n::: multisc.{name}\n" for name in _packages()}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Keep a value and its interval on one line."""
    return markdown.replace(" ± ", "\u00a0±\u00a0")


def _packages() -> list[str]:
    folders = (path.parent.name for path in LIBRARY.glob("*/__init__.py"))
    return sorted(name for name in folders if name not in HIDDEN)


def _api_index() -> str:
    rows = [f"| [`multisc.{name}`]({name}.md) | {_summary(LIBRARY / name)} |" for name in _packages()]
    return "\n".join(
        [
            "# Python API",
            "",
            "The library `multisc` imports no GNU Radio. These pages are made from its docstrings.",
            "",
            "| package | what |",
            "|---|---|",
            *rows,
            "",
            "## multisc",
            "",
            "::: multisc",
            "    options:",
            "      show_submodules: false",
            "",
            "## Streams",
            "",
            "::: multisc.streams",
            "",
            "## Pictures",
            "",
            "::: multisc.images",
            "",
            "## Errors",
            "",
            "::: multisc.errors",
            "",
        ]
    )


def _summary(package: Path) -> str:
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")


def _command_line() -> str:
    from multisc.cli import COMMANDS

    os.environ["COLUMNS"] = "100"  # the width of the help texts
    parts = [
        "# Command line",
        "",
        "These are the `--help` texts of the commands.",
        "",
        "| exit code | meaning |",
        "|---|---|",
        "| 0 | success, also when the result is an outage |",
        "| 1 | any failure that is not below |",
        "| 2 | bad usage or bad input |",
        "| 130 | Ctrl-C |",
        "| 141 | nothing reads the output |",
        "",
        "| command | what it does |",
        "|---|---|",
        *(f"| [`multisc {name}`](#multisc-{name}) | {summary} |" for name, (_, summary) in COMMANDS.items()),
    ]
    for name, (module, _) in COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"multisc {name}", formatter_class=argparse.RawDescriptionHelpFormatter)
        importlib.import_module(module).configure(parser)
        parts += ["", f"## multisc {name}"]
        for each in _with_actions(parser):
            parts += ["", "```text", each.format_help().rstrip(), "```"]
    return "\n".join(parts) + "\n"


def _with_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser, and those of its own subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def _blocks() -> str:
    parts = [
        "# GNU Radio blocks",
        "",
        "The blocks stand in the category `[multisc]` of GNU Radio Companion. This page is made from their",
        "descriptions. [PDUs between blocks](pdu.md) specifies the messages.",
    ]
    descriptions = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in BLOCKS.glob("*.block.yml")]
    for block in sorted(descriptions, key=lambda block: block["label"]):
        parts += ["", f"## {block['label']}", "", f"`{block['id']}`", "", _paragraphs(block.get("documentation", ""))]
        ports = [
            f"| {direction} | `{port.get('id') or port.get('label') or '-'}` | {port.get('dtype', port['domain'])} |"
            for direction, key in (("in", "inputs"), ("out", "outputs"))
            for port in block.get(key, [])
        ]
        if ports:
            parts += ["", "| port | name | type |", "|---|---|---|", *ports]
        if block.get("parameters"):
            parts += ["", "| parameter | label | type | default |", "|---|---|---|---|"]
            parts += [
                f"| `{p['id']}` | {_cell(p.get('label', p['id']))} | {_kind(p)} | {_code(p.get('default', ''))} |"
                for p in block["parameters"]
            ]
    return "\n".join(parts) + "\n"


def _kind(parameter: dict[str, Any]) -> str:
    if parameter.get("dtype") == "enum":
        return ", ".join(_code(option) for option in parameter["options"])
    return _cell(parameter.get("dtype", ""))


def _paragraphs(text: str) -> str:
    """Return the description of a block, whose mentions of these pages become links."""
    return re.sub(r"docs/(\S+/(\w+)\.md)", r"[\2](../\1)", text.replace("<", "&lt;").strip())


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|")


def _code(value: Any) -> str:
    return f"`{_cell(value)}`" if str(value) else ""
