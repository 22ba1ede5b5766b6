"""Which variables the cells of a notebook share."""

import ast


def rebound(sources: list[str]) -> dict[str, list[int]]:
    """Names that several cells bind and that some cell takes from another, with those who bind.

    Without any, all cells have run once and can be run again in any order. What a cell binds only
    under an `if` does not count.
    """
    cells = [Cell(source) for source in sources]
    taken = set().union(*(cell.taken for cell in cells))
    makers = {name: [i for i, cell in enumerate(cells) if name in cell.bound] for name in taken}
    return {name: where for name, where in sorted(makers.items()) if len(where) > 1}


class Cell(ast.NodeVisitor):
    """The names that a cell binds, and those that it takes from elsewhere.

    A cell also takes what its functions look up when they are called, even its own names: another
    cell may have bound them anew by then.
    """

    def __init__(self, source: str) -> None:
        self.bound, self.perhaps, self.taken = set(), set(), set()
        self.scopes, self.functions, self.conditions = [], 0, 0
        self._visit(ast.parse(source).body)

    def _visit(self, nodes: list[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def _bind(self, name: str) -> None:
        everywhere = self.perhaps if self.conditions else self.bound
        (self.scopes[-1] if self.scopes else everywhere).add(name)

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._bind(node.id)
        elif not any(node.id in scope for scope in self.scopes):
            if self.functions or node.id not in self.bound | self.perhaps:
                self.taken.add(node.id)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._visit([node.value, *node.targets])

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.visit(ast.Name(node.target.id, ast.Load()))
        self._visit([node.value, node.target])

    def visit_For(self, node: ast.For) -> None:
        self._visit([node.iter, node.target, *node.body, *node.orelse])

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self.conditions += 1
        self._visit([*node.body, *node.orelse])
        self.conditions -= 1

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            self._bind((alias.asname or alias.name).split(".")[0])

    visit_ImportFrom = visit_Import

    def visit_ListComp(self, node) -> None:
        self.visit(node.generators[0].iter)
        self.scopes.append(set())
        for n, part in enumerate(node.generators):
            self._visit([part.iter if n else None, part.target, *part.ifs])
        self._visit([getattr(node, field, None) for field in ("key", "value", "elt")])
        self.scopes.pop()

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.Lambda) -> None:
        own, named = node.args, isinstance(node, ast.FunctionDef)
        self._visit([*own.defaults, *own.kw_defaults, *(node.decorator_list if named else ())])
        if named:
            self._bind(node.name)
        inside = [x for part in (node.body if named else [node.body]) for x in ast.walk(part)]
        local = {a.arg for a in ast.walk(own) if isinstance(a, ast.arg)}
        local |= {x.id for x in inside if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}
        local |= {x.name for x in inside if isinstance(x, ast.FunctionDef | ast.ClassDef)}
        self.scopes.append(local)
        self.functions += named  # a lambda is mostly used where it stands
        self._visit(node.body if named else [node.body])
        self.functions -= named
        self.scopes.pop()

    visit_Lambda = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit([*node.bases, *node.decorator_list])
        self._bind(node.name)
        self.scopes.append(set())
        self._visit(node.body)
        self.scopes.pop()
