"""Checks src/vopd against the rules of its layout; `make check` runs it.

    python tools/house.py            one line per fault; exit code 1 if there are any
    python tools/house.py --lines    lines of code per package, without docstrings, comments and blank lines

A package here is a folder or module directly in src/vopd. Sources are parsed, never imported.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = "src/vopd"
DISTRIBUTED = re.compile("fsdp|deepspeed|dtensor|full_tensor|distribute_tensor|zero3", re.IGNORECASE)
# Modules with classes derived from TRL's, which repeat the signatures of its methods.
DERIVED = ("training/trainer.py", "training/trl.py")
# All but the one that has the name of the package, which is VOPDConfig's default.
ESTIMATORS = {
    name
    for path in (ROOT / PACKAGE / "estimators").glob("*.py")
    for name in re.findall(r'^    name="(\w+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
} - {"vopd"}
# They may be named in their own package and in the preset of the demo.
NAMING_ESTIMATORS = ("estimators/", "experiments/demo.py")
# Methods of named tuples; os._exit, which Python documents, and what a normal exit does before it; and the commit of a
# loaded model, for which transformers has no public name.
PRIVATE_ALLOWED = {"_asdict", "_exit", "_fields", "_replace", "_run_exitfuncs", "_commit_hash"}
LONGEST_MODULE, LONGEST_FUNCTION = 399, 100
MOST_MODULES = {"training": 10}
MOST_MODULES_ANYWHERE = 15
# Packages whose signatures state the shape of every tensor.
SHAPED = {"functional", "kernels", "estimators"}

# What Windows lacks, as far as a package like this could use it.
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_NAMES = {
    "os": "fork getuid geteuid getgid getpgid killpg setsid nice uname sysconf statvfs getloadavg chown mkfifo pread "
    "pwrite sched_getaffinity register_at_fork WNOHANG O_DIRECTORY O_NONBLOCK O_CLOEXEC",
    "select": "poll epoll kqueue",
    "signal": "SIGKILL SIGALRM SIGHUP SIGUSR1 SIGUSR2 SIGPIPE SIGCHLD SIGQUIT setitimer pause",
    "socket": "AF_UNIX",
    "time": "tzset",
}
POSIX_KEYWORDS = {"pass_fds", "preexec_fn", "process_group", "start_new_session"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
# A line number, and what was found there.
Found = Iterator[tuple[int, str]]


@dataclass(frozen=True)
class Module:
    """A module of the package; `path` is below src/vopd."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        return self.path.as_posix()

    @property
    def package(self) -> str:
        return self.path.parts[0].removesuffix(".py")

    @property
    def nodes(self) -> Iterator[Any]:
        """All nodes that have a line number."""
        return (node for node in ast.walk(self.tree) if hasattr(node, "lineno"))


def distributed(module: Module) -> Found:
    """FSDP, DeepSpeed and DTensor are known in placement.py alone"""
    if module.name != "placement.py":
        for node in module.nodes:
            # The names in the node itself: of variables, attributes, parameters, imports and definitions.
            names = (getattr(node, field, None) for field in ("id", "attr", "arg", "name", "module", "asname"))
            yield from ((node.lineno, name) for name in names if isinstance(name, str) and DISTRIBUTED.search(name))


def trl(module: Module) -> Found:
    """TRL is imported in training/trl.py alone; elsewhere require('trl', ...) may ask whether it is there"""
    if module.name == "training/trl.py":
        return
    yield from ((line, f"import of {name}") for line, name in imported(module) if name.partition(".")[0] == "trl")
    for node in module.nodes:
        if isinstance(node, ast.Call) and node.args and str(literal(node.args[0])).startswith("trl."):
            yield node.lineno, ast.unparse(node)


def imported(module: Module) -> Found:
    """Modules that are imported by absolute name."""
    for node in module.nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""


def literal(node: ast.AST) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def private(module: Module) -> Found:
    """private names belong to their own class or module"""
    own = {"self", "cls", "super()", *(node.name for node in module.tree.body if isinstance(node, ast.ClassDef))}
    for node in module.nodes:
        names: list[object] = []
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in own:
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "setattr", "hasattr"}:
            names = [literal(node.args[1])] if ast.unparse(node.args[0]) not in own else []
        for name in names:
            if re.match("_[^_]", str(name)) and name not in PRIVATE_ALLOWED:
                yield node.lineno, ast.unparse(node)


def estimator_names(module: Module) -> Found:
    """estimators are named in estimators/ alone: elsewhere the object and its fields do, since any may be a user's"""
    if module.name.startswith(NAMING_ESTIMATORS):
        return
    prose = {id(node.value) for node in module.nodes if isinstance(node, ast.Expr)}  # docstrings
    for node in module.nodes:
        text = literal(node)
        if isinstance(text, str) and id(node) not in prose and (found := ESTIMATORS & set(re.findall(r"\w+", text))):
            yield node.lineno, ", ".join(sorted(found))


def settings(module: Module) -> Found:
    """no **settings on the way from rollout to loss: name what is passed"""
    if module.package not in {"training", "teachers"}:
        return
    for node in module.nodes:
        if not isinstance(node, Function) or node.args.kwarg is None or node.name.startswith("on_"):
            continue
        if module.name in DERIVED and (node.args.vararg or [a.arg for a in node.args.args[:1]] == ["self"]):
            continue
        handed_on = {ast.unparse(k.value) for k in ast.walk(node) if isinstance(k, ast.keyword) and k.arg is None}
        if node.args.kwarg.arg in handed_on | {"settings", "options", "kwargs"}:
            yield node.lineno, f"**{node.args.kwarg.arg} of {node.name}"


def batch_keys(module: Module) -> Found:
    """the batch is a dataclass: its keys towards TRL are known in training/batch.py alone"""
    if module.name != "training/batch.py" and module.package in {"training", "teachers"}:
        for node in module.nodes:
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) in {"batch", "inputs", "entries"}:
                yield node.lineno, ast.unparse(node)


def untyped_trainer(module: Module) -> Found:
    """a trainer is a Protocol of what is used of it, not Any"""
    for node in module.nodes:
        if isinstance(node, ast.arg) and re.match(r"trainer: .*\bAny\b", ast.unparse(node)):
            yield node.lineno, ast.unparse(node)


def import_style(module: Module) -> Found:
    """imports are relative within a package and absolute between packages"""
    inside = len(module.path.parent.parts)  # packages between vopd and the module
    for node in module.nodes:
        if isinstance(node, ast.ImportFrom) and node.level > inside:
            yield node.lineno, ast.unparse(node)
    for line, name in imported(module):
        if inside and f"{name}.".startswith(f"vopd.{module.package}."):
            yield line, f"import of {name}"


def size(module: Module) -> Found:
    """modules have at most 399 lines and functions 100"""
    if (lines := len(module.text.splitlines())) > LONGEST_MODULE:
        yield 1, f"{lines} lines"
    for node in module.nodes:
        if isinstance(node, Function) and (lines := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION:
            yield node.lineno, f"{lines} lines of {node.name}"


def shapes(module: Module) -> Found:
    """in functional, kernels, estimators, tensors of public functions and of fields have a shape: Float[Tensor, "N"]"""
    if module.package not in SHAPED:
        return
    parents: list[Any] = [module.tree, *(node for node in module.nodes if isinstance(node, ast.ClassDef))]
    for node in (node for parent in parents for node in parent.body):
        if isinstance(node, Function) and not re.match("_[^_]", node.name):
            arguments = [node for node in ast.walk(node.args) if isinstance(node, ast.arg)]
            hints = [*(argument.annotation for argument in arguments), node.returns]
        else:
            hints = [node.annotation] if isinstance(node, ast.AnnAssign) else []
        yield from ((hint.lineno, ast.unparse(hint)) for hint in hints if hint is not None and bare_tensor(hint))


def bare_tensor(hint: ast.AST) -> bool:
    """Whether the annotation has a Tensor without a shape; the types inside a Callable are not checked."""
    if isinstance(hint, ast.Subscript) and ast.unparse(hint.value) in {"Float", "Int", "Bool", "Shaped", "Callable"}:
        return False
    return ast.unparse(hint) in {"Tensor", "torch.Tensor"} or any(map(bare_tensor, ast.iter_child_nodes(hint)))


def posix(module: Module) -> Found:
    """what only POSIX has is imported inside functions, and used in modules that ask: hasattr(os, ...), sys.platform"""
    calls = [node for node in module.nodes if isinstance(node, ast.Call)]
    asked = {literal(call.args[1]) for call in calls if ast.unparse(call.func) == "hasattr"}
    free = "sys.platform" in module.text
    for node in module.tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from ((node.lineno, ast.unparse(node)) for name in names if name in POSIX_MODULES)
    for node in module.nodes:
        if isinstance(node, ast.Attribute) and not free and node.attr not in asked:
            if node.attr in POSIX_NAMES.get(ast.unparse(node.value), "").split():
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.keyword) and not free and node.arg in POSIX_KEYWORDS:
            yield node.lineno, node.arg or ""


def encodings(module: Module) -> Found:
    """text is read and written with its encoding named: that of Windows is not UTF-8"""
    for node in module.nodes:
        if not isinstance(node, ast.Call) or "encoding" in {keyword.arg for keyword in node.keywords}:
            continue
        method = isinstance(node.func, ast.Attribute)
        name, mode = ast.unparse(node.func).rpartition(".")[2], node.args[not method :][:1]
        is_open = name == "open" and all(re.fullmatch("[rwax+t]+", str(literal(argument))) for argument in mode)
        if is_open or (method and name in {"read_text", "write_text"}):
            yield node.lineno, ast.unparse(node)[:60]


# The docstring of each is the sentence that its faults end with.
RULES = (
    distributed, trl, private, estimator_names, settings, batch_keys, untyped_trainer, import_style, size, shapes,
    posix, encodings,
)  # fmt: skip


def same_names(paths: list[Path]) -> Iterator[str]:
    free = {"__init__.py", "base.py"}
    counted = [path for path in paths if path.name not in free and path.parent != Path("cli")]
    for name, count in sorted(Counter(path.name for path in counted).items()):
        if count > 1:
            where = ", ".join(path.as_posix() for path in counted if path.name == name)
            yield f"{where}: no file name twice but __init__, base and those of commands"


def crowded(paths: list[Path]) -> Iterator[str]:
    folders = Counter(path.parent.as_posix() for path in paths if path.name != "__init__.py")
    for folder, count in sorted(folders.items()):
        most = MOST_MODULES.get(folder, MOST_MODULES_ANYWHERE)
        if count > most:
            yield f"{PACKAGE}/{folder}: {count} modules; at most {most} stand in this folder"


def modules(root: Path) -> list[Module]:
    """The package below `root`."""
    package = root / PACKAGE
    texts = {path.relative_to(package): path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    return [Module(path, text, ast.parse(text)) for path, text in texts.items()]


def faults(root: Path) -> list[str]:
    """One line for each place that breaks a rule."""
    found = modules(root)
    paths = [module.path for module in found]
    return [
        f"{PACKAGE}/{module.name}:{line}: {what}: {rule.__doc__}"
        for rule in RULES
        for module in found
        for line, what in rule(module)
    ] + [*same_names(paths), *crowded(paths)]


def code_lines(text: str) -> int:
    """Number of lines of code, without docstrings, comments and blank lines."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = (t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in layout)
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(literal(node.value), str):
            lines -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(lines)


def lines_by_package(root: Path) -> Counter[str]:
    """Lines of code of each package and of tools."""
    count: Counter[str] = Counter()
    for module in modules(root):
        count[module.package] += code_lines(module.text)
    count["tools"] = sum(code_lines(path.read_text(encoding="utf-8")) for path in (root / "tools").rglob("*.py"))
    return count


def main(arguments: list[str]) -> int:
    """Print the faults, or the lines of code."""
    if arguments == ["--lines"]:
        count = lines_by_package(ROOT)
        print("\n".join(f"{lines:6} {name}" for name, lines in [*sorted(count.items()), ("in all", count.total())]))
        return 0
    found = faults(ROOT)
    print("\n".join(found) or "the layout holds")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
