"""`python -m hrnet_jax`: what commands there are."""

import ast
import pathlib

COMMANDS = ("train", "evaluate", "predict", "convert", "export", "report", "schedule", "aot", "launch")


def main() -> None:
    """Prints a line per command, the first of its module's docstring."""
    print("python -m hrnet_jax.COMMAND --help; the commands:\n")
    for name in COMMANDS:
        source = pathlib.Path(__file__).with_name(f"{name}.py").read_text()
        doc = ast.get_docstring(ast.parse(source)) or ""
        print(f"  {name:10} {doc.splitlines()[0]}")


if __name__ == "__main__":
    main()
