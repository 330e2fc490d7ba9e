"""Finding methods: by file name in `methods/`, by path, or by an installed package's entry point."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import methods
from benchmark.base.errors import UserError, describe_failure, nearest, unknown
from benchmark.base.files import expand
from benchmark.config.digests import identify
from benchmark.config.pages import EVERY_METHOD, Page, read_settings
from methods.core import Budget, DenseGrads, Group, Inactive, Method, Trains

METHODS = Path(methods.__file__).resolve().parent
ENTRY_POINTS = "sparse_bench.methods"
ALL, TABLES = "all", ("table1", "table2", "table3")  # in place of a method's name: several methods
FACTS = {
    "group": Group,
    "reference": str,
    "dense_grads": DenseGrads,
    "budget": Budget,
    "replaces_step": bool,
    "keeps_layer_counts": bool,
    "inactive": Inactive,
    "trains": Trains,
    "writes": bool,
}


@dataclass(frozen=True)
class Plugin:
    """A method class and its source. `sha256` is its file's alone: an edited file is another method."""

    name: str
    cls: type[Method]
    source: str
    sha256: str

    @property
    def is_ours(self) -> bool:
        """Whether it is one of `methods/`, which the tests hold to every promise."""
        return self.source == f"methods/{self.name}.py"

    def defaults(self, page: Page) -> dict[str, Any]:
        """Return every hyper-parameter but `sparsity` with its default on this page."""
        values = {}
        for field in dataclasses.fields(self.cls):
            if field.name == "sparsity":
                continue
            if field.metadata.get("from_page") and hasattr(page, field.name):
                values[field.name] = (page.methods.get(EVERY_METHOD) or {}).get(field.name, getattr(page, field.name))
            elif field.default is not dataclasses.MISSING:
                values[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                values[field.name] = field.default_factory()
        values.update(page.methods.get(self.name) or {})
        return values

    def settings(self) -> set[str]:
        """Return the names of the hyper-parameters that can be set with ARGS."""
        return {field.name for field in dataclasses.fields(self.cls)} - {"sparsity"}

    def build(self, page: Page, sparsity: float, changes: dict[str, Any]) -> Method:
        """Return the method with the page's values and `changes`; raises UserError for a bad name, type or value."""
        values = {**self.defaults(page), **changes}
        for key in values:
            if key not in self.settings():
                hint = nearest(key, self.settings())
                raise UserError(f"method '{self.name}' has no setting '{key}'{hint}; it has: {self.listed()}")
        values = read_settings(values, get_type_hints(self.cls), f"method '{self.name}'")
        try:
            typed = OmegaConf.merge(OmegaConf.structured(self.cls), dict(values, sparsity=sparsity))
            plain = OmegaConf.to_container(typed)
            assert isinstance(plain, dict)
            for setting, value in plain.items():
                if value == MISSING:
                    raise UserError(
                        f"method '{self.name}': setting '{setting!s}' has no default: give it with ARGS={setting!s}=..."
                    )
            return self.cls(**{str(key): value for key, value in plain.items()})
        except OmegaConfBaseException as error:
            setting = getattr(error, "full_key", None) or "?"
            raise UserError(f"method '{self.name}': setting '{setting}': {str(error).splitlines()[0]}") from error
        except ValueError as error:
            raise UserError(f"method '{self.name}': {error}") from error

    def takes(self, page: Page, sparsity: float) -> bool:
        """Return whether the method can be asked for this sparsity at the page's defaults."""
        try:
            self.build(page, sparsity, {})
        except UserError:
            return False
        return True

    def listed(self) -> str:
        """Return the settings as one line of text."""
        return ", ".join(sorted(self.settings())) or "none"


def built_in_names() -> list[str]:
    """Return the names of the methods in `methods/`: one per file, the file's name."""
    return sorted(path.stem for path in METHODS.glob("*.py") if not path.stem.startswith("_"))


def installed_entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """Return the entry points of installed packages in the group `sparse_bench.methods`, by name."""
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def method_names() -> list[str]:
    """Return the names of all methods, sorted. A built-in takes precedence over an entry point of its name."""
    return sorted({*built_in_names(), *installed_entry_points()})


def expand_name(name: str) -> list[str]:
    """Return the methods that a name stands for: `all` is every method, `table2` those in the paper's Table 2.

    A table's rows may come with settings; the methods are named without them.
    """
    if name == ALL:
        return method_names()
    if name not in TABLES:
        return [name]
    from leaderboard.paper.published import load_tables  # here, because few commands name a table

    (table,) = (found for found in load_tables().tables if f"table{found.number}" == name)
    return list(dict.fromkeys(match.method for part in table.parts for row in part.rows for match in row.ours))


def is_method(name: str) -> bool:
    """Return whether there is a method of this name; a built-in is found without asking the installed packages."""
    return name in built_in_names() or name in installed_entry_points()


def find_method(name: str) -> Plugin:
    """Return the method called `name`: a built-in, an entry point, or the path of a Python file.

    Raises UserError, naming the method and the broken rule, for an unknown name (the nearest is offered), a file that
    is missing or does not import, and a file that defines no method or more than one.
    """
    if name.endswith(".py") or "/" in name:
        return load_file(Path(name))
    if name in built_in_names():
        file = METHODS / f"{name}.py"
        module = importing(f"methods.{name}", lambda: importlib.import_module(f"methods.{name}"), str(file))
        return Plugin(name, only_method(module, f"methods/{name}.py"), f"methods/{name}.py", digest(file))
    entries = installed_entry_points()
    if name in entries:
        entry = entries[name]
        loaded = importing(f"entry point '{name}' ({entry.value})", entry.load)
        source = f"entry point {entry.value}"
        cls = only_method(loaded, source) if isinstance(loaded, ModuleType) else check_class(loaded, source)
        return Plugin(name, cls, source, digest(Path(inspect.getfile(cls))))
    raise UserError(unknown("method", name, method_names()))


def load_file(path: Path) -> Plugin:
    """Return the one method defined in the Python file `path`."""
    given, path = path, expand(path)
    if not path.is_file():
        raise UserError(f"method file {given} does not exist; `make new-method NAME=foo` writes one to start from")
    if not path.stem.isidentifier():
        raise UserError(f"method file {path}: its name must be a Python name such as my_method.py; rename it")
    sha256 = digest(path)
    qualified = f"sparse_bench_plugin_{path.stem}_{sha256[:8]}"
    spec = importlib.util.spec_from_file_location(qualified, path)
    if spec is None or spec.loader is None:
        raise UserError(f"method file {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    loader = spec.loader

    def execute() -> ModuleType:
        sys.modules[qualified] = module  # dataclasses look their module up by name
        loader.exec_module(module)
        return module

    importing(str(path), execute, str(spec.origin))
    return Plugin(path.stem, only_method(module, str(given)), str(given), sha256)


def importing(what: str, load: Any, file: str = "") -> Any:
    """Run `load` and turn any failure of the plugin's own code into a UserError that shows its last line in `file`."""
    try:
        return load()
    except (Exception, SystemExit) as error:  # a plugin may raise anything while it is imported
        raise UserError(f"method {what} does not import: {describe_failure(error, file)}") from error


def only_method(module: ModuleType, source: str) -> type[Method]:
    """Return the one Method subclass that `module` itself defines."""
    own = [
        value
        for value in vars(module).values()
        if is_class(value) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        found = "none" if not own else ", ".join(cls.__name__ for cls in own)
        raise UserError(f"method {source} must define exactly one subclass of methods.core.Method, found {found}")
    return check_class(own[0], source)


def is_class(value: Any) -> bool:
    """Return whether `value` is a class; Python 3.10 also calls an alias such as dict[str, Tensor] one."""
    return issubclass(type(value), type)


def check_class(cls: Any, source: str) -> type[Method]:
    """Return `cls` if it fulfils the static part of the contract, otherwise raise UserError."""
    if not (is_class(cls) and issubclass(cls, Method)):
        raise UserError(f"method {source} must be a subclass of methods.core.Method, got {cls!r}")
    if "__dataclass_fields__" not in vars(cls):
        raise UserError(f"method {source}: put @dataclass(frozen=True, kw_only=True) above class {cls.__name__}")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise UserError(f"method {source}: class {cls.__name__} does not define {missing}()")
    for fact, kind in FACTS.items():
        value = getattr(cls, fact, None)
        if value is None or value == "":
            raise UserError(f"method {source}: class {cls.__name__} does not state its {fact}")
        if not isinstance(value, kind):
            raise UserError(f"method {source}: {fact} of class {cls.__name__} must be a {kind.__name__}, got {value!r}")
    for name, value in vars(cls).items():
        plain = isinstance(value, bool | int | float | str | list | dict)
        if plain and not name.startswith("_") and name not in cls.__annotations__ and not hasattr(Method, name):
            raise UserError(
                f"method {source}: '{name} = {value!r}' in class {cls.__name__} needs a type to be a hyper-parameter: "
                f"write '{name}: {type(value).__name__} = {value!r}'"
            )
    checked: type[Method] = cls
    return checked


def digest(path: Path) -> str:
    """Return the SHA-256 of the code in a Python file, without comments, docstrings and layout.

    So a reworded comment leaves a method the same, and a changed line makes it another. Raises UserError for a file
    that does not parse.
    """
    try:
        return identify(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"method file {path} does not parse: {error}") from error
