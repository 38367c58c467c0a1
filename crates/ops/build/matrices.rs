//! Gives every cooperative matrix a variable of its own.
//!
//! Shaders keep matrices in arrays and hand them to functions by pointer, `multiply_key(&queries, &scores, base, 0u, n)`, which
//! says each step once. Compilers keep matrices in registers best where each is a variable of the entry point and no array, pointer
//! or function stands between (`tools/gpu/lab/h200.md`). So after WESL has resolved a permutation,
//!
//! - a call of a function that takes matrices, or a pointer to an array of them, becomes a block with the function's body:
//!   other arguments are bound by `let`, those that are constant or bound already are put in;
//! - an array of matrices, `var sums = Sums();`, becomes variables `sums_0`, `sums_1`, ... as far as they are used, and
//!   `(*sums)[8u + d]` the one that is meant, since `d` is a number there;
//! - an `if` on constants keeps the branch that is taken.
//!
//! Names that such a body declares end in `_in1`, in a body within it in `_in2`, so that they hide none of the caller's.

use std::collections::{BTreeMap, BTreeSet};
use wesl::syntax::{
    BinaryOperator, CompoundStatement, Declaration, DeclarationKind, Expression, ExpressionNode, Function,
    FunctionCallExpression, GlobalDeclaration, Ident, LiteralExpression, Statement, StatementNode, TranslationUnit,
    TypeExpression, UnaryOperator,
};

/// What a name within a function stands for.
#[derive(Clone)]
enum Meaning {
    /// A variable, by its name in the result.
    Variable(String),
    /// What does not change: a parameter or `let`.
    Value(String),
    /// A number.
    Number(i64),
    /// An array of matrices, or a pointer to one: what its elements' names begin with.
    Matrices(String),
}

type Scope = BTreeMap<String, Meaning>;

/// An array of matrices as a type: what it is of, and of how many.
struct Matrices {
    element: TypeExpression,
    count: i64,
}

/// Rewrites a resolved permutation, see above. Texts without cooperative matrices stay as they are.
///
/// # Errors
/// An element that no number names, and functions of matrices that give a result, return early or are called where no statement
/// is.
pub(crate) fn name(module: &mut TranslationUnit) -> Result<(), String> {
    let mut expander = Expander::new(module);
    if expander.matrices.is_empty() {
        return Ok(());
    }
    for declaration in &mut module.global_declarations {
        if let GlobalDeclaration::Function(function) = declaration.node_mut() {
            let name = function.ident.name().clone();
            if !expander.inlined.contains_key(&name) {
                expander.function(function).map_err(|e| format!("{name}: {e}"))?;
            }
        }
    }
    module.global_declarations.retain(|declaration| match declaration.node() {
        GlobalDeclaration::Function(function) => !expander.inlined.contains_key(&*function.ident.name()),
        GlobalDeclaration::TypeAlias(alias) => !expander.arrays.contains_key(&*alias.ident.name()),
        _ => true,
    });
    Ok(())
}

struct Expander {
    constants: BTreeMap<String, i64>,
    /// Names of types that are matrices.
    matrices: BTreeSet<String>,
    /// Names of types that are arrays of them.
    arrays: BTreeMap<String, Matrices>,
    /// Functions whose calls are replaced.
    inlined: BTreeMap<String, Function>,
    /// Names that the function declares that is being rewritten.
    locals: BTreeSet<String>,
    /// Elements in use, by the array's name in the result.
    used: BTreeMap<String, BTreeSet<i64>>,
}

impl Expander {
    fn new(module: &TranslationUnit) -> Self {
        let mut expander = Expander {
            constants: BTreeMap::new(),
            matrices: BTreeSet::new(),
            arrays: BTreeMap::new(),
            inlined: BTreeMap::new(),
            locals: BTreeSet::new(),
            used: BTreeMap::new(),
        };
        // Declarations come in any order: constants of constants, then aliases, arrays of these, and what takes them.
        let all = || module.global_declarations.iter().map(|d| d.node());
        let constants: Vec<_> = all().filter_map(constant).collect();
        while let Some((name, value)) = constants.iter().find_map(|(name, value)| {
            let known = expander.constants.contains_key(name);
            expander.number(value, &Scope::new()).filter(|_| !known).map(|number| (name.clone(), number))
        }) {
            expander.constants.insert(name, value);
        }
        let aliases = || {
            all().filter_map(|d| match d {
                GlobalDeclaration::TypeAlias(alias) => Some((alias.ident.name().clone(), &alias.ty)),
                _ => None,
            })
        };
        expander.matrices =
            aliases().filter(|(_, ty)| ty.ident.name().starts_with("coop_mat")).map(|(n, _)| n).collect();
        expander.arrays = aliases().filter_map(|(name, ty)| Some((name, expander.array(ty)?))).collect();
        let functions = all().filter_map(|d| match d {
            GlobalDeclaration::Function(f) if f.parameters.iter().any(|p| expander.takes_matrices(&p.ty)) => Some(f),
            _ => None,
        });
        expander.inlined = functions.map(|f| (f.ident.name().clone(), f.clone())).collect();
        expander
    }

    /// `array<Sum, 16>`.
    fn array(&self, ty: &TypeExpression) -> Option<Matrices> {
        let [element, count] = ty.template_args.as_deref()? else { return None };
        let Expression::TypeOrIdentifier(element) = element.expression.node() else { return None };
        let of_matrices = *ty.ident.name() == "array" && self.matrices.contains(&*element.ident.name());
        let count = self.number(&count.expression, &Scope::new()).filter(|_| of_matrices)?;
        Some(Matrices { element: element.clone(), count })
    }

    /// `Sum` or `ptr<function, Sums>`.
    fn takes_matrices(&self, ty: &TypeExpression) -> bool {
        self.matrices.contains(&*ty.ident.name()) || self.is_pointer(ty)
    }

    fn is_pointer(&self, ty: &TypeExpression) -> bool {
        let pointee = ty.template_args.as_deref().and_then(|args| args.get(1)).map(|arg| arg.expression.node());
        let array =
            |e: &Expression| matches!(e, Expression::TypeOrIdentifier(t) if self.arrays.contains_key(&*t.ident.name()));
        *ty.ident.name() == "ptr" && pointee.is_some_and(array)
    }

    fn function(&mut self, function: &mut Function) -> Result<(), String> {
        self.locals = function.parameters.iter().map(|p| p.ident.name().clone()).collect();
        self.used.clear();
        let parameters = self.locals.iter().map(|name| (name.clone(), Meaning::Value(name.clone())));
        let mut scope = parameters.collect();
        self.block(&mut function.body, &mut scope, 0)
    }

    /// A block's statements; its declarations come into the scope.
    fn block(&mut self, block: &mut CompoundStatement, scope: &mut Scope, depth: usize) -> Result<(), String> {
        let mut statements = Vec::new();
        // Where arrays of matrices are declared: which of them are used is known at the end.
        let mut arrays = Vec::new();
        for mut statement in std::mem::take(&mut block.statements) {
            match statement.node_mut() {
                Statement::Declaration(declaration) if self.declared_array(declaration).is_some() => {
                    let ty = self.declared_array(declaration).expect("there is one");
                    let name = inner(&declaration.ident.name(), depth);
                    self.used.insert(name.clone(), BTreeSet::new());
                    scope.insert(declaration.ident.name().clone(), Meaning::Matrices(name.clone()));
                    arrays.push((statements.len(), declaration.clone(), ty, name));
                }
                Statement::If(choice) if self.number(&choice.if_clause.expression, scope).is_some() => {
                    let taken = self.number(&choice.if_clause.expression, scope) != Some(0);
                    if !choice.else_if_clauses.is_empty() {
                        return Err("an `else if` after a condition that is constant".into());
                    }
                    let other = choice.else_clause.take().map(|clause| clause.body);
                    if let Some(mut body) = if taken { Some(choice.if_clause.body.clone()) } else { other } {
                        self.block(&mut body, &mut scope.clone(), depth)?;
                        statements.push(Statement::Compound(body).into());
                    }
                }
                Statement::FunctionCall(call) if self.inlined.contains_key(&*call.call.ty.ident.name()) => {
                    let body = self.call(&call.call, scope, depth)?;
                    statements.push(Statement::Compound(body).into());
                }
                other => {
                    self.statement(other, scope, depth)?;
                    statements.push(statement);
                }
            }
        }
        for (at, declaration, ty, name) in arrays.into_iter().rev() {
            let used = self.used.remove(&name).unwrap_or_default();
            if let Some(index) = used.iter().find(|index| !(0..self.arrays[&ty].count).contains(*index)) {
                return Err(format!("`{name}` has no element {index}"));
            }
            let variables = used.iter().map(|index| variable(&declaration, &self.arrays[&ty], &name, *index));
            statements.splice(at..at, variables.collect::<Vec<_>>());
        }
        block.statements = statements;
        Ok(())
    }

    /// The array type of `var sums = Sums();`.
    fn declared_array(&self, declaration: &Declaration) -> Option<String> {
        let Expression::FunctionCall(call) = declaration.initializer.as_ref()?.node() else { return None };
        let name = call.ty.ident.name().clone();
        self.arrays.contains_key(&name).then_some(name)
    }

    /// The body of a function of matrices, for these arguments.
    fn call(
        &mut self,
        call: &FunctionCallExpression,
        scope: &Scope,
        depth: usize,
    ) -> Result<CompoundStatement, String> {
        let function = self.inlined[&*call.ty.ident.name()].clone();
        if function.return_type.is_some() {
            return Err(format!("`{}` takes matrices and gives a result", function.ident));
        }
        let mut inside = Scope::new();
        let mut statements: Vec<StatementNode> = Vec::new();
        for (parameter, argument) in function.parameters.iter().zip(&call.arguments) {
            let name = parameter.ident.name().clone();
            let meaning = if self.is_pointer(&parameter.ty) {
                let array = pointed(argument).and_then(|array| scope.get(&array).cloned());
                array
                    .filter(|m| matches!(m, Meaning::Matrices(_)))
                    .ok_or(format!("`{name}` is no array of matrices"))?
            } else if let Some(number) = self.number(argument, scope) {
                Meaning::Number(number)
            } else if let Some(Meaning::Value(bound)) = pointed(argument).and_then(|name| scope.get(&name)) {
                Meaning::Value(bound.clone())
            } else {
                let mut value = argument.clone();
                self.expression(&mut value, scope, depth)?;
                let bound = inner(&name, depth + 1);
                statements.push(Statement::Declaration(value_of(&bound, value)).into());
                Meaning::Value(bound)
            };
            inside.insert(name, meaning);
        }
        let mut body = function.body;
        self.block(&mut body, &mut inside, depth + 1)?;
        statements.append(&mut body.statements);
        body.statements = statements;
        Ok(body)
    }

    fn statement(&mut self, statement: &mut Statement, scope: &mut Scope, depth: usize) -> Result<(), String> {
        match statement {
            Statement::Void | Statement::Break(_) | Statement::Continue(_) | Statement::Discard(_) => {}
            Statement::Compound(block) => self.block(block, &mut scope.clone(), depth)?,
            Statement::Assignment(s) => {
                self.expression(&mut s.lhs, scope, depth)?;
                self.expression(&mut s.rhs, scope, depth)?;
            }
            Statement::Increment(s) => self.expression(&mut s.expression, scope, depth)?,
            Statement::Decrement(s) => self.expression(&mut s.expression, scope, depth)?,
            Statement::If(s) => {
                self.expression(&mut s.if_clause.expression, scope, depth)?;
                self.block(&mut s.if_clause.body, &mut scope.clone(), depth)?;
                for clause in &mut s.else_if_clauses {
                    self.expression(&mut clause.expression, scope, depth)?;
                    self.block(&mut clause.body, &mut scope.clone(), depth)?;
                }
                if let Some(clause) = &mut s.else_clause {
                    self.block(&mut clause.body, &mut scope.clone(), depth)?;
                }
            }
            Statement::For(s) => {
                let mut within = scope.clone();
                if let Some(initializer) = &mut s.initializer {
                    self.statement(initializer.node_mut(), &mut within, depth)?;
                }
                if let Some(condition) = &mut s.condition {
                    self.expression(condition, &within, depth)?;
                }
                if let Some(update) = &mut s.update {
                    self.statement(update.node_mut(), &mut within, depth)?;
                }
                self.block(&mut s.body, &mut within, depth)?;
            }
            Statement::Switch(s) => {
                self.expression(&mut s.expression, scope, depth)?;
                for clause in &mut s.clauses {
                    self.block(&mut clause.body, &mut scope.clone(), depth)?;
                }
            }
            Statement::Return(_) if depth > 0 => return Err("a function that takes matrices returns early".into()),
            Statement::Return(s) => {
                if let Some(value) = &mut s.expression {
                    self.expression(value, scope, depth)?;
                }
            }
            Statement::FunctionCall(s) => self.arguments(&mut s.call, scope, depth)?,
            Statement::Declaration(s) => {
                if let Some(initializer) = &mut s.initializer {
                    self.expression(initializer, scope, depth)?;
                }
                let name = s.ident.name().clone();
                let renamed = inner(&name, depth);
                if depth == 0 {
                    self.locals.insert(name.clone());
                }
                s.ident = Ident::new(renamed.clone());
                let fixed = matches!(s.kind, DeclarationKind::Let | DeclarationKind::Const);
                scope.insert(name, if fixed { Meaning::Value(renamed) } else { Meaning::Variable(renamed) });
            }
            Statement::Loop(_) | Statement::While(_) | Statement::ConstAssert(_) => {
                return Err("`loop`, `while` and assertions are not known beside cooperative matrices".into());
            }
        }
        Ok(())
    }

    fn arguments(&mut self, call: &mut FunctionCallExpression, scope: &Scope, depth: usize) -> Result<(), String> {
        let name = call.ty.ident.name().clone();
        if self.inlined.contains_key(&name) {
            return Err(format!("`{name}` takes matrices and is called within an expression"));
        }
        self.visible(&name, depth)?;
        call.arguments.iter_mut().try_for_each(|argument| self.expression(argument, scope, depth))
    }

    /// A body knows the module's names, which the caller must not hide.
    fn visible(&self, name: &str, depth: usize) -> Result<(), String> {
        let hidden = depth > 0 && self.locals.contains(name);
        if hidden {
            Err(format!("`{name}` of the entry point hides what a function of matrices means"))
        } else {
            Ok(())
        }
    }

    fn expression(&mut self, node: &mut ExpressionNode, scope: &Scope, depth: usize) -> Result<(), String> {
        if let Expression::Indexing(access) = node.node()
            && let Some(Meaning::Matrices(name)) = indexed(&access.base).and_then(|name| scope.get(&name))
        {
            let index = self.number(&access.index, scope);
            let index = index.ok_or_else(|| format!("`{node}` is not named by a number"))?;
            self.used.entry(name.clone()).or_default().insert(index);
            *node.node_mut() = named(&element(name, index));
            return Ok(());
        }
        match node.node_mut() {
            Expression::Literal(_) => {}
            Expression::Parenthesized(e) => self.expression(&mut e.expression, scope, depth)?,
            Expression::NamedComponent(e) => self.expression(&mut e.base, scope, depth)?,
            Expression::Indexing(e) => {
                self.expression(&mut e.base, scope, depth)?;
                self.expression(&mut e.index, scope, depth)?;
            }
            Expression::Unary(e) => self.expression(&mut e.operand, scope, depth)?,
            Expression::Binary(e) => {
                self.expression(&mut e.left, scope, depth)?;
                self.expression(&mut e.right, scope, depth)?;
            }
            Expression::FunctionCall(call) => self.arguments(call, scope, depth)?,
            Expression::TypeOrIdentifier(e) => {
                let name = e.ident.name().clone();
                *node.node_mut() = match scope.get(&name) {
                    Some(Meaning::Variable(name) | Meaning::Value(name)) => named(name),
                    Some(Meaning::Number(number)) => Expression::Literal(LiteralExpression::U32(*number as u32)),
                    Some(Meaning::Matrices(_)) => return Err(format!("`{name}` is used as a whole")),
                    None => return self.visible(&name, depth),
                };
            }
        }
        Ok(())
    }

    /// The value of an expression of constants, 1 for true.
    fn number(&self, node: &ExpressionNode, scope: &Scope) -> Option<i64> {
        match node.node() {
            Expression::Literal(LiteralExpression::U32(n)) => Some(i64::from(*n)),
            Expression::Literal(LiteralExpression::I32(n)) => Some(i64::from(*n)),
            Expression::Literal(LiteralExpression::AbstractInt(n)) => Some(*n),
            Expression::Parenthesized(e) => self.number(&e.expression, scope),
            Expression::TypeOrIdentifier(e) => match scope.get(&*e.ident.name()) {
                Some(Meaning::Number(n)) => Some(*n),
                Some(_) => None,
                None => self.constants.get(&*e.ident.name()).copied(),
            },
            Expression::Binary(e) => {
                let (left, right) = (self.number(&e.left, scope)?, self.number(&e.right, scope)?);
                match e.operator {
                    BinaryOperator::Addition => left.checked_add(right),
                    BinaryOperator::Subtraction => left.checked_sub(right),
                    BinaryOperator::Multiplication => left.checked_mul(right),
                    BinaryOperator::Division => left.checked_div(right),
                    BinaryOperator::Equality => Some(i64::from(left == right)),
                    BinaryOperator::GreaterThan => Some(i64::from(left > right)),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// `const SIZE: u32 = 16u;`
fn constant(declaration: &GlobalDeclaration) -> Option<(String, &ExpressionNode)> {
    match declaration {
        GlobalDeclaration::Declaration(d) if d.kind == DeclarationKind::Const => {
            Some((d.ident.name().clone(), d.initializer.as_ref()?))
        }
        _ => None,
    }
}

/// A name that a body declares, so deep within others.
fn inner(name: &str, depth: usize) -> String {
    if depth == 0 { name.to_owned() } else { format!("{name}_in{depth}") }
}

fn element(array: &str, index: i64) -> String {
    format!("{array}_{index}")
}

fn named(name: &str) -> Expression {
    Expression::TypeOrIdentifier(Ident::new(name.to_owned()).into())
}

/// The name in `sums` or `&sums`.
fn pointed(node: &ExpressionNode) -> Option<String> {
    match node.node() {
        Expression::TypeOrIdentifier(e) => Some(e.ident.name().clone()),
        Expression::Unary(e) if e.operator == UnaryOperator::AddressOf => pointed(&e.operand),
        _ => None,
    }
}

/// The name in `sums` or `(*sums)`.
fn indexed(node: &ExpressionNode) -> Option<String> {
    match node.node() {
        Expression::TypeOrIdentifier(e) => Some(e.ident.name().clone()),
        Expression::Parenthesized(e) => indexed(&e.expression),
        Expression::Unary(e) if e.operator == UnaryOperator::Indirection => indexed(&e.operand),
        _ => None,
    }
}

/// `let name = value;`
fn value_of(name: &str, value: ExpressionNode) -> Declaration {
    let ident = Ident::new(name.to_owned());
    Declaration { attributes: Vec::new(), kind: DeclarationKind::Let, ident, ty: None, initializer: Some(value) }
}

/// `var sums_3 = Sum();` for an element of `var sums = Sums();`.
fn variable(array: &Declaration, ty: &Matrices, name: &str, index: i64) -> StatementNode {
    let zero = FunctionCallExpression { ty: ty.element.clone(), arguments: Vec::new() };
    let initializer = Some(Expression::FunctionCall(zero).into());
    let ident = Ident::new(element(name, index));
    Statement::Declaration(Declaration { ident, initializer, ..array.clone() }).into()
}
